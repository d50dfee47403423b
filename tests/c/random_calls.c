/* Calls at random, with arguments at random: right ones, wrong ones, none. Usage: random_calls MODEL WORK SECONDS [SEED].
 * Nothing may crash, and what succeeds must be usable. Handles are right or NULL: other addresses are the caller's crime. */
#include "check.h"
#include <stdint.h>
#include <time.h>

static uint64_t state;

static uint32_t below(uint32_t n) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33) % n;
}

enum { KEPT = 4, ROOM = 64, VOCABULARY = 1024 };
static dllm_runtime *runtimes[KEPT];
static dllm_model *models[KEPT];
static dllm_adapter *adapters[KEPT];
static dllm_classifier *classifiers[KEPT];
static dllm_conversation *talks[KEPT];
static dllm_dataset *sets[KEPT];
static dllm_trainer *trainers[KEPT];
static dllm_cancel *cancels[KEPT];

#define ANY(handles) (below(8) == 0 ? NULL : handles[below(KEPT)])

static const char *any_text(void) {
    static const char *const TEXTS[] = { "", "We won!", "Ann", "\xff\xfe", "{\"turns\":[{\"text\":\"Hi\",\"emotion\":\"joy\"},{\"text\":\"No\",\"emotion\":\"fear\"}]}",
                                         "{\"turns\":1}", "[train]\nepochs = 1\nbatch = 1\n", "[lora]\nrank = 0", "dialogue", "train",
                                         "jsonl:/nowhere", "meld:.", "\xc3\xa9\xe4\xbd\xa0\xf0\x9f\x98\x80", "{{ nonsense", "x = [" };
    return below(12) == 0 ? NULL : TEXTS[below(sizeof TEXTS / sizeof *TEXTS)];
}

static size_t len_of(const char *text) {
    if (!text) return below(2) ? 0 : DLLM_NTS;
    return below(4) ? DLLM_NTS : below((uint32_t)strlen(text) + 1);
}

static dllm_str any_str(void) {
    dllm_str text;
    text.data = any_text();
    text.len = text.data && below(3) ? DLLM_NTS : text.data ? below((uint32_t)strlen(text.data) + 1) : 0;
    return text;
}

static int32_t describe(void *user, const dllm_turn *turn, const char *clip, dllm_str *description) {
    (void)turn, (void)clip;
    *description = *(const dllm_str *)user;
    return below(4) == 0;
}

static const char *any_path(void) {
    switch (below(6)) {
    case 0: return NULL;
    case 1: return "/nowhere/at/all";
    case 2: return model_dir;
    case 3: return in_work("a");
    case 4: return in_work("c");
    default: return in_work("b");
    }
}

/* A struct of any bytes, of a size that is right more often than not. */
#define ANY_OPTIONS(type, name)                                                                                        \
    type name;                                                                                                         \
    memset(&name, 0, sizeof name);                                                                                     \
    name.struct_size = below(8) ? sizeof name : below(3) ? below(sizeof name) : 0

/* Takes what a call gave in place of an older handle, which seldom goes for nothing. */
#define KEEP(handles, free_it, given)                                                                                  \
    do {                                                                                                               \
        uint32_t at = below(KEPT);                                                                                     \
        if (!given && below(8)) break;                                                                                 \
        free_it(handles[at]);                                                                                          \
        handles[at] = given;                                                                                           \
    } while (0)

static const char GOOD_DATA[] = "{\"turns\":[{\"text\":\"Hi\",\"emotion\":\"joy\"},{\"text\":\"No\",\"emotion\":\"fear\"}]}";
static const char GOOD_RECIPE[] = "[train]\nepochs = 3\nbatch = 1\n";

enum { CASES = 35 };
static uint64_t calls[CASES], fine[CASES];

static void call(uint32_t which) {
    dllm_status status = DLLM_STATUS_OK;
    dllm_error **error = below(4) ? &err : NULL;
    float p[VOCABULARY];
    uint32_t ids[ROOM];
    size_t written = 0, capacity = below(ROOM);
    dllm_string *text = NULL;
    const char *a = any_text(), *b = any_text();
    dllm_turn turn;
    turn.speaker = any_str(), turn.text = any_str(), turn.visual = any_str(), turn.emotion = any_str();
    for (int i = 0; i < ROOM; i++) ids[i] = below(40) ? below(1024) : below(1u << 31);
    switch (which) {
    case 0: {
        ANY_OPTIONS(dllm_runtime_options, options);
        options.threads = below(4), options.device = below(4);
        dllm_runtime *made = NULL;
        status = dllm_runtime_new(below(4) ? &options : NULL, below(9) ? &made : NULL, error);
        KEEP(runtimes, dllm_runtime_free, made);
        break;
    }
    case 1: {
        ANY_OPTIONS(dllm_model_options, options);
        options.precision = below(6), options.no_map = below(3);
        dllm_model *made = NULL;
        status = dllm_model_open(ANY(runtimes), below(3) ? model_dir : any_path(), below(3) ? &options : NULL, ANY(cancels), &made, error);
        KEEP(models, dllm_model_free, made);
        break;
    }
    case 2: status = dllm_model_info(ANY(models), below(9) ? &text : NULL, error); break;
    case 3: status = dllm_model_tokenize(ANY(models), a, len_of(a), below(3), below(5) ? ids : NULL, capacity, below(9) ? &written : NULL, error); break;
    case 4: status = dllm_model_detokenize(ANY(models), below(9) ? ids : NULL, capacity, below(3), &text, error); break;
    case 5: status = dllm_model_logits(ANY(models), ANY(adapters), ids, below(5), ANY(cancels), p, below(2) ? VOCABULARY : capacity, error); break;
    case 6: {
        dllm_str texts[2];
        texts[0] = any_str(), texts[1] = any_str();
        double scores[2];
        status = dllm_model_score(ANY(models), ANY(adapters), a, len_of(a), below(9) ? texts : NULL, below(3), ANY(cancels), scores, error);
        break;
    }
    case 7: {
        ANY_OPTIONS(dllm_generate_options, options);
        dllm_str stop = any_str();
        options.max_tokens = 1 + below(5), options.temperature = (float)below(3), options.top_k = below(9);
        options.seed = below(9), options.stops = &stop, options.n_stops = below(2), options.chat = below(3), options.beams = below(4);
        options.system = below(2) ? NULL : "Be kind.";
        status = dllm_model_generate(ANY(models), ANY(adapters), a, len_of(a), &options, ANY(cancels), NULL, NULL, below(9) ? &text : NULL, error);
        break;
    }
    case 8: {
        dllm_adapter *made = NULL;
        status = dllm_adapter_open(ANY(models), any_path(), &made, error);
        KEEP(adapters, dllm_adapter_free, made);
        break;
    }
    case 9: status = dllm_adapter_save(ANY(adapters), in_work("a"), error); break;
    case 10: {
        dllm_classifier *made = NULL;
        status = dllm_classifier_open(ANY(models), any_path(), &made, error);
        KEEP(classifiers, dllm_classifier_free, made);
        break;
    }
    case 11: {
        ANY_OPTIONS(dllm_classifier_options, options);
        dllm_str labels[2];
        labels[0] = any_str(), labels[1] = any_str();
        options.labels = below(3) ? NULL : labels, options.n_labels = below(3), options.window = below(4);
        options.template_text = below(3) ? NULL : any_text();
        dllm_classifier *made = NULL;
        status = dllm_classifier_new(ANY(models), ANY(adapters), below(3) ? &options : NULL, &made, error);
        KEEP(classifiers, dllm_classifier_free, made);
        break;
    }
    case 12: status = dllm_classifier_predict(ANY(classifiers), below(9) ? &turn : NULL, below(2), ANY(cancels), p, capacity, error); break;
    case 13: status = dllm_classifier_predict_all(ANY(classifiers), ANY(sets), ANY(cancels), p, capacity, error); break;
    case 14:
        if (below(2)) {
            status = dllm_classifier_evaluate(ANY(classifiers), ANY(sets), ANY(cancels), &text, error);
        } else {
            size_t label = below(3) ? DLLM_ALL : below(4);
            status = dllm_classifier_why(ANY(classifiers), below(9) ? &turn : NULL, below(2), label, (uint32_t)below(4), ANY(cancels), &text, error);
        }
        break;
    case 15: {
        dllm_classifier *made = NULL;
        status = dllm_classifier_calibrate(ANY(classifiers), ANY(sets), ANY(cancels), &made, error);
        KEEP(classifiers, dllm_classifier_free, made);
        break;
    }
    case 16: status = dllm_classifier_save(ANY(classifiers), in_work("b"), error); break;
    case 17: {
        ANY_OPTIONS(dllm_conversation_options, options);
        options.context = below(3) ? 0 : below(600), options.cancel = ANY(cancels);
        dllm_conversation *made = NULL;
        status = dllm_conversation_new(ANY(classifiers), below(3) ? &options : NULL, &made, error);
        KEEP(talks, dllm_conversation_free, made);
        break;
    }
    case 18: {
        ANY_OPTIONS(dllm_turn_report, report);
        if (below(2)) {
            status = dllm_conversation_add_turn(ANY(talks), below(9) ? &turn : NULL, below(3) ? &report : NULL, error);
        } else {
            dllm_str seen = any_str();
            status = dllm_conversation_add_clip(ANY(talks), below(9) ? &turn : NULL, a, below(9) ? describe : NULL, &seen,
                                                below(3) ? &report : NULL, error);
        }
        break;
    }
    case 19: status = dllm_conversation_ask(ANY(talks), below(9) ? p : NULL, capacity, error); break;
    case 20: status = dllm_conversation_rollback(ANY(talks), below(3), error); break;
    case 21: status = dllm_conversation_save(ANY(talks), &text, error); break;
    case 22: {
        dllm_conversation *made = NULL;
        dllm_string *saved = NULL;
        if (below(2)) dllm_conversation_save(ANY(talks), &saved, NULL);
        const char *from = saved ? dllm_string_data(saved) : a;
        status = dllm_conversation_restore(ANY(classifiers), NULL, from, saved ? dllm_string_len(saved) : len_of(a), &made, NULL, error);
        dllm_string_free(saved);
        KEEP(talks, dllm_conversation_free, made);
        break;
    }
    case 23: {
        dllm_dataset *made = NULL;
        if (below(2)) a = GOOD_DATA;
        status = below(2) ? dllm_dataset_parse(a, len_of(a), NULL, 0, ANY(cancels), &made, error)
                          : dllm_dataset_open(a, b, NULL, 0, ANY(cancels), &made, error);
        KEEP(sets, dllm_dataset_free, made);
        break;
    }
    case 24: {
        ANY_OPTIONS(dllm_trainer_options, options);
        if (below(2)) a = GOOD_RECIPE;
        options.resume = below(3) ? NULL : any_path(), options.init_adapter = below(3) ? NULL : any_path(), options.cancel = ANY(cancels);
        dllm_trainer *made = NULL;
        status = dllm_trainer_new(ANY(models), ANY(sets), below(2) ? NULL : ANY(sets), a, len_of(a), below(3) ? &options : NULL, &made, error);
        KEEP(trainers, dllm_trainer_free, made);
        break;
    }
    case 25: {
        ANY_OPTIONS(dllm_train_report, report);
        status = dllm_trainer_step(ANY(trainers), below(3) ? &report : NULL, error);
        break;
    }
    case 26: status = dllm_trainer_save(ANY(trainers), in_work("c"), error); break;
    case 27: status = dllm_trainer_finish(ANY(trainers), in_work("b"), below(3) ? &text : NULL, error); break;
    case 28: {
        dllm_adapter *made = NULL;
        status = dllm_trainer_adapter(ANY(trainers), &made, error);
        KEEP(adapters, dllm_adapter_free, made);
        break;
    }
    case 29: {
        dllm_cancel *made = NULL;
        status = dllm_cancel_new(&made, error);
        KEEP(cancels, dllm_cancel_free, made);
        break;
    }
    case 30: below(6) ? dllm_cancel_clear(ANY(cancels)) : dllm_cancel_set(ANY(cancels)); break;
    case 31: status = (below(2) ? dllm_dataset_stats : dllm_dataset_json_lines)(ANY(sets), &text, error); break;
    case 32: status = dllm_dataset_baseline(ANY(sets), ANY(sets), &text, error); break;
    case 33: {
        uint32_t answers[3][4];
        for (int i = 0; i < 12; i++) answers[i / 4][i % 4] = below(below(6) ? 3 : 9);
        size_t turns[2] = { below(5), below(5) };
        size_t resamples = below(6) ? below(50) : SIZE_MAX, labels = below(6) ? 3 : below(2) ? 0 : SIZE_MAX;
        status = dllm_paired_bootstrap(labels, answers[0], answers[1], answers[2], below(5), below(2) ? NULL : turns, below(3),
                                       resamples, below(9), &text, error);
        break;
    }
    default: {
        ANY_OPTIONS(dllm_memory_report, report);
        status = dllm_model_estimate(any_path(), NULL, &report, error);
    }
    }
    CHECK(status != DLLM_STATUS_INTERNAL && status != DLLM_STATUS_POISONED && status >= 0);
    if (error) CHECK((err != NULL) == (status != DLLM_STATUS_OK) && (!err || strlen(dllm_error_message(err)) > 3));
    calls[which]++;
    fine[which] += status == DLLM_STATUS_OK;
    dllm_string_free(text);
    dllm_error_free(err);
    err = NULL;
}

/* Folders that calls may find. */
static void make_folders(void) {
    dllm_model *model = open_model();
    dllm_dataset *data = NULL;
    dllm_trainer *trainer = NULL;
    OK(dllm_dataset_parse(GOOD_DATA, DLLM_NTS, NULL, 0, NULL, &data, &err));
    OK(dllm_trainer_new(model, data, data, GOOD_RECIPE, DLLM_NTS, NULL, &trainer, &err));
    OK(dllm_trainer_run(trainer, NULL, NULL, NULL, &err));
    OK(dllm_trainer_save(trainer, in_work("c"), &err));
    OK(dllm_trainer_finish(trainer, in_work("b"), NULL, &err));
    dllm_trainer_free(trainer);
    dllm_dataset_free(data);
    dllm_model_free(model);
}

int main(int argc, char **argv) {
    if (argc < 4) return 2;
    model_dir = argv[1];
    work_dir = argv[2];
    state = argc > 4 ? strtoull(argv[4], NULL, 10) : 1;
    make_folders();
    time_t end = time(NULL) + atoi(argv[3]);
    uint64_t all = 0;
    while (time(NULL) < end)
        for (int i = 0; i < 16; i++, all++) call(below(CASES));
    printf("%llu calls\n", (unsigned long long)all);
    for (int which = 0; which < CASES; which++) {
        printf("%d: %llu, %llu fine\n", which, (unsigned long long)calls[which], (unsigned long long)fine[which]);
        CHECK(fine[which] > 0); /* else what it does was never tried */
    }
    for (int i = 0; i < KEPT; i++) {
        dllm_trainer_free(trainers[i]), dllm_conversation_free(talks[i]), dllm_classifier_free(classifiers[i]);
        dllm_adapter_free(adapters[i]), dllm_model_free(models[i]), dllm_runtime_free(runtimes[i]);
        dllm_dataset_free(sets[i]), dllm_cancel_free(cancels[i]);
    }
    return 0;
}
