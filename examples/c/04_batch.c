/* 04: label every turn of a file of dialogues. Usage: 04_batch MODEL ADAPTER DIALOGUES.jsonl */
#include "example.h"

int main(int argc, char **argv) {
    if (argc != 4) return fprintf(stderr, "usage: %s MODEL ADAPTER DIALOGUES.jsonl\n", argv[0]), 2;
    char spec[4096];
    snprintf(spec, sizeof spec, "jsonl:%s", argv[3]);
    dllm_model *model = NULL;
    dllm_classifier *classifier = NULL;
    dllm_dataset *data = NULL;
    check(dllm_model_open(NULL, argv[1], NULL, NULL, &model, &err));
    check(dllm_classifier_open(model, argv[2], &classifier, &err));
    check(dllm_dataset_open(spec, "test", NULL, 0, NULL, &data, &err));

    size_t labels = dllm_classifier_n_labels(classifier), turns = dllm_dataset_n_turns(data, DLLM_ALL);
    float *p = calloc(turns * labels, sizeof *p), *row = p;
    check(dllm_classifier_predict_all(classifier, data, NULL, p, turns * labels, &err));
    for (size_t dialogue = 0; dialogue < dllm_dataset_n_dialogues(data); dialogue++) {
        printf("%zu:", dialogue);
        for (size_t turn = 0; turn < dllm_dataset_n_turns(data, dialogue); turn++, row += labels)
            printf(" %s", dllm_classifier_label(classifier, best(row, labels)));
        printf("\n");
    }
    free(p);
    dllm_dataset_free(data);
    dllm_classifier_free(classifier);
    dllm_model_free(model);
    return 0;
}
