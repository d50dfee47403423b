/* 01: label a conversation. Usage: 01_label MODEL */
#include "example.h"

int main(int argc, char **argv) {
    if (argc != 2) return fprintf(stderr, "usage: %s MODEL\n", argv[0]), 2;
    dllm_model *model = NULL;
    check(dllm_model_open(NULL, argv[1], NULL, NULL, &model, &err));
    dllm_classifier *classifier = NULL;
    check(dllm_classifier_new(model, NULL, NULL, &classifier, &err)); /* MELD's seven labels */

    const dllm_turn turns[3] = {
        { DLLM_STR("Ann"), DLLM_STR("We won! What a lovely day!"), DLLM_NO_STR, DLLM_NO_STR },
        { DLLM_STR("Bo"), DLLM_STR("You won? I had no idea."), DLLM_NO_STR, DLLM_NO_STR },
        { DLLM_STR("Ann"), DLLM_STR("You forgot. Again."), DLLM_NO_STR, DLLM_NO_STR },
    };
    float p[3][7];
    check(dllm_classifier_predict(classifier, turns, 3, NULL, &p[0][0], 21, &err));
    for (int turn = 0; turn < 3; turn++) {
        size_t label = best(p[turn], 7);
        printf("%s: %s %.4f\n", turns[turn].speaker.data, dllm_classifier_label(classifier, label), p[turn][label]);
    }
    dllm_classifier_free(classifier);
    dllm_model_free(model);
    return 0;
}
