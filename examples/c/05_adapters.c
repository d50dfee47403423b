/* 05: several adapters on one model, whose weights are there once. Usage: 05_adapters MODEL ADAPTER.. */
#include "example.h"

int main(int argc, char **argv) {
    if (argc < 3) return fprintf(stderr, "usage: %s MODEL ADAPTER..\n", argv[0]), 2;
    dllm_model *model = NULL;
    check(dllm_model_open(NULL, argv[1], NULL, NULL, &model, &err));
    const dllm_turn turn = { DLLM_STR("Ann"), DLLM_STR("They're turning it down! We keep it!"), DLLM_NO_STR, DLLM_NO_STR };
    for (int i = 2; i < argc; i++) {
        dllm_classifier *classifier = NULL;
        check(dllm_classifier_open(model, argv[i], &classifier, &err));
        float p[64];
        check(dllm_classifier_predict(classifier, &turn, 1, NULL, p, 64, &err));
        size_t label = best(p, dllm_classifier_n_labels(classifier));
        printf("adapter %d: %s %.4f\n", i - 1, dllm_classifier_label(classifier, label), p[label]);
        dllm_classifier_free(classifier);
    }
    dllm_model_free(model);
    return 0;
}
