/* Prints the bits of a turn's probabilities, as examples/bits.txt has them. Usage: bits MODEL. C11 and C++17. */
#include "check.h"
#include <stdint.h>

enum { LABELS = 7 };

int main(int argc, char **argv) {
    CHECK(argc == 2);
    dllm_model *model = NULL;
    OK(dllm_model_open(NULL, argv[1], NULL, NULL, &model, &err));
    dllm_classifier *classifier = classifier_of(model);
    dllm_turn turns[2] = { turn_of("Ann", "We won!"), turn_of("Bo", "Leave me alone.") };
    float all[2 * LABELS];
    OK(dllm_classifier_predict(classifier, turns, 2, NULL, all, 2 * LABELS, &err));
    for (int label = 0; label < LABELS; label++) {
        uint32_t bits;
        memcpy(&bits, &all[LABELS + label], sizeof bits);
        printf("%08x%c", (unsigned)bits, label == LABELS - 1 ? '\n' : ' ');
    }
    dllm_classifier_free(classifier);
    dllm_model_free(model);
    return 0;
}
