/* 02: a live chat, a turn a line as `Name: text`; Ctrl-C ends it, also inside a call. Usage: 02_live MODEL */
#include "example.h"
#include <signal.h>

static dllm_cancel *cancel;

static void on_signal(int signal) {
    (void)signal;
    dllm_cancel_set(cancel);
}

int main(int argc, char **argv) {
    if (argc != 2) return fprintf(stderr, "usage: %s MODEL\n", argv[0]), 2;
    check(dllm_cancel_new(&cancel, &err));
    signal(SIGINT, on_signal);
    dllm_model *model = NULL;
    dllm_classifier *classifier = NULL;
    dllm_conversation *talk = NULL;
    dllm_conversation_options options = { .struct_size = sizeof options, .cancel = cancel };
    check(dllm_model_open(NULL, argv[1], NULL, cancel, &model, &err));
    check(dllm_classifier_new(model, NULL, NULL, &classifier, &err));
    check(dllm_conversation_new(classifier, &options, &talk, &err));

    char line[4096];
    while (!dllm_cancel_is_set(cancel) && fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\n")] = 0;
        char *text = strstr(line, ": ");
        if (!text) continue;
        *text = 0;
        const dllm_turn turn = { DLLM_STR(line), DLLM_STR(text + 2), DLLM_NO_STR, DLLM_NO_STR };
        float p[7];
        check(dllm_conversation_add_turn(talk, &turn, NULL, &err)); /* costs this turn's tokens alone */
        check(dllm_conversation_ask(talk, p, 7, &err));
        printf("%s %.4f\n", dllm_classifier_label(classifier, best(p, 7)), p[best(p, 7)]);
        fflush(stdout);
    }
    printf("%zu turns\n", dllm_conversation_n_turns(talk));
    dllm_conversation_free(talk);
    dllm_classifier_free(classifier);
    dllm_model_free(model);
    dllm_cancel_free(cancel);
    return 0;
}
