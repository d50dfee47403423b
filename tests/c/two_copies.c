/* A host with two copies of the library, as two plugins would bring them. Usage: two_copies MODEL WORK COPY. */
#include "check.h"
#include <dlfcn.h>

typedef dllm_status (*open_fn)(const dllm_runtime *, const char *, const dllm_model_options *, const dllm_cancel *, dllm_model **,
                               dllm_error **);
typedef dllm_status (*new_fn)(const dllm_model *, const dllm_adapter *, const dllm_classifier_options *, dllm_classifier **,
                              dllm_error **);
typedef dllm_status (*predict_fn)(const dllm_classifier *, const dllm_turn *, size_t, const dllm_cancel *, float *, size_t,
                                  dllm_error **);
typedef void (*free_fn)(void *);

static void *function(void *library, const char *name) {
    void *found = dlsym(library, name);
    if (!found) fprintf(stderr, "%s is missing\n", name), exit(1);
    return found;
}

int main(int argc, char **argv) {
    if (argc < 4) return 2;
    model_dir = argv[1];
    work_dir = argv[2];
    void *copy = dlopen(argv[3], RTLD_NOW | RTLD_LOCAL);
    if (!copy) return fprintf(stderr, "%s\n", dlerror()), 1;
    open_fn open_other;
    new_fn new_other;
    predict_fn predict_other;
    free_fn free_model, free_classifier;
    /* ISO C has no conversion from an object's address to a function's */
    *(void **)&open_other = function(copy, "dllm_model_open");
    *(void **)&new_other = function(copy, "dllm_classifier_new");
    *(void **)&predict_other = function(copy, "dllm_classifier_predict");
    *(void **)&free_model = function(copy, "dllm_model_free");
    *(void **)&free_classifier = function(copy, "dllm_classifier_free");
    CHECK(open_other != dllm_model_open);

    dllm_model *mine = open_model(), *other = NULL;
    OK(open_other(NULL, model_dir, NULL, NULL, &other, &err));
    dllm_classifier *my_classifier = classifier_of(mine), *other_classifier = NULL;
    OK(new_other(other, NULL, NULL, &other_classifier, &err));
    dllm_turn turn = turn_of("Ann", "We won!");
    float p[2][7];
    OK(dllm_classifier_predict(my_classifier, &turn, 1, NULL, p[0], 7, &err));
    OK(predict_other(other_classifier, &turn, 1, NULL, p[1], 7, &err));
    CHECK(memcmp(p[0], p[1], sizeof p[0]) == 0);
    dllm_classifier_free(my_classifier);
    dllm_model_free(mine);
    OK(predict_other(other_classifier, &turn, 1, NULL, p[1], 7, &err));
    free_classifier(other_classifier);
    free_model(other);
    return 0;
}
