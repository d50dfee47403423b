/* What the C tests share: a check that names its place, the tiny model, and calls that must succeed. */
#ifndef CHECK_H
#define CHECK_H

#include <dialoguellm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static dllm_error *err = NULL;

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #condition, dllm_error_message(err));               \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

#define OK(call) CHECK((call) == DLLM_STATUS_OK)

/* A call that must fail with a status and a sentence that has a word in it. */
#define FAILS(status, word, call)                                                                                      \
    do {                                                                                                               \
        dllm_status got = (call);                                                                                      \
        if (got != (status) || dllm_error_status(err) != got || strstr(dllm_error_message(err), word) == NULL) {       \
            fprintf(stderr, "%s:%d: %s: %s, \"%s\"\n", __FILE__, __LINE__, #call, dllm_status_name(got),               \
                    dllm_error_message(err));                                                                          \
            exit(1);                                                                                                   \
        }                                                                                                              \
        dllm_error_free(err);                                                                                          \
        err = NULL;                                                                                                    \
    } while (0)

#define RUN(fact)                                                                                                      \
    do {                                                                                                               \
        fact();                                                                                                        \
        printf("%s\n", #fact);                                                                                         \
        fflush(stdout);                                                                                                \
    } while (0)

/* Folders of the test: the tiny model, and where it may write. */
static const char *model_dir;
static const char *work_dir;

static inline const char *in_work(const char *name) {
    static char paths[8][512];
    static unsigned next;
    char *path = paths[next++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", work_dir, name);
    return path;
}

static dllm_model *open_on(const dllm_runtime *runtime) {
    dllm_model *model = NULL;
    OK(dllm_model_open(runtime, model_dir, NULL, NULL, &model, &err));
    return model;
}

/* The model on the CPU with two threads. */
static inline dllm_model *open_model(void) {
    dllm_runtime_options options;
    memset(&options, 0, sizeof options);
    options.struct_size = sizeof options;
    options.threads = 2;
    options.device = DLLM_DEVICE_CPU;
    dllm_runtime *runtime = NULL;
    OK(dllm_runtime_new(&options, &runtime, &err));
    dllm_model *model = open_on(runtime);
    dllm_runtime_free(runtime); /* the model keeps what it needs of it */
    return model;
}

static inline dllm_turn turn_of(const char *speaker, const char *text) {
    dllm_turn turn;
    memset(&turn, 0, sizeof turn);
    turn.speaker.data = speaker;
    turn.speaker.len = DLLM_NTS;
    turn.text.data = text;
    turn.text.len = DLLM_NTS;
    return turn;
}

static inline dllm_classifier *classifier_of(const dllm_model *model) {
    dllm_classifier *classifier = NULL;
    OK(dllm_classifier_new(model, NULL, NULL, &classifier, &err));
    return classifier;
}

static inline dllm_conversation *talk_of(const dllm_classifier *classifier) {
    dllm_conversation *talk = NULL;
    OK(dllm_conversation_new(classifier, NULL, &talk, &err));
    return talk;
}

#endif
