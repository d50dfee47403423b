/* One fact about the library a function, named as a sentence. Usage: library MODEL WORK [flat|slow|products]; `flat` adds the
 * facts about memory, which a sanitizer would spoil, `slow` is for a machine that is emulated, and so is `products`, for some that
 * multiply in every way. No fact needs what another one left. Compiled as C11 and as C++17. */
#include "check.h"
#include <dirent.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { LABELS = 7 };

/* Seconds that this process's threads have computed: unlike a clock's they do not grow while other programs run. */
static double computed(void) {
    struct timespec time;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static const char DIALOGUES[] =
    "{\"turns\":[{\"speaker\":\"Ann\",\"text\":\"We won!\",\"emotion\":\"joy\"},"
    "{\"speaker\":\"Bo\",\"text\":\"Leave me alone.\",\"emotion\":\"anger\"}]}\n"
    "{\"turns\":[{\"speaker\":\"Cy\",\"text\":\"Oh! What was that?\",\"emotion\":\"surprise\"},"
    "{\"speaker\":\"Di\",\"text\":\"Only the wind.\",\"emotion\":\"neutral\"}]}\n"
    "{\"turns\":[{\"speaker\":\"Ed\",\"text\":\"She is gone.\",\"emotion\":\"sadness\"}]}\n"
    "{\"turns\":[{\"speaker\":\"Flo\",\"text\":\"I hear steps.\",\"emotion\":\"fear\"},"
    "{\"speaker\":\"Gus\",\"text\":\"Yuck, mould.\",\"emotion\":\"disgust\"}]}\n";

static const char RECIPE[] =
    "[lora]\nrank = 4\nalpha = 8\n[train]\nepochs = 2\nbatch = 1\nlearning_rate = 1e-3\n"
    "[emotion]\nlabels = [\"neutral\", \"joy\", \"surprise\", \"anger\", \"sadness\", \"disgust\", \"fear\"]\n";

static dllm_dataset *dataset(void) {
    dllm_dataset *data = NULL;
    OK(dllm_dataset_parse(DIALOGUES, DLLM_NTS, NULL, 0, NULL, &data, &err));
    return data;
}

static dllm_trainer *trainer_with(const dllm_model *model, const char *recipe, const dllm_trainer_options *options) {
    dllm_dataset *data = dataset();
    dllm_trainer *trainer = NULL;
    OK(dllm_trainer_new(model, data, data, recipe, DLLM_NTS, options, &trainer, &err));
    dllm_dataset_free(data); /* the trainer keeps what it needs of it */
    return trainer;
}

/* Must be the first fact of all. */
static void a_child_forked_before_the_first_call_is_like_its_parent(void) {
    pid_t child = fork();
    CHECK(child >= 0);
    dllm_model *model = open_model();
    dllm_classifier *classifier = classifier_of(model);
    float p[LABELS];
    dllm_turn turn = turn_of("Ann", "We won!");
    OK(dllm_classifier_predict(classifier, &turn, 1, NULL, p, LABELS, &err));
    dllm_classifier_free(classifier);
    dllm_model_free(model);
    if (child == 0) _exit(0);
    int status = 1;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void the_version_of_header_and_library_is_one(void) {
    CHECK(dllm_version_number() == DLLM_VERSION_NUMBER && dllm_abi_version() == DLLM_ABI_VERSION);
    char text[32];
    snprintf(text, sizeof text, "%d.%d.%d", DLLM_VERSION_MAJOR, DLLM_VERSION_MINOR, DLLM_VERSION_PATCH);
    CHECK(strcmp(text, dllm_version()) == 0);
    CHECK(strcmp(dllm_status_name(DLLM_STATUS_BUSY), "BUSY") == 0 && strcmp(dllm_status_name(99), "UNKNOWN") == 0);
}

static void a_turns_probabilities_are_the_same_alone_and_in_a_conversation(void) {
    dllm_model *model = open_model();
    dllm_classifier *classifier = classifier_of(model);
    dllm_conversation *talk = talk_of(classifier);
    dllm_turn turns[2] = { turn_of("Ann", "We won!"), turn_of("Bo", "Leave me alone.") };
    float all[2 * LABELS], live[LABELS], sum = 0;
    CHECK(dllm_classifier_n_labels(classifier) == LABELS);
    CHECK(strcmp(dllm_classifier_label(classifier, 0), "neutral") == 0 && dllm_classifier_label(classifier, 7) == NULL);
    OK(dllm_classifier_predict(classifier, turns, 2, NULL, all, 2 * LABELS, &err));
    for (int turn = 0; turn < 2; turn++) {
        dllm_turn_report report;
        report.struct_size = sizeof report;
        OK(dllm_conversation_add_turn(talk, &turns[turn], &report, &err));
        CHECK(report.computed > 0 && report.dropped == 0);
        OK(dllm_conversation_ask(talk, live, LABELS, &err));
        CHECK(memcmp(live, all + LABELS * turn, sizeof live) == 0);
    }
    for (int label = 0; label < LABELS; label++) sum += live[label];
    CHECK(sum > 0.9999f && sum < 1.0001f);
    CHECK(dllm_conversation_n_turns(talk) == 2 && dllm_conversation_n_tokens(talk) > 0);
    OK(dllm_conversation_rollback(talk, 1, &err));
    OK(dllm_conversation_ask(talk, live, LABELS, &err));
    CHECK(memcmp(live, all, sizeof live) == 0);
    dllm_string *saved = NULL;
    OK(dllm_conversation_save(talk, &saved, &err));
    dllm_conversation *again = NULL;
    OK(dllm_conversation_restore(classifier, NULL, dllm_string_data(saved), dllm_string_len(saved), &again, NULL, &err));
    OK(dllm_conversation_ask(again, live, LABELS, &err));
    CHECK(memcmp(live, all, sizeof live) == 0);
    dllm_string_free(saved);
    dllm_conversation_free(again);
    dllm_conversation_free(talk);
    dllm_classifier_free(classifier);
    dllm_model_free(model);
}

struct film {
    const char *seen;
    int asked, refuses;
    dllm_conversation *talk;
};

static int32_t describe(void *user, const dllm_turn *turn, const char *clip, dllm_str *description) {
    struct film *film = (struct film *)user;
    CHECK(strcmp(clip, "clip.mp4") == 0 && strcmp(turn->text.data, "We won!") == 0 && !description->data && !description->len);
    CHECK(dllm_conversation_add_turn(film->talk, turn, NULL, NULL) == DLLM_STATUS_BUSY);
    film->asked++;
    if (film->seen) description->data = film->seen, description->len = strlen(film->seen);
    return film->refuses;
}

static void what_is_seen_is_asked_once_and_kept_with_the_turn(void) {
    dllm_model *model = open_model();
    dllm_classifier *classifier = classifier_of(model);
    dllm_conversation *talk = talk_of(classifier), *told = talk_of(classifier);
    struct film film = { "Ann jumps.", 0, 0, talk };
    dllm_turn turn = turn_of("Ann", "We won!"), seen = turn;
    float asked[LABELS], said[LABELS];
    dllm_turn_report report;
    report.struct_size = sizeof report;
    OK(dllm_conversation_add_clip(talk, &turn, "clip.mp4", describe, &film, &report, &err));
    CHECK(film.asked == 1 && report.computed > 0);
    seen.visual.data = film.seen, seen.visual.len = strlen(film.seen);
    OK(dllm_conversation_add_turn(told, &seen, NULL, &err));
    OK(dllm_conversation_ask(talk, asked, LABELS, &err));
    OK(dllm_conversation_ask(told, said, LABELS, &err));
    CHECK(memcmp(asked, said, sizeof said) == 0);
    OK(dllm_conversation_add_clip(talk, &seen, "clip.mp4", describe, &film, NULL, &err)); /* it says what is seen */
    CHECK(film.asked == 1 && dllm_conversation_n_turns(talk) == 2);
    film.refuses = 1;
    FAILS(DLLM_STATUS_CANCELLED, "describes", dllm_conversation_add_clip(talk, &turn, "clip.mp4", describe, &film, NULL, &err));
    film.refuses = 0, film.seen = "\xff\xfe";
    FAILS(DLLM_STATUS_INVALID_ARGUMENT, "the description is not UTF-8",
          dllm_conversation_add_clip(talk, &turn, "clip.mp4", describe, &film, NULL, &err));
    FAILS(DLLM_STATUS_INVALID_ARGUMENT, "describe is NULL", dllm_conversation_add_clip(talk, &turn, NULL, NULL, NULL, NULL, &err));
    CHECK(dllm_conversation_n_turns(talk) == 2);
    film.seen = NULL;
    OK(dllm_conversation_add_clip(talk, &turn, "clip.mp4", describe, &film, NULL, &err)); /* nothing to tell */
    CHECK(film.asked == 4 && dllm_conversation_n_turns(talk) == 3);
    dllm_conversation_free(told);
    dllm_conversation_free(talk);
    dllm_classifier_free(classifier);
    dllm_model_free(model);
}

static void handles_may_be_freed_in_any_order(void) {
    for (int order = 0; order < 6; order++) {
        dllm_model *model = open_model();
        dllm_classifier *classifier = classifier_of(model);
        dllm_conversation *talk = talk_of(classifier);
        dllm_turn turn = turn_of("Ann", "Hello.");
        for (int step = 0; step < 3; step++) {
            static const int ORDERS[6][3] = { { 0, 1, 2 }, { 0, 2, 1 }, { 1, 0, 2 }, { 1, 2, 0 }, { 2, 0, 1 }, { 2, 1, 0 } };
            switch (ORDERS[order][step]) {
            case 0: dllm_model_free(model); break;
            case 1: dllm_classifier_free(classifier); break;
            default: dllm_conversation_free(talk); talk = NULL;
            }
            if (talk) OK(dllm_conversation_add_turn(talk, &turn, NULL, &err));
        }
    }
    dllm_model_free(NULL);
    dllm_runtime_free(NULL);
    dllm_adapter_free(NULL);
    dllm_classifier_free(NULL);
    dllm_conversation_free(NULL);
    dllm_dataset_free(NULL);
    dllm_trainer_free(NULL);
    dllm_cancel_free(NULL);
    dllm_error_free(NULL);
    dllm_string_free(NULL);
}

static void tokens_are_texts_and_back(void) {
    dllm_model *model = open_model();
    uint32_t ids[32];
    size_t n = 0, all = 0;
    OK(dllm_model_tokenize(model, "We won!", 7, 0, NULL, 0, &n, &err));
    CHECK(n > 0 && n <= 32);
    OK(dllm_model_tokenize(model, "We won!", DLLM_NTS, 0, ids, 32, &all, &err));
    CHECK(all == n);
    FAILS(DLLM_STATUS_INVALID_ARGUMENT, "room for 1", dllm_model_tokenize(model, "We won!", 7, 0, ids, 1, &all, &err));
    CHECK(all == n);
    OK(dllm_model_tokenize(model, "We won!", DLLM_NTS, 0, ids, 32, &all, &err));
    dllm_string *text = NULL;
    OK(dllm_model_detokenize(model, ids, n, 1, &text, &err));
    CHECK(strcmp(dllm_string_data(text), "We won!") == 0 && dllm_string_len(text) == 7);
    dllm_string_free(text);
    size_t vocabulary = dllm_model_vocab_size(model);
    float *logits = (float *)malloc(vocabulary * sizeof *logits);
    OK(dllm_model_logits(model, NULL, ids, n, NULL, logits, vocabulary, &err));
    FAILS(DLLM_STATUS_INVALID_ARGUMENT, "are needed", dllm_model_logits(model, NULL, ids, n, NULL, logits, 3, &err));
    ids[0] = 1u << 30;
    FAILS(DLLM_STATUS_INVALID_ARGUMENT, "vocabulary",
          dllm_model_logits(model, NULL, ids, n, NULL, logits, vocabulary, &err));
    free(logits);
    dllm_str continuations[2] = { DLLM_STR(" yes"), DLLM_STR(" no") };
    double scores[2] = { 1, 1 };
    OK(dllm_model_score(model, NULL, "Is it?", DLLM_NTS, continuations, 2, NULL, scores, &err));
    CHECK(scores[0] < 0 && scores[1] < 0 && scores[0] != scores[1]);
    dllm_string *info = NULL;
    OK(dllm_model_info(model, &info, &err));
    CHECK(strstr(dllm_string_data(info), "\"fingerprint\"") != NULL);
    dllm_string_free(info);
    dllm_memory_report report;
    report.struct_size = sizeof report;
    OK(dllm_model_estimate(model_dir, NULL, &report, &err));
    CHECK(report.weights > 100000 && report.context == 512 && report.cache_per_token == 2 * 4 * 2 * 32 * 2);
    dllm_model_free(model);
}

struct heard {
    char text[512];
    size_t len;
    int pieces, most;
};

static int32_t hear(void *user, const char *text, size_t len) {
    struct heard *heard = (struct heard *)user;
    CHECK(heard->len + len < sizeof heard->text);
    memcpy(heard->text + heard->len, text, len);
    heard->len += len;
    return ++heard->pieces == heard->most;
}

static void generated_text_is_streamed_and_ends_where_it_is_told(void) {
    dllm_model *model = open_model();
    dllm_generate_options options;
    memset(&options, 0, sizeof options);
    options.struct_size = sizeof options;
    options.max_tokens = 12;
    options.temperature = 0.8f;
    options.seed = 5;
    struct heard heard;
    memset(&heard, 0, sizeof heard);
    dllm_string *text = NULL, *again = NULL;
    OK(dllm_model_generate(model, NULL, "Ann: We", DLLM_NTS, &options, NULL, hear, &heard, &text, &err));
    CHECK(dllm_string_len(text) == heard.len && memcmp(dllm_string_data(text), heard.text, heard.len) == 0);
    OK(dllm_model_generate(model, NULL, "Ann: We", DLLM_NTS, &options, NULL, NULL, NULL, &again, &err));
    CHECK(strcmp(dllm_string_data(text), dllm_string_data(again)) == 0 && heard.len > 2);
    char stop[3] = { heard.text[1], heard.text[2], 0 };
    dllm_str stops[1] = { DLLM_STR(stop) };
    options.stops = stops;
    options.n_stops = 1;
    dllm_string_free(again);
    OK(dllm_model_generate(model, NULL, "Ann: We", DLLM_NTS, &options, NULL, NULL, NULL, &again, &err));
    CHECK(dllm_string_len(again) <= 1);
    options.n_stops = 0;
    memset(&heard, 0, sizeof heard);
    heard.most = 2;
    OK(dllm_model_generate(model, NULL, "Ann: We", DLLM_NTS, &options, NULL, hear, &heard, NULL, &err));
    CHECK(heard.pieces == 2);
    dllm_string_free(text);
    dllm_string_free(again);
    static const char chat[] = "System: Be kind.\nUser: We won!\nAssistant:"; /* as the tiny model's template has it */
    OK(dllm_model_generate(model, NULL, chat, DLLM_NTS, &options, NULL, NULL, NULL, &text, &err));
    options.system = "Be kind.";
    FAILS(DLLM_STATUS_INVALID_ARGUMENT, "chat is 0",
          dllm_model_generate(model, NULL, "We won!", DLLM_NTS, &options, NULL, NULL, NULL, &again, &err));
    options.chat = 1;
    OK(dllm_model_generate(model, NULL, "We won!", DLLM_NTS, &options, NULL, NULL, NULL, &again, &err));
    CHECK(strcmp(dllm_string_data(text), dllm_string_data(again)) == 0);
    options.chat = 0, options.system = NULL, options.beams = 4;
    FAILS(DLLM_STATUS_INVALID_ARGUMENT, "beams draw nothing",
          dllm_model_generate(model, NULL, "Ann: We", DLLM_NTS, &options, NULL, hear, &heard, NULL, &err));
    options.temperature = 0, options.seed = 0;
    memset(&heard, 0, sizeof heard);
    dllm_string_free(text);
    dllm_string_free(again);
    OK(dllm_model_generate(model, NULL, "Ann: We", DLLM_NTS, &options, NULL, hear, &heard, &text, &err));
    CHECK(heard.pieces == 1 && dllm_string_len(text) == heard.len);
    options.beams = 1;
    OK(dllm_model_generate(model, NULL, "Ann: We", DLLM_NTS, &options, NULL, NULL, NULL, &again, &err));
    double log_p[2];
    const dllm_str found[2] = { { dllm_string_data(text), dllm_string_len(text) }, { dllm_string_data(again), dllm_string_len(again) } };
    OK(dllm_model_score(model, NULL, "Ann: We", DLLM_NTS, found, 2, NULL, log_p, &err));
    CHECK(log_p[0] >= log_p[1]); /* beams find a text at least as likely as the likeliest tokens make */
    options.top_p = 3;
    FAILS(DLLM_STATUS_INVALID_ARGUMENT, "top_p is 3",
          dllm_model_generate(model, NULL, "Ann: We", DLLM_NTS, &options, NULL, hear, &heard, NULL, &err));
    dllm_string_free(text);
    dllm_string_free(again);
    dllm_model_free(model);
}

struct events {
    int steps, devs, most;
    dllm_trainer *trainer;
    dllm_status inside;
};

static int32_t on_event(void *user, const dllm_train_report *report) {
    struct events *events = (struct events *)user;
    if (report->kind == DLLM_TRAIN_STEP) events->steps++;
    if (report->kind == DLLM_TRAIN_DEV) events->devs++;
    if (events->trainer) events->inside = dllm_trainer_step(events->trainer, NULL, NULL);
    return events->steps == events->most;
}

static void training_by_steps_is_the_whole_run_and_resumes_to_the_same_bits(void) {
    dllm_model *model = open_model();
    struct events events;
    memset(&events, 0, sizeof events);
    dllm_trainer *whole = trainer_with(model, RECIPE, NULL);
    events.trainer = whole;
    OK(dllm_trainer_run(whole, NULL, on_event, &events, &err));
    CHECK(events.steps == 8 && events.devs == 2 && events.inside == DLLM_STATUS_BUSY);
    dllm_string *summary = NULL;
    OK(dllm_trainer_finish(whole, in_work("whole"), &summary, &err));
    CHECK(strstr(dllm_string_data(summary), "\"steps\":8") != NULL);
    dllm_string_free(summary);
    FAILS(DLLM_STATUS_INVALID_ARGUMENT, "finished", dllm_trainer_step(whole, NULL, &err));

    dllm_trainer *first = trainer_with(model, RECIPE, NULL);
    dllm_train_report report;
    report.struct_size = sizeof report;
    for (int step = 0; step < 3; step++) OK(dllm_trainer_step(first, &report, &err));
    CHECK(report.step == 3 && report.steps == 8 && report.loss > 0 && report.done == 0 && report.tokens > 0);
    dllm_adapter *adapter = NULL;
    OK(dllm_trainer_adapter(first, &adapter, &err));
    CHECK(dllm_adapter_n_parameters(adapter) > 1000);
    OK(dllm_adapter_save(adapter, in_work("snapshot"), &err));
    dllm_adapter *again = NULL;
    OK(dllm_adapter_open(model, in_work("snapshot"), &again, &err));
    CHECK(dllm_adapter_n_parameters(again) == dllm_adapter_n_parameters(adapter));
    dllm_adapter_free(again);
    dllm_adapter_free(adapter);
    OK(dllm_trainer_save(first, in_work("stopped"), &err));
    dllm_trainer_free(first);
    dllm_trainer_options options;
    memset(&options, 0, sizeof options);
    options.struct_size = sizeof options;
    options.resume = in_work("stopped");
    options.metrics = in_work("metrics.jsonl");
    dllm_trainer *second = trainer_with(model, RECIPE, &options);
    do OK(dllm_trainer_step(second, &report, &err));
    while (!report.done);
    OK(dllm_trainer_finish(second, in_work("resumed"), NULL, &err));

    dllm_classifier *classifiers[2] = { NULL, NULL };
    OK(dllm_classifier_open(model, in_work("whole"), &classifiers[0], &err));
    OK(dllm_classifier_open(model, in_work("resumed"), &classifiers[1], &err));
    dllm_turn turn = turn_of("Ann", "We won!");
    float p[2][LABELS];
    for (int i = 0; i < 2; i++) OK(dllm_classifier_predict(classifiers[i], &turn, 1, NULL, p[i], LABELS, &err));
    CHECK(memcmp(p[0], p[1], sizeof p[0]) == 0);
    for (int i = 0; i < 2; i++) dllm_classifier_free(classifiers[i]);
    /* a checkpoint without its adapter must not be taken for the model alone */
    CHECK(unlink(in_work("stopped/adapter_config.json")) == 0);
    dllm_classifier *broken = NULL;
    FAILS(DLLM_STATUS_NOT_FOUND, "adapter_config.json", dllm_classifier_open(model, in_work("stopped"), &broken, &err));
    dllm_trainer_free(whole);
    dllm_trainer_free(second);
    dllm_model_free(model);
}

static void a_first_step_has_the_same_loss_in_every_precision(void) {
    double first = 0;
    for (uint32_t precision = DLLM_PRECISION_BF16; precision <= DLLM_PRECISION_INT4; precision++) {
        dllm_model_options how;
        memset(&how, 0, sizeof how);
        how.struct_size = sizeof how;
        how.precision = precision;
        dllm_model *model = NULL;
        OK(dllm_model_open(NULL, model_dir, &how, NULL, &model, &err));
        dllm_trainer *trainer = trainer_with(model, RECIPE, NULL);
        dllm_train_report report;
        report.struct_size = sizeof report;
        OK(dllm_trainer_step(trainer, &report, &err));
        if (first == 0) first = report.loss;
        CHECK(report.loss > 0.9 * first && report.loss < 1.1 * first);
        dllm_trainer_free(trainer);
        dllm_model_free(model);
    }
}

static void a_callback_stops_a_run_which_is_saved_and_goes_on(void) {
    dllm_model *model = open_model();
    dllm_trainer *trainer = trainer_with(model, RECIPE, NULL);
    struct events events;
    memset(&events, 0, sizeof events);
    events.most = 2;
    FAILS(DLLM_STATUS_CANCELLED, "callback", dllm_trainer_run(trainer, in_work("halted"), on_event, &events, &err));
    events.most = -1;
    OK(dllm_trainer_run(trainer, in_work("halted"), on_event, &events, &err));
    CHECK(events.steps == 8);
    dllm_trainer_free(trainer);
    dllm_model_free(model);
}

static void data_are_counted_judged_and_compared(void) {
    dllm_dataset *data = dataset();
    dllm_string *text = NULL;
    OK(dllm_dataset_stats(data, &text, &err));
    CHECK(strstr(dllm_string_data(text), "\"turns\":7") != NULL && strstr(dllm_string_data(text), "\"joy\":1") != NULL);
    dllm_string_free(text);
    OK(dllm_dataset_json_lines(data, &text, &err));
    dllm_dataset *again = NULL;
    OK(dllm_dataset_parse(dllm_string_data(text), dllm_string_len(text), NULL, 0, NULL, &again, &err));
    CHECK(dllm_dataset_n_dialogues(again) == 4 && dllm_dataset_n_turns(again, DLLM_ALL) == 7);
    CHECK(strstr(dllm_string_data(text), "\"text\":\"Leave me alone.\",\"emotion\":\"anger\"") != NULL);
    dllm_string_free(text);
    dllm_dataset_free(again);
    OK(dllm_dataset_baseline(data, data, &text, &err));
    CHECK(strstr(dllm_string_data(text), "\"accuracy\":1.0") != NULL); /* it has learned these very turns */
    dllm_string_free(text);
    uint32_t gold[6] = { 0, 1, 2, 0, 1, 2 }, right[6] = { 0, 1, 2, 0, 1, 2 }, wrong[6] = { 0, 0, 0, 0, 0, 7 };
    size_t turns[2] = { 4, 2 };
    FAILS(DLLM_STATUS_INVALID_ARGUMENT, "label 7", dllm_paired_bootstrap(3, gold, wrong, right, 6, turns, 2, 100, 0, &text, &err));
    wrong[5] = 0;
    OK(dllm_paired_bootstrap(3, gold, wrong, right, 6, turns, 2, 100, 0, &text, &err));
    CHECK(strstr(dllm_string_data(text), "\"not_better\":0.0") != NULL);
    dllm_string_free(text);
    OK(dllm_paired_bootstrap(3, gold, right, right, 6, NULL, 0, 100, 0, &text, &err));
    CHECK(strstr(dllm_string_data(text), "\"difference\":0.0") != NULL);
    dllm_string_free(text);
    FAILS(DLLM_STATUS_INVALID_ARGUMENT, "adds up to 4", dllm_paired_bootstrap(3, gold, right, right, 6, turns, 1, 9, 0, &text, &err));
    FAILS(DLLM_STATUS_INVALID_ARGUMENT, "resamples", dllm_paired_bootstrap(3, gold, right, right, 6, NULL, 0, SIZE_MAX, 0, &text, &err));
    FAILS(DLLM_STATUS_INVALID_ARGUMENT, "n_labels", dllm_paired_bootstrap(SIZE_MAX, gold, right, right, 6, NULL, 0, 9, 0, &text, &err));
    FAILS(DLLM_STATUS_INVALID_ARGUMENT, "0", dllm_paired_bootstrap(3, gold, right, right, 0, NULL, 0, 9, 0, &text, &err));
    dllm_dataset_free(data);
}

/* A folder that training made, once for all facts that ask for it. */
static const char *trained_folder(const dllm_model *model) {
    static bool made;
    if (!made) {
        dllm_trainer *trainer = trainer_with(model, RECIPE, NULL);
        OK(dllm_trainer_run(trainer, NULL, NULL, NULL, &err));
        OK(dllm_trainer_finish(trainer, in_work("trained"), NULL, &err));
        dllm_trainer_free(trainer);
        made = true;
    }
    return in_work("trained");
}

static void what_made_a_label_is_told_by_turns_words_and_gradients(void) {
    dllm_model *model = open_model();
    dllm_classifier *trained = NULL;
    OK(dllm_classifier_open(model, trained_folder(model), &trained, &err));
    dllm_turn turns[2] = { turn_of("Ann", "We won!"), turn_of("Bo", "I see") };
    dllm_string *why = NULL;
    OK(dllm_classifier_why(trained, turns, 2, DLLM_ALL, DLLM_WHY_TURNS, NULL, &why, &err));
    CHECK(strstr(dllm_string_data(why), "\"text\":\"We won!\"") && strstr(dllm_string_data(why), "\"words\":[]"));
    dllm_string_free(why);
    OK(dllm_classifier_why(trained, turns, 2, 0, DLLM_WHY_WORDS, NULL, &why, &err));
    CHECK(strstr(dllm_string_data(why), "\"text\":\"won!\"") && strstr(dllm_string_data(why), "\"without\":"));
    dllm_string_free(why);
    OK(dllm_classifier_why(trained, turns, 2, 2, DLLM_WHY_GRADIENTS, NULL, &why, &err));
    CHECK(strstr(dllm_string_data(why), "\"integral\":{") && strstr(dllm_string_data(why), "\"text\":\"see\""));
    dllm_string_free(why);
    FAILS(DLLM_STATUS_INVALID_ARGUMENT, "no turn", dllm_classifier_why(trained, turns, 0, 0, 0, NULL, &why, &err));
    FAILS(DLLM_STATUS_INVALID_ARGUMENT, "label 99", dllm_classifier_why(trained, turns, 2, 99, 0, NULL, &why, &err));
    FAILS(DLLM_STATUS_INVALID_ARGUMENT, "method is 3", dllm_classifier_why(trained, turns, 2, 0, 3, NULL, &why, &err));
    dllm_classifier_free(trained);
    dllm_model_free(model);
}

static void a_trained_folder_is_judged_calibrated_saved_merged_and_quantised(void) {
    dllm_model *model = open_model();
    dllm_classifier *trained = NULL, *calibrated = NULL, *saved = NULL, *merged = NULL;
    dllm_dataset *data = dataset();
    CHECK(dllm_dataset_n_dialogues(data) == 4 && dllm_dataset_n_turns(data, DLLM_ALL) == 7);
    CHECK(dllm_dataset_n_turns(data, 2) == 1 && dllm_dataset_n_turns(data, 4) == 0);
    OK(dllm_classifier_open(model, trained_folder(model), &trained, &err));
    dllm_string *report = NULL;
    OK(dllm_classifier_evaluate(trained, data, NULL, &report, &err));
    CHECK(strstr(dllm_string_data(report), "\"weighted_f1\"") != NULL);
    dllm_string_free(report);
    OK(dllm_classifier_calibrate(trained, data, NULL, &calibrated, &err));
    CHECK(dllm_classifier_temperature(calibrated) > 0);
    OK(dllm_classifier_save(calibrated, in_work("calibrated"), &err));
    OK(dllm_classifier_open(model, in_work("calibrated"), &saved, &err));
    CHECK(dllm_classifier_temperature(saved) == dllm_classifier_temperature(calibrated));
    float all[7 * LABELS], again[7 * LABELS];
    OK(dllm_classifier_predict_all(calibrated, data, NULL, all, 7 * LABELS, &err));
    OK(dllm_classifier_predict_all(saved, data, NULL, again, 7 * LABELS, &err));
    CHECK(memcmp(all, again, sizeof all) == 0);
    OK(dllm_merge(model_dir, in_work("calibrated"), in_work("merged"), NULL, NULL, NULL, &err));
    dllm_model *whole = NULL;
    OK(dllm_model_open(NULL, in_work("merged"), NULL, NULL, &whole, &err));
    OK(dllm_classifier_open(whole, in_work("merged"), &merged, &err));
    OK(dllm_classifier_predict_all(merged, data, NULL, again, 7 * LABELS, &err));
    for (int i = 0; i < 7 * LABELS; i++) CHECK(all[i] - again[i] < 0.02f && again[i] - all[i] < 0.02f);
    /* smaller folders: labels come along, and an adapter of the model fits the model in fewer bits */
    dllm_model *small = NULL;
    dllm_classifier *less = NULL;
    OK(dllm_quantize(in_work("merged"), in_work("small"), 8, NULL, NULL, NULL, &err));
    OK(dllm_model_open(NULL, in_work("small"), NULL, NULL, &small, &err));
    OK(dllm_classifier_open(small, in_work("small"), &less, &err));
    OK(dllm_classifier_predict_all(less, data, NULL, again, 7 * LABELS, &err));
    for (int i = 0; i < 7 * LABELS; i++) CHECK(all[i] - again[i] < 0.05f && again[i] - all[i] < 0.05f);
    dllm_classifier_free(less);
    dllm_model_free(small);
    FAILS(DLLM_STATUS_INVALID_ARGUMENT, "quantised already",
          dllm_quantize(in_work("small"), in_work("smaller"), 4, NULL, NULL, NULL, &err));
    FAILS(DLLM_STATUS_INVALID_ARGUMENT, "bits is 3", dllm_quantize(model_dir, in_work("smaller"), 3, NULL, NULL, NULL, &err));
    OK(dllm_quantize(model_dir, in_work("small"), 4, NULL, NULL, NULL, &err));
    OK(dllm_model_open(NULL, in_work("small"), NULL, NULL, &small, &err));
    OK(dllm_classifier_open(small, in_work("calibrated"), &less, &err));
    dllm_classifier_free(less);
    dllm_model_free(small);
    dllm_memory_report needs[4];
    for (uint32_t precision = DLLM_PRECISION_BF16; precision <= DLLM_PRECISION_INT4; precision++) {
        dllm_model_options how;
        memset(&how, 0, sizeof how);
        how.struct_size = sizeof how;
        how.precision = precision;
        memset(&needs[precision], 0, sizeof needs[precision]);
        needs[precision].struct_size = sizeof needs[precision];
        OK(dllm_model_estimate(model_dir, &how, &needs[precision], &err));
        OK(dllm_model_open(NULL, model_dir, &how, NULL, &small, &err));
        OK(dllm_classifier_open(small, in_work("calibrated"), &less, &err));
        OK(dllm_classifier_predict_all(less, data, NULL, again, 7 * LABELS, &err));
        for (int i = 0; i < 7 * LABELS; i++) CHECK(all[i] - again[i] < 0.3f && again[i] - all[i] < 0.3f);
        dllm_classifier_free(less);
        dllm_model_free(small);
    }
    CHECK(needs[DLLM_PRECISION_INT4].weights < needs[DLLM_PRECISION_INT8].weights);
    CHECK(needs[DLLM_PRECISION_INT8].weights < needs[DLLM_PRECISION_BF16].weights);
    dllm_adapter *adapter = NULL;
    OK(dllm_adapter_open(model, in_work("calibrated"), &adapter, &err));
    /* without its adapter a classifier's folder must not be taken for the model alone */
    CHECK(unlink(in_work("calibrated/adapter_config.json")) == 0);
    dllm_classifier *broken = NULL;
    FAILS(DLLM_STATUS_NOT_FOUND, "adapter_config.json", dllm_classifier_open(model, in_work("calibrated"), &broken, &err));
    dllm_classifier *own = NULL;
    dllm_str labels[2] = { DLLM_STR("good"), DLLM_STR("bad") };
    dllm_classifier_options options;
    memset(&options, 0, sizeof options);
    options.struct_size = sizeof options;
    options.labels = labels;
    options.n_labels = 2;
    options.window = 1;
    OK(dllm_classifier_new(model, adapter, &options, &own, &err));
    CHECK(dllm_classifier_n_labels(own) == 2 && strcmp(dllm_classifier_label(own, 1), "bad") == 0);
    options.template_text = "no-such-template";
    dllm_classifier *none = own;
    FAILS(DLLM_STATUS_NOT_FOUND, "no-such-template", dllm_classifier_new(model, adapter, &options, &none, &err));
    CHECK(none == NULL);
    dllm_adapter_free(adapter);
    dllm_classifier_free(own);
    dllm_classifier_free(merged);
    dllm_model_free(whole);
    dllm_classifier_free(saved);
    dllm_classifier_free(calibrated);
    dllm_classifier_free(trained);
    dllm_dataset_free(data);
    dllm_model_free(model);
}

static void what_cannot_be_is_a_sentence(void) {
    dllm_model *model = open_model(), *none = model;
    FAILS(DLLM_STATUS_NOT_FOUND, "no/such/folder", dllm_model_open(NULL, "no/such/folder", NULL, NULL, &none, &err));
    CHECK(none == NULL);
    FAILS(DLLM_STATUS_INVALID_ARGUMENT, "dir is NULL", dllm_model_open(NULL, NULL, NULL, NULL, &none, &err));
    FAILS(DLLM_STATUS_INVALID_ARGUMENT, "model is NULL", dllm_model_open(NULL, model_dir, NULL, NULL, NULL, &err));
    CHECK(dllm_model_open(NULL, NULL, NULL, NULL, &none, NULL) == DLLM_STATUS_INVALID_ARGUMENT);
    dllm_classifier *no_classifier = NULL;
    FAILS(DLLM_STATUS_INVALID_ARGUMENT, "handle is NULL", dllm_classifier_new(NULL, NULL, NULL, &no_classifier, &err));
    dllm_classifier *classifier = classifier_of(model), *nothing = classifier;
    FAILS(DLLM_STATUS_NOT_FOUND, "dialoguellm.json", dllm_classifier_open(model, model_dir, &nothing, &err));
    dllm_conversation *talk = talk_of(classifier);
    float p[LABELS];
    FAILS(DLLM_STATUS_INVALID_ARGUMENT, "nothing was said", dllm_conversation_ask(talk, p, LABELS, &err));
    dllm_turn wrong = turn_of("Ann", "\xff\xfe");
    FAILS(DLLM_STATUS_INVALID_ARGUMENT, "not UTF-8", dllm_conversation_add_turn(talk, &wrong, NULL, &err));
    FAILS(DLLM_STATUS_INVALID_ARGUMENT, "turn is NULL", dllm_conversation_add_turn(talk, NULL, NULL, &err));
    FAILS(DLLM_STATUS_INVALID_ARGUMENT, "cannot be taken back", dllm_conversation_rollback(talk, 1, &err));
    dllm_turn turn = turn_of("Ann", "Hello.");
    OK(dllm_conversation_add_turn(talk, &turn, NULL, &err));
    FAILS(DLLM_STATUS_INVALID_ARGUMENT, "are needed", dllm_conversation_ask(talk, p, 2, &err));
    FAILS(DLLM_STATUS_INVALID_ARGUMENT, "probabilities is NULL", dllm_conversation_ask(talk, NULL, LABELS, &err));
    FAILS(DLLM_STATUS_INVALID_ARGUMENT, "more than memory", dllm_conversation_ask(talk, p, SIZE_MAX / 2, &err));
    dllm_dataset *data = NULL;
    FAILS(DLLM_STATUS_BAD_FILE, "line 1", dllm_dataset_parse("{\"turns\":1}", DLLM_NTS, NULL, 0, NULL, &data, &err));
    FAILS(DLLM_STATUS_INVALID_ARGUMENT, "meld:DIR", dllm_dataset_open("what", "train", NULL, 0, NULL, &data, &err));
    FAILS(DLLM_STATUS_INVALID_ARGUMENT, "train, dev or test", dllm_dataset_open("jsonl:x", "tset", NULL, 0, NULL, &data, &err));
    FAILS(DLLM_STATUS_NOT_FOUND, "x.jsonl", dllm_dataset_open("jsonl:x.jsonl", "train", NULL, 0, NULL, &data, &err));
    FAILS(DLLM_STATUS_BAD_FILE, "not a plain file", dllm_import_gguf(work_dir, in_work("imported"), 0, NULL, NULL, NULL, &err));
    FAILS(DLLM_STATUS_INVALID_ARGUMENT, "dtype is 9", dllm_import_gguf("a", "b", 9, NULL, NULL, NULL, &err));
    data = dataset();
    dllm_trainer *trainer = NULL;
    FAILS(DLLM_STATUS_INVALID_ARGUMENT, "[lora]",
          dllm_trainer_new(model, data, NULL, "[lora]\nrank = 0", DLLM_NTS, NULL, &trainer, &err));
    dllm_runtime_options options;
    memset(&options, 0, sizeof options);
    options.struct_size = sizeof options;
    options.device = 7;
    dllm_runtime *runtime = NULL;
    FAILS(DLLM_STATUS_INVALID_ARGUMENT, "device is 7", dllm_runtime_new(&options, &runtime, &err));
    dllm_dataset_free(data);
    dllm_conversation_free(talk);
    dllm_classifier_free(classifier);
    dllm_model_free(model);
}

static void null_for_every_pointer_that_is_needed_is_an_invalid_argument(void) {
#define NEEDED(call) FAILS(DLLM_STATUS_INVALID_ARGUMENT, "NULL", call)
    dllm_model *model = open_model(), *m = NULL;
    dllm_classifier *classifier = classifier_of(model), *c = NULL;
    dllm_conversation *talk = talk_of(classifier), *t = NULL;
    dllm_dataset *data = dataset(), *d = NULL;
    dllm_trainer *trainer = trainer_with(model, RECIPE, NULL), *r = NULL;
    dllm_adapter *adapter = NULL, *a = NULL;
    OK(dllm_trainer_adapter(trainer, &adapter, &err));
    dllm_string *text = NULL;
    dllm_turn turn = turn_of("Ann", "Hi.");
    dllm_str one = DLLM_STR("x");
    size_t n = 0;
    double score = 0;
    float p[7 * LABELS];
    uint32_t id = 1;
    const char *dir = in_work("nothing");
    NEEDED(dllm_cancel_new(NULL, &err));
    NEEDED(dllm_runtime_new(NULL, NULL, &err));
    NEEDED(dllm_model_open(NULL, NULL, NULL, NULL, &m, &err));
    NEEDED(dllm_model_open(NULL, model_dir, NULL, NULL, NULL, &err));
    NEEDED(dllm_model_info(NULL, &text, &err));
    NEEDED(dllm_model_info(model, NULL, &err));
    NEEDED(dllm_model_estimate(NULL, NULL, NULL, &err));
    NEEDED(dllm_model_tokenize(NULL, "x", 1, 0, &id, 1, &n, &err));
    NEEDED(dllm_model_tokenize(model, NULL, 1, 0, &id, 1, &n, &err));
    NEEDED(dllm_model_tokenize(model, NULL, DLLM_NTS, 0, &id, 1, &n, &err));
    NEEDED(dllm_model_tokenize(model, "x", 1, 0, NULL, 1, &n, &err));
    NEEDED(dllm_model_tokenize(model, "x", 1, 0, &id, 1, NULL, &err));
    NEEDED(dllm_model_detokenize(NULL, &id, 1, 0, &text, &err));
    NEEDED(dllm_model_detokenize(model, NULL, 1, 0, &text, &err));
    NEEDED(dllm_model_detokenize(model, &id, 1, 0, NULL, &err));
    NEEDED(dllm_model_logits(NULL, NULL, &id, 1, NULL, p, 1, &err));
    NEEDED(dllm_model_logits(model, NULL, NULL, 1, NULL, p, 1, &err));
    NEEDED(dllm_model_logits(model, NULL, &id, 1, NULL, NULL, 1, &err));
    NEEDED(dllm_model_score(NULL, NULL, "x", 1, &one, 1, NULL, &score, &err));
    NEEDED(dllm_model_score(model, NULL, NULL, 1, &one, 1, NULL, &score, &err));
    NEEDED(dllm_model_score(model, NULL, "x", 1, NULL, 1, NULL, &score, &err));
    NEEDED(dllm_model_score(model, NULL, "x", 1, &one, 1, NULL, NULL, &err));
    NEEDED(dllm_model_generate(NULL, NULL, "x", 1, NULL, NULL, NULL, NULL, &text, &err));
    NEEDED(dllm_model_generate(model, NULL, NULL, 1, NULL, NULL, NULL, NULL, &text, &err));
    NEEDED(dllm_model_generate(model, NULL, "x", 1, NULL, NULL, NULL, NULL, NULL, &err));
    NEEDED(dllm_adapter_open(NULL, dir, &a, &err));
    NEEDED(dllm_adapter_open(model, NULL, &a, &err));
    NEEDED(dllm_adapter_open(model, dir, NULL, &err));
    NEEDED(dllm_adapter_save(NULL, dir, &err));
    NEEDED(dllm_adapter_save(adapter, NULL, &err));
    NEEDED(dllm_classifier_open(NULL, dir, &c, &err));
    NEEDED(dllm_classifier_open(model, NULL, &c, &err));
    NEEDED(dllm_classifier_open(model, dir, NULL, &err));
    NEEDED(dllm_classifier_new(NULL, NULL, NULL, &c, &err));
    NEEDED(dllm_classifier_new(model, NULL, NULL, NULL, &err));
    NEEDED(dllm_classifier_predict(NULL, &turn, 1, NULL, p, LABELS, &err));
    NEEDED(dllm_classifier_predict(classifier, NULL, 1, NULL, p, LABELS, &err));
    NEEDED(dllm_classifier_predict(classifier, &turn, 1, NULL, NULL, LABELS, &err));
    NEEDED(dllm_classifier_predict_all(NULL, data, NULL, p, 7 * LABELS, &err));
    NEEDED(dllm_classifier_predict_all(classifier, NULL, NULL, p, 7 * LABELS, &err));
    NEEDED(dllm_classifier_predict_all(classifier, data, NULL, NULL, 7 * LABELS, &err));
    NEEDED(dllm_classifier_why(NULL, &turn, 1, DLLM_ALL, DLLM_WHY_TURNS, NULL, &text, &err));
    NEEDED(dllm_classifier_why(classifier, NULL, 1, DLLM_ALL, DLLM_WHY_TURNS, NULL, &text, &err));
    NEEDED(dllm_classifier_why(classifier, &turn, 1, DLLM_ALL, DLLM_WHY_TURNS, NULL, NULL, &err));
    NEEDED(dllm_classifier_evaluate(NULL, data, NULL, &text, &err));
    NEEDED(dllm_classifier_evaluate(classifier, NULL, NULL, &text, &err));
    NEEDED(dllm_classifier_evaluate(classifier, data, NULL, NULL, &err));
    NEEDED(dllm_classifier_calibrate(NULL, data, NULL, &c, &err));
    NEEDED(dllm_classifier_calibrate(classifier, NULL, NULL, &c, &err));
    NEEDED(dllm_classifier_calibrate(classifier, data, NULL, NULL, &err));
    NEEDED(dllm_classifier_save(NULL, dir, &err));
    NEEDED(dllm_classifier_save(classifier, NULL, &err));
    NEEDED(dllm_conversation_new(NULL, NULL, &t, &err));
    NEEDED(dllm_conversation_new(classifier, NULL, NULL, &err));
    NEEDED(dllm_conversation_restore(NULL, NULL, "{}", 2, &t, NULL, &err));
    NEEDED(dllm_conversation_restore(classifier, NULL, NULL, 2, &t, NULL, &err));
    NEEDED(dllm_conversation_restore(classifier, NULL, "{}", 2, NULL, NULL, &err));
    NEEDED(dllm_conversation_add_turn(NULL, &turn, NULL, &err));
    NEEDED(dllm_conversation_add_turn(talk, NULL, NULL, &err));
    NEEDED(dllm_conversation_add_clip(NULL, &turn, "", describe, NULL, NULL, &err));
    NEEDED(dllm_conversation_add_clip(talk, NULL, "", describe, NULL, NULL, &err));
    NEEDED(dllm_conversation_add_clip(talk, &turn, "", NULL, NULL, NULL, &err));
    NEEDED(dllm_conversation_ask(NULL, p, LABELS, &err));
    NEEDED(dllm_conversation_ask(talk, NULL, LABELS, &err));
    NEEDED(dllm_conversation_rollback(NULL, 0, &err));
    NEEDED(dllm_conversation_save(NULL, &text, &err));
    NEEDED(dllm_conversation_save(talk, NULL, &err));
    NEEDED(dllm_dataset_open(NULL, "train", NULL, 0, NULL, &d, &err));
    NEEDED(dllm_dataset_open("jsonl:x", NULL, NULL, 0, NULL, &d, &err));
    NEEDED(dllm_dataset_open("jsonl:x", "train", NULL, 0, NULL, NULL, &err));
    NEEDED(dllm_dataset_parse(NULL, DLLM_NTS, NULL, 0, NULL, &d, &err));
    NEEDED(dllm_dataset_parse(DIALOGUES, DLLM_NTS, NULL, 0, NULL, NULL, &err));
    uint32_t numbers[1] = { 0 };
    NEEDED(dllm_dataset_stats(NULL, &text, &err));
    NEEDED(dllm_dataset_stats(data, NULL, &err));
    NEEDED(dllm_dataset_json_lines(NULL, &text, &err));
    NEEDED(dllm_dataset_json_lines(data, NULL, &err));
    NEEDED(dllm_dataset_baseline(NULL, data, &text, &err));
    NEEDED(dllm_dataset_baseline(data, NULL, &text, &err));
    NEEDED(dllm_dataset_baseline(data, data, NULL, &err));
    NEEDED(dllm_paired_bootstrap(2, NULL, numbers, numbers, 1, NULL, 0, 1, 0, &text, &err));
    NEEDED(dllm_paired_bootstrap(2, numbers, NULL, numbers, 1, NULL, 0, 1, 0, &text, &err));
    NEEDED(dllm_paired_bootstrap(2, numbers, numbers, NULL, 1, NULL, 0, 1, 0, &text, &err));
    NEEDED(dllm_paired_bootstrap(2, numbers, numbers, numbers, 1, NULL, 0, 1, 0, NULL, &err));
    NEEDED(dllm_trainer_new(NULL, data, NULL, RECIPE, DLLM_NTS, NULL, &r, &err));
    NEEDED(dllm_trainer_new(model, NULL, NULL, RECIPE, DLLM_NTS, NULL, &r, &err));
    NEEDED(dllm_trainer_new(model, data, NULL, NULL, DLLM_NTS, NULL, &r, &err));
    NEEDED(dllm_trainer_new(model, data, NULL, RECIPE, DLLM_NTS, NULL, NULL, &err));
    NEEDED(dllm_trainer_step(NULL, NULL, &err));
    NEEDED(dllm_trainer_run(NULL, NULL, NULL, NULL, &err));
    NEEDED(dllm_trainer_save(NULL, dir, &err));
    NEEDED(dllm_trainer_save(trainer, NULL, &err));
    NEEDED(dllm_trainer_adapter(NULL, &a, &err));
    NEEDED(dllm_trainer_adapter(trainer, NULL, &err));
    NEEDED(dllm_trainer_finish(NULL, dir, NULL, &err));
    NEEDED(dllm_trainer_finish(trainer, NULL, NULL, &err));
    NEEDED(dllm_import_gguf(NULL, dir, 0, NULL, NULL, NULL, &err));
    NEEDED(dllm_import_gguf("x", NULL, 0, NULL, NULL, NULL, &err));
    NEEDED(dllm_merge(NULL, dir, dir, NULL, NULL, NULL, &err));
    NEEDED(dllm_merge(model_dir, NULL, dir, NULL, NULL, NULL, &err));
    NEEDED(dllm_merge(model_dir, dir, NULL, NULL, NULL, NULL, &err));
    NEEDED(dllm_quantize(NULL, dir, 8, NULL, NULL, NULL, &err));
    NEEDED(dllm_quantize(model_dir, NULL, 8, NULL, NULL, NULL, &err));
    CHECK(dllm_model_vocab_size(NULL) == 0 && dllm_adapter_n_parameters(NULL) == 0 && dllm_classifier_n_labels(NULL) == 0);
    CHECK(dllm_classifier_label(NULL, 0) == NULL && dllm_classifier_temperature(NULL) != dllm_classifier_temperature(NULL));
    CHECK(dllm_conversation_n_turns(NULL) == 0 && dllm_conversation_n_tokens(NULL) == 0);
    CHECK(dllm_dataset_n_dialogues(NULL) == 0 && dllm_dataset_n_turns(NULL, 0) == 0 && dllm_cancel_is_set(NULL) == 0);
    dllm_cancel_set(NULL);
    dllm_cancel_clear(NULL);
    CHECK(dllm_error_status(NULL) == 0 && dllm_error_message(NULL)[0] == 0);
    CHECK(dllm_string_len(NULL) == 0 && dllm_string_data(NULL)[0] == 0 && dllm_layout()[0] == 'd');
    CHECK(!m && !c && !t && !d && !r && !a && !text);
    dllm_adapter_free(adapter);
    dllm_trainer_free(trainer);
    dllm_dataset_free(data);
    dllm_conversation_free(talk);
    dllm_classifier_free(classifier);
    dllm_model_free(model);
}

static void options_of_older_and_newer_headers_are_understood(void) {
    struct {
        uint32_t struct_size, threads;
    } older = { 8, 1 };
    struct {
        dllm_runtime_options known;
        uint64_t tail;
    } newer;
    memset(&newer, 0, sizeof newer);
    newer.known.struct_size = sizeof newer;
    dllm_runtime *runtime = NULL;
    OK(dllm_runtime_new((const dllm_runtime_options *)(const void *)&older, &runtime, &err));
    dllm_runtime_free(runtime);
    OK(dllm_runtime_new(&newer.known, &runtime, &err));
    dllm_runtime_free(runtime);
    newer.tail = 1;
    FAILS(DLLM_STATUS_UNSUPPORTED, "older than your header", dllm_runtime_new(&newer.known, &runtime, &err));
    newer.known.struct_size = 2;
    FAILS(DLLM_STATUS_INVALID_ARGUMENT, "sizeof(dllm_runtime_options)", dllm_runtime_new(&newer.known, &runtime, &err));
}

static void log_line(void *user, const char *line) { snprintf((char *)user, 256, "%s", line); }

static void the_log_hears_where_a_model_computes(void) {
    char line[256] = "";
    dllm_runtime_options options;
    memset(&options, 0, sizeof options);
    options.struct_size = sizeof options;
    options.device = DLLM_DEVICE_CPU;
    options.log = log_line;
    options.log_user = line;
    dllm_runtime *runtime = NULL;
    OK(dllm_runtime_new(&options, &runtime, &err));
    dllm_model *model = open_on(runtime);
    CHECK(strstr(line, "cpu") != NULL);
    dllm_model_free(model);
    dllm_runtime_free(runtime);
}

static double set_at, bound = 0.1; /* seconds, as the header says */

static void *set_soon(void *cancel) {
    struct timespec wait = { 0, 20000000 };
    nanosleep(&wait, NULL);
    set_at = computed();
    dllm_cancel_set((const dllm_cancel *)cancel);
    return NULL;
}

static void a_cancel_stops_training_and_labelling_soon(void) {
    dllm_cancel *cancel = NULL;
    OK(dllm_cancel_new(&cancel, &err));
    dllm_model *model = open_model();
    dllm_trainer_options options;
    memset(&options, 0, sizeof options);
    options.struct_size = sizeof options;
    options.cancel = cancel;
    dllm_trainer *trainer = trainer_with(model, "[train]\nepochs = 100000\n[eval]\ncheckpoint_steps = 0\n", &options);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, set_soon, cancel) == 0);
    FAILS(DLLM_STATUS_CANCELLED, "stopped", dllm_trainer_run(trainer, NULL, NULL, NULL, &err));
    double training = computed() - set_at;
    pthread_join(thread, NULL);
    CHECK(dllm_cancel_is_set(cancel) == 1);
    FAILS(DLLM_STATUS_CANCELLED, "stopped", dllm_trainer_step(trainer, NULL, &err));
    dllm_cancel_clear(cancel);
    OK(dllm_trainer_step(trainer, NULL, &err));
    dllm_classifier *classifier = classifier_of(model);
    enum { TURNS = 1000 };
    static dllm_turn turns[TURNS];
    static float p[TURNS * LABELS];
    for (int i = 0; i < TURNS; i++) turns[i] = turn_of("Ann", "We won, and then we won again, and nobody knew why.");
    CHECK(pthread_create(&thread, NULL, set_soon, cancel) == 0);
    FAILS(DLLM_STATUS_CANCELLED, "stopped",
          dllm_classifier_predict(classifier, turns, TURNS, cancel, p, TURNS * LABELS, &err));
    double labelling = computed() - set_at;
    pthread_join(thread, NULL);
    printf("computed %.1f ms of training, %.1f ms of labelling after a cancel\n", 1e3 * training, 1e3 * labelling);
    CHECK(training < bound && labelling < bound);
    dllm_cancel_free(cancel); /* the trainer still has it */
    dllm_trainer_free(trainer);
    dllm_classifier_free(classifier);
    dllm_model_free(model);
}

/* A file of `head` and so many times `line` that nobody reads it in the time a cancel may take. */
static void write_long(const char *path, const char *head, const char *line) {
    static char lines[1 << 20];
    size_t len = 0;
    for (lines[0] = 0; len + strlen(line) < sizeof lines; len += strlen(line)) memcpy(lines + len, line, strlen(line) + 1);
    FILE *file = fopen(path, "w");
    CHECK(file && fputs(head, file) >= 0);
    for (int i = 0; i < 64; i++) CHECK(fwrite(lines, 1, len, file) == len);
    CHECK(fclose(file) == 0);
}

static void a_cancel_stops_the_reading_of_data_soon(void) {
    static const char *const kinds[] = { "jsonl", "log", "meld" };
    static const char *const heads[] = { "", "", "Utterance,Speaker,Emotion,Dialogue_ID,Utterance_ID\n" };
    static const char *const lines[] = { "{\"turns\":[{\"text\":\"We won!\"}]}\n", "Ann: We won!\n", "We won!,Ann,joy,0,0\n\n" };
    dllm_cancel *cancel = NULL;
    OK(dllm_cancel_new(&cancel, &err));
    for (int i = 0; i < 3; i++) {
        char spec[512];
        const char *path = in_work("train_sent_emo.csv");
        write_long(path, heads[i], lines[i]);
        snprintf(spec, sizeof spec, "%s:%s", kinds[i], i == 2 ? work_dir : path);
        dllm_dataset *data = NULL;
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, set_soon, cancel) == 0);
        FAILS(DLLM_STATUS_CANCELLED, "stopped", dllm_dataset_open(spec, "train", NULL, 0, cancel, &data, &err));
        double reading = computed() - set_at;
        pthread_join(thread, NULL);
        printf("computed %.1f ms of reading %s after a cancel\n", 1e3 * reading, kinds[i]);
        CHECK(reading < bound);
        FAILS(DLLM_STATUS_CANCELLED, "stopped", dllm_dataset_parse(lines[0], DLLM_NTS, NULL, 0, cancel, &data, &err));
        dllm_cancel_clear(cancel);
        OK(dllm_dataset_parse(lines[0], DLLM_NTS, NULL, 0, cancel, &data, &err));
        dllm_dataset_free(data);
        CHECK(remove(path) == 0);
    }
    dllm_cancel_free(cancel);
}

struct speaker {
    const dllm_classifier *classifier;
    int number;
    float p[3][LABELS];
};

static void *speak(void *user) {
    struct speaker *speaker = (struct speaker *)user;
    dllm_conversation *talk = NULL;
    if (dllm_conversation_new(speaker->classifier, NULL, &talk, NULL)) return NULL;
    for (int i = 0; i < 3; i++) {
        char text[64];
        snprintf(text, sizeof text, "This is what %d says, time %d.", speaker->number, i);
        dllm_turn turn = turn_of("Ann", text);
        if (dllm_conversation_add_turn(talk, &turn, NULL, NULL)) return NULL;
        if (dllm_conversation_ask(talk, speaker->p[i], LABELS, NULL)) return NULL;
    }
    dllm_conversation_free(talk);
    return speaker;
}

static void eight_threads_label_as_one_does(void) {
    dllm_model *model = open_model();
    dllm_classifier *classifier = classifier_of(model);
    static struct speaker alone[8], together[8];
    pthread_t threads[8];
    for (int i = 0; i < 8; i++) {
        alone[i].classifier = together[i].classifier = classifier;
        alone[i].number = together[i].number = i;
        CHECK(speak(&alone[i]) != NULL);
    }
    for (int i = 0; i < 8; i++) CHECK(pthread_create(&threads[i], NULL, speak, &together[i]) == 0);
    for (int i = 0; i < 8; i++) {
        void *result = NULL;
        pthread_join(threads[i], &result);
        CHECK(result != NULL && memcmp(alone[i].p, together[i].p, sizeof alone[i].p) == 0);
    }
    dllm_classifier_free(classifier);
    dllm_model_free(model);
}

struct second {
    dllm_trainer *trainer;
    dllm_status status;
};

static void *call_as_second(void *user) {
    struct second *second = (struct second *)user;
    second->status = dllm_trainer_step(second->trainer, NULL, NULL);
    return NULL;
}

static int32_t call_from_another_thread(void *user, const dllm_train_report *report) {
    pthread_t thread;
    (void)report;
    CHECK(pthread_create(&thread, NULL, call_as_second, user) == 0);
    pthread_join(thread, NULL);
    return 1;
}

static void a_second_thread_on_a_busy_handle_is_told_so(void) {
    dllm_model *model = open_model();
    struct second second;
    second.trainer = trainer_with(model, RECIPE, NULL);
    second.status = DLLM_STATUS_OK;
    FAILS(DLLM_STATUS_CANCELLED, "callback", dllm_trainer_run(second.trainer, NULL, call_from_another_thread, &second, &err));
    CHECK(second.status == DLLM_STATUS_BUSY);
    dllm_trainer_free(second.trainer);
    dllm_model_free(model);
}

static int32_t free_the_trainer(void *user, const dllm_train_report *report) {
    (void)report;
    dllm_trainer_free((dllm_trainer *)user);
    return 1;
}

static void a_handle_may_be_freed_by_its_own_callback(void) {
    dllm_model *model = open_model();
    dllm_trainer *trainer = trainer_with(model, RECIPE, NULL);
    FAILS(DLLM_STATUS_CANCELLED, "callback", dllm_trainer_run(trainer, NULL, free_the_trainer, trainer, &err));
    dllm_model_free(model);
}

/* A child has the locks that its parent's threads hold when it is made; those of gcc 12's address sanitizer are never free in it. */
static void until_other_threads_sleep(void) {
    struct timespec wait = { 0, 1000000 };
    for (int awake = 1; awake;) {
        nanosleep(&wait, NULL);
        DIR *tasks = opendir("/proc/self/task");
        CHECK(tasks != NULL);
        awake = 0;
        for (struct dirent *task; (task = readdir(tasks)) != NULL;) {
            long id = atol(task->d_name); /* 0 for the folder's own names */
            char path[64], state = 'S';
            snprintf(path, sizeof path, "/proc/self/task/%ld/stat", id);
            FILE *file = id == 0 || id == getpid() ? NULL : fopen(path, "r");
            if (file == NULL) continue; /* this thread, or one that has ended */
            if (fscanf(file, "%*d (%*[^)]) %c", &state) == 1 && state != 'S') awake++;
            fclose(file);
        }
        closedir(tasks);
    }
}

static void a_forked_child_is_told_and_may_begin_anew(void) {
    dllm_model *model = open_model();
    dllm_classifier *classifier = classifier_of(model);
    float p[LABELS];
    dllm_turn turn = turn_of("Ann", "We won!");
    OK(dllm_classifier_predict(classifier, &turn, 1, NULL, p, LABELS, &err));
    until_other_threads_sleep();
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        alarm(300); /* a child that hangs is a failure, not a wait */
        dllm_classifier *none = NULL;
        FAILS(DLLM_STATUS_INVALID_ARGUMENT, "before a fork", dllm_classifier_new(model, NULL, NULL, &none, &err));
        dllm_classifier_free(classifier);
        dllm_model_free(model);
        dllm_model *own = open_model();
        dllm_classifier *mine = classifier_of(own);
        OK(dllm_classifier_predict(mine, &turn, 1, NULL, p, LABELS, &err));
        alarm(0);
        /* not _exit: a leak checker would count what the parent's threads held */
        execl("/bin/sh", "sh", "-c", "exit 0", (char *)NULL);
        _exit(1);
    }
    int status = 1;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    dllm_classifier_free(classifier);
    dllm_model_free(model);
}

/* Pages of addresses, and of memory. */
static void pages_of(long *all, long *resident) {
    FILE *file = fopen("/proc/self/statm", "r");
    CHECK(file != NULL && fscanf(file, "%ld %ld", all, resident) == 2);
    fclose(file);
}

static long resident(void) {
    long all = 0, resident = 0;
    pages_of(&all, &resident);
    return resident;
}

/* A step of 2,000 dialogues at once is refused, one of one is made. */
static void memory_that_is_refused_is_a_status_and_what_needs_less_goes_on(void) {
    enum { LINES = 2000, LEN = 80 };
    static char many[LINES * LEN];
    int len = 0;
    for (int i = 0; i < LINES; i++) {
        static const char line[] = "{\"turns\":[{\"text\":\"%d came and we won.\",\"emotion\":\"%s\"}]}\n";
        len += snprintf(many + len, LEN, line, i, i % 2 ? "joy" : "fear");
    }
    dllm_dataset *data = NULL;
    OK(dllm_dataset_parse(many, (size_t)len, NULL, 0, NULL, &data, &err));
    dllm_model *model = open_model();
    static const char recipe[] = "[train]\nbatch = 4000\nmicro_tokens = 1000000\nactivation_mib = 100000\n";
    dllm_trainer *large = NULL, *small = trainer_with(model, RECIPE, NULL);
    OK(dllm_trainer_new(model, data, NULL, recipe, DLLM_NTS, NULL, &large, &err));
    long pages = 0, in_use = 0;
    pages_of(&pages, &in_use);
    struct rlimit before, limit;
    CHECK(getrlimit(RLIMIT_AS, &before) == 0);
    limit = before;
    limit.rlim_cur = (rlim_t)(pages * sysconf(_SC_PAGESIZE)) + (64 << 20);
    CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
    FAILS(DLLM_STATUS_OUT_OF_MEMORY, "bytes for a tensor", dllm_trainer_step(large, NULL, &err));
    OK(dllm_trainer_step(small, NULL, &err));
    CHECK(setrlimit(RLIMIT_AS, &before) == 0);
    dllm_trainer_free(large);
    dllm_trainer_free(small);
    dllm_model_free(model);
    dllm_dataset_free(data);
}

static void opening_a_thousand_times_leaves_memory_flat(void) {
    long before = 0;
    for (int i = 0; i < 1000; i++) {
        dllm_model_free(open_model());
        if (i == 100) before = resident();
    }
    long after = resident();
    printf("%ld pages after 100, %ld after 1000\n", before, after);
    CHECK(after <= before + before / 100);
}

static void those_that_multiply(void) {
    RUN(a_turns_probabilities_are_the_same_alone_and_in_a_conversation);
    RUN(generated_text_is_streamed_and_ends_where_it_is_told);
    RUN(a_first_step_has_the_same_loss_in_every_precision);
}

static void every_fact(void) {
    RUN(a_child_forked_before_the_first_call_is_like_its_parent);
    RUN(the_version_of_header_and_library_is_one);
    those_that_multiply();
    RUN(what_is_seen_is_asked_once_and_kept_with_the_turn);
    RUN(handles_may_be_freed_in_any_order);
    RUN(tokens_are_texts_and_back);
    RUN(training_by_steps_is_the_whole_run_and_resumes_to_the_same_bits);
    RUN(a_callback_stops_a_run_which_is_saved_and_goes_on);
    RUN(data_are_counted_judged_and_compared);
    RUN(what_made_a_label_is_told_by_turns_words_and_gradients);
    RUN(a_trained_folder_is_judged_calibrated_saved_merged_and_quantised);
    RUN(what_cannot_be_is_a_sentence);
    RUN(null_for_every_pointer_that_is_needed_is_an_invalid_argument);
    RUN(options_of_older_and_newer_headers_are_understood);
    RUN(the_log_hears_where_a_model_computes);
    RUN(a_cancel_stops_training_and_labelling_soon);
    RUN(a_cancel_stops_the_reading_of_data_soon);
    RUN(eight_threads_label_as_one_does);
    RUN(a_second_thread_on_a_busy_handle_is_told_so);
    RUN(a_handle_may_be_freed_by_its_own_callback);
    RUN(a_forked_child_is_told_and_may_begin_anew);
}

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    model_dir = argv[1];
    work_dir = argv[2];
    const char *kind = argc > 3 ? argv[3] : "";
    if (strcmp(kind, "products") == 0) {
        those_that_multiply();
        return 0;
    }
    if (strcmp(kind, "slow") == 0) bound *= 50;
    every_fact();
    if (strcmp(kind, "flat") == 0) {
        RUN(memory_that_is_refused_is_a_status_and_what_needs_less_goes_on);
        RUN(opening_a_thousand_times_leaves_memory_flat);
    }
    return 0;
}
