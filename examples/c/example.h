/* What the C examples share: say what went wrong and end. */
#include <dialoguellm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static dllm_error *err = NULL;

static inline void check(dllm_status status) {
    if (status == DLLM_STATUS_OK) return;
    fprintf(stderr, "%s: %s\n", dllm_status_name(status), dllm_error_message(err));
    exit(status);
}

static inline size_t best(const float *p, size_t n) {
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        if (p[i] > p[best]) best = i;
    return best;
}
