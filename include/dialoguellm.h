/* dialoguellm: emotion in conversation. A LLaMA that fits in your process, fine-tunes with LoRA, and names the emotion of
 * every turn of a dialogue as it is said.
 *
 *     dllm_model *model = NULL; dllm_classifier *classifier = NULL; dllm_conversation *talk = NULL; dllm_error *err = NULL;
 *     if (dllm_model_open(NULL, "model", NULL, NULL, &model, &err) || dllm_classifier_open(model, "adapter", &classifier, &err) ||
 *         dllm_conversation_new(classifier, NULL, &talk, &err)) { fprintf(stderr, "%s\n", dllm_error_message(err)); return 1; }
 *     float p[7];
 *     dllm_turn turn = { DLLM_STR("Ann"), DLLM_STR("We won! What a lovely day!"), DLLM_NO_STR, DLLM_NO_STR };
 *     if (dllm_conversation_add_turn(talk, &turn, NULL, &err) || dllm_conversation_ask(talk, p, 7, &err)) return 1;
 *     for (size_t i = 0; i < dllm_classifier_n_labels(classifier); i++)
 *         printf("%s %.2f\n", dllm_classifier_label(classifier, i), p[i]);
 *     dllm_conversation_free(talk); dllm_classifier_free(classifier); dllm_model_free(model); dllm_error_free(err);
 *
 * Link with -ldialoguellm, or `pkg-config --cflags --libs dialoguellm`. This file is the specification: what it does not say is
 * not promised. ABI.md says what may change from version to version.
 *
 * Status and errors   A function that can fail returns a dllm_status, 0 for OK, and takes a `dllm_error **` last, which may be
 *                     NULL. It is set to NULL, or on failure to an error that the caller frees. Outputs are NULL or 0 after a
 *                     failure, so that clean-up code can free all of them.
 * Handles             What arrives through a `T **` is the caller's, and is freed once by its own function; NULL is fine. Handles
 *                     keep alive what they were made from: free them in any order, also while a call has them.
 * Options, reports    Structs that begin with `struct_size` grow. Set it to sizeof the struct and leave the rest zero for
 *                     defaults. What a newer header has and this library does not know is refused where it is not zero.
 *                     Structs without it (dllm_str, dllm_turn) are frozen. All may be NULL where that is said.
 * Text                UTF-8, as bytes and length; DLLM_NTS as the length means up to the zero byte. Paths end in a zero and go to
 *                     the system as they are. Text that is handed out is a dllm_string, or lives as long as the handle it is of.
 * Threads             Any function may be called from any thread. Runtime, model, adapter, classifier and dataset are for any
 *                     number of calls at once; a conversation or a trainer takes one, and another gets BUSY. Results do not depend
 *                     on the number of threads.
 * Callbacks           Are called on the thread that called the library, never while a lock is held. They must not throw or longjmp.
 *                     A call into the handle that calls back gets BUSY.
 * Cancel              A dllm_cancel can be set from any thread and from a signal handler. Calls that have it look once a layer,
 *                     line or row: on a CPU within 100 ms for a model of 135 million parameters. They undo what they did and
 *                     return CANCELLED.
 * Fork                After a fork the child's calls with handles of the parent return INVALID_ARGUMENT and never hang; it makes
 *                     handles of its own.
 * Output              The library prints nothing, installs no signal handler, and has no settings of the whole process. Do not
 *                     dlclose it.
 */


#ifndef DIALOGUELLM_H
#define DIALOGUELLM_H

#include <stddef.h>
#include <stdint.h>
#define DLLM_VERSION_MAJOR 0
#define DLLM_VERSION_MINOR 1
#define DLLM_VERSION_PATCH 0
#define DLLM_VERSION_NUMBER 100

/* The length of a text that ends in a zero byte. */
#define DLLM_NTS ((size_t)-1)
/* Every dialogue: see dllm_dataset_n_turns(). */
#define DLLM_ALL ((size_t)-1)
/* A dllm_str in an initialiser, of a text that ends in a zero byte; and none. */
#define DLLM_STR(text) { (text), DLLM_NTS }
#define DLLM_NO_STR { NULL, 0 }


/* The version of the binary interface: structs, functions and numbers of one version go together. */
#define DLLM_ABI_VERSION 1

/* Done. */
#define DLLM_STATUS_OK 0

/* An argument, option or recipe value is out of its range. */
#define DLLM_STATUS_INVALID_ARGUMENT 1

/* A file, folder, tensor, label or adapter that was named does not exist. */
#define DLLM_STATUS_NOT_FOUND 2

/* The system refused to read or write: permission, full disk, broken device. */
#define DLLM_STATUS_IO 3

/* A file's content contradicts itself, its format, or the file it belongs to. */
#define DLLM_STATUS_BAD_FILE 4

/* Well-formed, but not something this library does. */
#define DLLM_STATUS_UNSUPPORTED 5

/* An allocation sized by input was refused. */
#define DLLM_STATUS_OUT_OF_MEMORY 6

/* More tokens than the model's context holds. */
#define DLLM_STATUS_CONTEXT_FULL 7

/* The handle is in use by another call, or by the one whose callback this is; nothing has changed. */
#define DLLM_STATUS_BUSY 8

/* Stopped as asked, by a cancel handle or a callback. */
#define DLLM_STATUS_CANCELLED 9

/* The GPU is gone; a new runtime is needed. */
#define DLLM_STATUS_DEVICE_LOST 10

/* A loss, gradient or weight is NaN or infinite. */
#define DLLM_STATUS_NUMERIC 11

/* An earlier INTERNAL left this handle unusable: free it. */
#define DLLM_STATUS_POISONED 12

/* A broken promise of the library's own: please report its message. */
#define DLLM_STATUS_INTERNAL 13

/* On the GPU where there is one that can do what is asked, else on the CPU. */
#define DLLM_DEVICE_AUTO 0

/* On the CPU. */
#define DLLM_DEVICE_CPU 1

/* On the first NVIDIA GPU; UNSUPPORTED, with the reason, where there is none. */
#define DLLM_DEVICE_CUDA 2

/* Operands of matrix products in bf16, sums in f32. */
#define DLLM_PRECISION_BF16 0

/* Everything in f32; on the CPU only. */
#define DLLM_PRECISION_F32 1

/*
 As DLLM_PRECISION_BF16, of weights that are whole numbers of 8 bits with a scale for each output: half the memory. They
 are made when the model is opened, unless its folder has them. Where x86-64 multiplies such
 (AVX2 and above), inputs of products are rounded to whole numbers too: to 14 bits of a row's largest or, with VNNI, to steps
 of a 32nd of a row's mean magnitude; so are gradients that are propagated through them, to 14 bits or to steps of a 16th.
 */
#define DLLM_PRECISION_INT8 2

/*
 The same with linear maps of 4 bits and a scale for every 32 inputs, whose inputs stay bf16 with AVX-512 BF16 and else have 14
 bits; embedding and head have 8 bits.
 */
#define DLLM_PRECISION_INT4 3

/* dllm_classifier_why() by leaving out every earlier turn. */
#define DLLM_WHY_TURNS 0

/* dllm_classifier_why() by leaving out every earlier turn, then every word. */
#define DLLM_WHY_WORDS 1

/* dllm_classifier_why() by integrated gradients (arXiv 1703.01365), which share the whole out among all words. */
#define DLLM_WHY_GRADIENTS 2

/* The report is of a step of the optimiser. */
#define DLLM_TRAIN_STEP 0

/* The report is of a dev score. */
#define DLLM_TRAIN_DEV 1

/* Quantised tensors become bf16. */
#define DLLM_DTYPE_BF16 0

/* Quantised tensors become f16. */
#define DLLM_DTYPE_F16 1

/* Quantised tensors become f32. */
#define DLLM_DTYPE_F32 2

/* The LoRA tensors of one model. It never changes, and any number of calls may use it at once. */
typedef struct dllm_adapter dllm_adapter;

/*
 A request to stop that any thread may make, and a signal handler. Calls that were given it look at it between layers
 of a model, matrices that are opened, rows that are written and lines of data, and end with CANCELLED.
 */
typedef struct dllm_cancel dllm_cancel;

/*
 What names emotions: labels, template, adapter and calibration. It never changes, and any number of calls may use it at
 once.
 */
typedef struct dllm_classifier dllm_classifier;

/* One dialogue as it happens, with what was said in the KV cache. One call at a time; others get BUSY and change nothing. */
typedef struct dllm_conversation dllm_conversation;

/* Dialogues, or prompts with completions. It never changes, and any number of calls may use it at once. */
typedef struct dllm_dataset dllm_dataset;

/* What went wrong, in a sentence: what, where, both values, what to do. Dialogue text is never in it. */
typedef struct dllm_error dllm_error;

/* Weights and tokenizer of a LLaMA. It never changes after it is opened, and any number of calls may use it at once. */
typedef struct dllm_model dllm_model;

/*
 The threads that compute, the device, and who hears the log. Shared by the models opened on it, which keep it alive; any
 number of calls work on it at once, and its threads serve them in turn.
 */
typedef struct dllm_runtime dllm_runtime;

/* Text that is handed out, UTF-8. */
typedef struct dllm_string dllm_string;

/* An adapter that is being trained. One call at a time; others get BUSY and change nothing. */
typedef struct dllm_trainer dllm_trainer;

/* What a function answers: 0, or the class of a failure. Numbers are never used again; new ones may come. */
typedef int32_t dllm_status;

/*
 Hears a line of the log, which ends in a zero and has no line end; valid during the call, on the thread that called
 the library.
 */
typedef void (*dllm_log_fn)(void *user,
                            const char *line);

/* How a runtime computes; zero is every field's default. */
typedef struct dllm_runtime_options {
    /* sizeof(dllm_runtime_options). */
    uint32_t struct_size;
    /* Threads, the caller's included; 0 for one per core, 1 for the caller's only. */
    uint32_t threads;
    /* DLLM_DEVICE_AUTO, _CPU or _CUDA. */
    uint32_t device;
    /* 0. */
    uint32_t reserved;
    /* Hears the log; NULL for nobody. */
    dllm_log_fn log;
    /* Handed to `log`. */
    void *log_user;
} dllm_runtime_options;

/* How a model is opened; zero is every field's default. */
typedef struct dllm_model_options {
    /* sizeof(dllm_model_options). */
    uint32_t struct_size;
    /* DLLM_PRECISION_BF16, _F32, _INT8 or _INT4. */
    uint32_t precision;
    /* 1 reads the weights into memory instead of mapping their file, for files that may change while they are open. */
    uint32_t no_map;
    /* 0. */
    uint32_t reserved;
} dllm_model_options;

/* What a model needs, in bytes. */
typedef struct dllm_memory_report {
    /* sizeof(dllm_memory_report), set by the caller. */
    uint32_t struct_size;
    /* 0. */
    uint32_t reserved;
    /*
     The weights: mapped from their file on the CPU (memory of their own where they are whole numbers), a copy in the
     GPU's memory on a GPU.
     */
    uint64_t weights;
    /* Keys and values of one token of a conversation. */
    uint64_t cache_per_token;
    /* The most tokens that a conversation can have; UINT64_MAX where nothing bounds them. */
    uint64_t context;
} dllm_memory_report;

/* Text of the caller's. */
typedef struct dllm_str {
    /* UTF-8; NULL is no text. */
    const char *data;
    /* Bytes; DLLM_NTS where the text ends in a zero. */
    uint64_t len;
} dllm_str;

/* How a text is continued; zero is every field's default. */
typedef struct dllm_generate_options {
    /* sizeof(dllm_generate_options). */
    uint32_t struct_size;
    /* Tokens at most; 0 for 256. */
    uint32_t max_tokens;
    /* Divides the logits; 0 takes the likeliest token every time. */
    float temperature;
    /* Draw from the likeliest tokens that together reach this probability; 0 for all. */
    float top_p;
    /* Draw from this many of the likeliest tokens; 0 for all. */
    uint32_t top_k;
    /* Above 1, tokens that were there before become less likely; 0 for 1. */
    float repetition_penalty;
    /* The same seed draws the same text. */
    uint64_t seed;
    /* End before the first of these texts. */
    const struct dllm_str *stops;
    /* How many. */
    uint64_t n_stops;
    /* 1 writes the prompt as a message in the model's own chat format, and lets it answer. */
    uint32_t chat;
    /*
     Above 1, keep this many beams and give the likeliest text as a whole, at once, instead of drawing token by token;
     temperature, top_k and seed must then be 0, top_p 0 or 1.
     */
    uint32_t beams;
    /* In that format, a message of the system's before it; NULL for none. */
    const char *system;
} dllm_generate_options;

/* Hears text as it comes, whole code points, `len` bytes, valid during the call; anything but 0 ends the text there. */
typedef int32_t (*dllm_text_fn)(void *user,
                                const char *text,
                                size_t len);

/* What a classifier asks, where no adapter's own file says it; zero is every field's default. */
typedef struct dllm_classifier_options {
    /* sizeof(dllm_classifier_options). */
    uint32_t struct_size;
    /* How many labels. */
    uint32_t n_labels;
    /* Their names, in the order of the probabilities; NULL for MELD's seven. */
    const struct dllm_str *labels;
    /* The words that the model reads and writes for them; NULL for the names. */
    const struct dllm_str *words;
    /* "dialogue", "dialoguellm", or a template as TOML text; NULL for "dialogue". */
    const char *template_text;
    /* Previous turns shown: 1 for none, 2 for one, and so on; 0 as the template says, UINT64_MAX for all. */
    uint64_t window;
} dllm_classifier_options;

/* One turn of a dialogue. Frozen: it will not grow. */
typedef struct dllm_turn {
    /* Who says it. */
    struct dllm_str speaker;
    /* What is said. */
    struct dllm_str text;
    /* What is seen, where a template shows it; may be no text. */
    struct dllm_str visual;
    /* The label, where it is known; may be no text. */
    struct dllm_str emotion;
} dllm_turn;

/* How a conversation is held; zero is every field's default. */
typedef struct dllm_conversation_options {
    /* sizeof(dllm_conversation_options). */
    uint32_t struct_size;
    /* 0. */
    uint32_t reserved;
    /* Tokens it may hold; 0 for the model's context. */
    uint64_t context;
    /* Stops its calls; may be freed while the conversation lives. NULL for none. */
    const struct dllm_cancel *cancel;
} dllm_conversation_options;

/* What listening to a turn took. */
typedef struct dllm_turn_report {
    /* sizeof(dllm_turn_report), set by the caller. */
    uint32_t struct_size;
    /* Oldest turns that were dropped because the context was full. */
    uint32_t dropped;
    /* Tokens computed: the turn's, or all that remain where turns were dropped. */
    uint64_t computed;
} dllm_turn_report;

/*
 Describes what is seen in `clip` while `turn` is said: sets `description`, whose bytes are the caller's and stay until
 the call that asked returns, or leaves it where there is nothing to tell. Anything but 0 ends that call as CANCELLED.
 */
typedef int32_t (*dllm_describe_fn)(void *user,
                                    const struct dllm_turn *turn,
                                    const char *clip,
                                    struct dllm_str *description);

/* How a run begins; zero is every field's default. */
typedef struct dllm_trainer_options {
    /* sizeof(dllm_trainer_options). */
    uint32_t struct_size;
    /* 0. */
    uint32_t reserved;
    /* Goes on with the run whose checkpoint this folder is; NULL begins a new one. */
    const char *resume;
    /* Begins with this adapter; NULL with a new one. */
    const char *init_adapter;
    /* Gets a line of JSON per step and per dev score; NULL for no such file. */
    const char *metrics;
    /* The base model's name for PEFT's adapter_config.json; NULL for none. */
    const char *base_name;
    /* Stops its calls; may be freed while the trainer lives. NULL for none. */
    const struct dllm_cancel *cancel;
} dllm_trainer_options;

/* What was done. */
typedef struct dllm_train_report {
    /* sizeof(dllm_train_report), set by the caller. */
    uint32_t struct_size;
    /* DLLM_TRAIN_STEP or DLLM_TRAIN_DEV. */
    uint32_t kind;
    /* Steps made so far. */
    uint64_t step;
    /* Steps of the whole run. */
    uint64_t steps;
    /* The epoch, counted from 1. */
    uint64_t epoch;
    /* Of a step: the loss before it. */
    double loss;
    /* Of a step: the gradient's norm before clipping. */
    double grad_norm;
    /* Of a step: the learning rate. */
    double learning_rate;
    /* Of a step: tokens computed. */
    uint64_t tokens;
    /* Of a step: tokens of the same prompts without sharing. */
    uint64_t linear_tokens;
    /* Of a step: the time it took. */
    double seconds;
    /* Of a dev score: the score, larger is better. */
    double dev_score;
    /* Of a dev score: 1 where it is the best so far. */
    uint32_t is_best;
    /* Of a step: 1 where loss or gradient was not finite, so that nothing changed. */
    uint32_t skipped;
    /* 1 where nothing is left but dllm_trainer_finish(). */
    uint32_t done;
    /* 0. */
    uint32_t reserved;
} dllm_train_report;

/* Hears of every step and dev score, on the thread that called the library; anything but 0 stops the call. */
typedef int32_t (*dllm_train_fn)(void *user,
                                 const struct dllm_train_report *report);

/* Hears how many of how many tensors are done, on the thread that called the library; anything but 0 stops the call. */
typedef int32_t (*dllm_progress_fn)(void *user,
                                    uint64_t done,
                                    uint64_t all);

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/*
 ---- Version ----

 The library's version as text, such as "0.1.0".

 Ownership: the library's; valid for the life of the process.
 Since:     0.1
 */
const char *dllm_version(void);

/*
 The library's version as a number: 10000 major + 100 minor + patch; equals DLLM_VERSION_NUMBER where header and library
 are of one version.

 Since: 0.1
 */
uint32_t dllm_version_number(void);

/*
 The version of the binary interface; a program that loads the library by itself compares it with DLLM_ABI_VERSION.

 Since: 0.1
 */
uint32_t dllm_abi_version(void);

/*
 Where the fields of every struct lie, as include/dialoguellm.layout says it: a line "struct size", then a line
 "struct.field offset size" for each. A binding compares it with its own structs when it is loaded.

 Ownership: the library's; valid for the life of the process.
 Since:     0.1
 */
const char *dllm_layout(void);

/*
 ---- Statuses, errors, strings ----

 The name of a status, such as "BUSY"; "UNKNOWN" for a number this version does not have.

 Ownership: the library's; valid for the life of the process.
 Since:     0.1
 */
const char *dllm_status_name(dllm_status status);

/*
 An error's status; OK for NULL.

 Since: 0.1
 */
dllm_status dllm_error_status(const struct dllm_error *error);

/*
 An error's sentence, ending in a zero; an empty one for NULL.

 Ownership: the error's.
 Since:     0.1
 */
const char *dllm_error_message(const struct dllm_error *error);

/*
 Frees an error; NULL is fine.

 Since: 0.1
 */
void dllm_error_free(struct dllm_error *error);

/*
 A string's bytes, with a zero behind them; an empty text for NULL.

 Ownership: the string's.
 Since:     0.1
 */
const char *dllm_string_data(const struct dllm_string *string);

/*
 A string's length in bytes, without the zero; 0 for NULL.

 Since: 0.1
 */
size_t dllm_string_len(const struct dllm_string *string);

/*
 Frees a string; NULL is fine.

 Since: 0.1
 */
void dllm_string_free(struct dllm_string *string);

/*
 ---- Cancel: a request to stop ----

 A request that is not made yet.

 Ownership: the caller's; free it with dllm_cancel_free(), also while a call still has it.
 Since:     0.1
 */
dllm_status dllm_cancel_new(struct dllm_cancel **cancel,
                            struct dllm_error **err);

/*
 Asks every call that has it to stop; they end with CANCELLED until dllm_cancel_clear(). NULL is fine.

 Threads: any, at any time, and from a signal handler.
 Since:   0.1
 */
void dllm_cancel_set(const struct dllm_cancel *cancel);

/*
 Takes the request back, so that calls run again. NULL is fine.

 Threads: any, at any time.
 Since:   0.1
 */
void dllm_cancel_clear(const struct dllm_cancel *cancel);

/*
 1 where a stop was asked for, else 0; 0 for NULL.

 Threads: any, at any time.
 Since:   0.1
 */
int32_t dllm_cancel_is_set(const struct dllm_cancel *cancel);

/*
 Frees a cancel handle; NULL is fine.

 Since: 0.1
 */
void dllm_cancel_free(struct dllm_cancel *cancel);

/*
 ---- Runtime: threads and device ----

 A runtime; `options` may be NULL.

 Ownership: the caller's; models keep what they need of it.
 Errors:    IO where the system gives no threads.
 Since:     0.1
 */
dllm_status dllm_runtime_new(const struct dllm_runtime_options *options,
                             struct dllm_runtime **runtime,
                             struct dllm_error **err);

/*
 Frees a runtime; NULL is fine. Its threads end with the last model on it.

 Since: 0.1
 */
void dllm_runtime_free(struct dllm_runtime *runtime);

/*
 ---- Model: weights and tokenizer ----

 Opens a model folder as Hugging Face has them (config.json, tokenizer.json, safetensors), or `org/name` from the local
 Hugging Face cache. `runtime` may be NULL: the model then has one of its own, with one thread per core and a GPU if
 there is one. `options` and `cancel` may be NULL.

 Ownership: the caller's; what is made from it keeps it alive.
 Errors:    NOT_FOUND, IO, BAD_FILE, UNSUPPORTED, each naming the file and both values; OUT_OF_MEMORY; CANCELLED.
 Cost:      the weights are mapped, not read, but for their fingerprint, or made with `precision`; `cancel` is
            read between files and matrices.
 Since:     0.1
 */
dllm_status dllm_model_open(const struct dllm_runtime *runtime,
                            const char *dir,
                            const struct dllm_model_options *options,
                            const struct dllm_cancel *cancel,
                            struct dllm_model **model,
                            struct dllm_error **err);

/*
 What the model is, as JSON: shape, context, precision, device, instructions, threads, fingerprint.

 Ownership: the caller's; free it with dllm_string_free().
 Since:     0.1
 */
dllm_status dllm_model_info(const struct dllm_model *model,
                            struct dllm_string **info,
                            struct dllm_error **err);

/*
 What a model folder will need, without opening it; `options` may be NULL.

 Errors: as dllm_model_open().
 Since:  0.1
 */
dllm_status dllm_model_estimate(const char *dir,
                                const struct dllm_model_options *options,
                                struct dllm_memory_report *report,
                                struct dllm_error **err);

/*
 How many tokens there are; 0 for a handle that is not alive.

 Since: 0.1
 */
size_t dllm_model_vocab_size(const struct dllm_model *model);

/*
 The tokens of a text. `capacity` 0 asks for their number alone, in `written`.

 `special` 1 adds what the tokenizer puts around a text, such as a first token. `text_len` may be DLLM_NTS.

 Errors: INVALID_ARGUMENT where there are more tokens than `capacity`; `written` then says how many.
 Since:  0.1
 */
dllm_status dllm_model_tokenize(const struct dllm_model *model,
                                const char *text,
                                size_t text_len,
                                uint32_t special,
                                uint32_t *ids,
                                size_t capacity,
                                size_t *written,
                                struct dllm_error **err);

/*
 The text of tokens; `skip_special` 1 leaves out those that are no text.

 Ownership: the caller's; free it with dllm_string_free().
 Since:     0.1
 */
dllm_status dllm_model_detokenize(const struct dllm_model *model,
                                  const uint32_t *ids,
                                  size_t n_ids,
                                  uint32_t skip_special,
                                  struct dllm_string **text,
                                  struct dllm_error **err);

/*
 The logits of what comes after tokens, `logits[vocab_size]` f32; `adapter` and `cancel` may be NULL.

 Errors: INVALID_ARGUMENT for a token that is not in the vocabulary or too little room; CONTEXT_FULL; CANCELLED.
 Since:  0.1
 */
dllm_status dllm_model_logits(const struct dllm_model *model,
                              const struct dllm_adapter *adapter,
                              const uint32_t *ids,
                              size_t n_ids,
                              const struct dllm_cancel *cancel,
                              float *logits,
                              size_t capacity,
                              struct dllm_error **err);

/*
 Natural logarithms of the probabilities of `n` continuations after a prompt, `log_probs[n]`.

 Prompt and continuation are tokenised as one text; what is scored are the tokens after those they share with the
 prompt's own. `adapter` and `cancel` may be NULL.

 Errors: INVALID_ARGUMENT where nothing predicts the first token; CONTEXT_FULL; CANCELLED.
 Since:  0.1
 */
dllm_status dllm_model_score(const struct dllm_model *model,
                             const struct dllm_adapter *adapter,
                             const char *prompt,
                             size_t prompt_len,
                             const struct dllm_str *continuations,
                             size_t n,
                             const struct dllm_cancel *cancel,
                             double *log_probs,
                             struct dllm_error **err);

/*
 Frees a model; NULL is fine. What was made from it keeps its own hold.

 Since: 0.1
 */
void dllm_model_free(struct dllm_model *model);

/*
 ---- Generate: text continued ----

 Continues a prompt. `on_text` hears the text piece by piece, on this thread, and ends it by anything but 0; it may be
 NULL. `generated` is the whole text, and may be NULL where `on_text` is not. `adapter`, `options` and `cancel` may be
 NULL.

 Ownership: `generated` is the caller's; free it with dllm_string_free().
 Errors:    INVALID_ARGUMENT for options out of their range; CONTEXT_FULL; CANCELLED; NUMERIC.
 Since:     0.1
 */
dllm_status dllm_model_generate(const struct dllm_model *model,
                                const struct dllm_adapter *adapter,
                                const char *prompt,
                                size_t prompt_len,
                                const struct dllm_generate_options *options,
                                const struct dllm_cancel *cancel,
                                dllm_text_fn on_text,
                                void *user,
                                struct dllm_string **generated,
                                struct dllm_error **err);

/*
 ---- Adapter: LoRA tensors ----

 Reads an adapter folder as PEFT writes them (adapter_config.json, adapter_model.safetensors), for `model`.

 Ownership: the caller's.
 Errors:    NOT_FOUND, IO; BAD_FILE where shapes are not the model's; UNSUPPORTED, by name, for what is no plain LoRA.
 Since:     0.1
 */
dllm_status dllm_adapter_open(const struct dllm_model *model,
                              const char *dir,
                              struct dllm_adapter **adapter,
                              struct dllm_error **err);

/*
 How many trained values it has; 0 for a handle that is not alive.

 Since: 0.1
 */
size_t dllm_adapter_n_parameters(const struct dllm_adapter *adapter);

/*
 Writes the adapter as a folder that PEFT reads; a folder that is there is replaced in one step.

 Errors: IO; what was there then still stands.
 Since:  0.1
 */
dllm_status dllm_adapter_save(const struct dllm_adapter *adapter,
                              const char *dir,
                              struct dllm_error **err);

/*
 Frees an adapter; NULL is fine. What was made from it keeps its own hold.

 Since: 0.1
 */
void dllm_adapter_free(struct dllm_adapter *adapter);

/*
 ---- Classifier: labels, template, adapter, calibration ----

 The classifier that a folder describes (dialoguellm.json): one that was trained, or a merged model's own folder.

 Ownership: the caller's; it keeps the model alive.
 Errors:    NOT_FOUND for a folder without dialoguellm.json (see dllm_classifier_new()); BAD_FILE for an adapter of
            another base model, with both fingerprints.
 Since:     0.1
 */
dllm_status dllm_classifier_open(const struct dllm_model *model,
                                 const char *dir,
                                 struct dllm_classifier **classifier,
                                 struct dllm_error **err);

/*
 A classifier of labels and a template of one's own; `adapter` and `options` may be NULL.

 Ownership: the caller's; it keeps model and adapter alive.
 Errors:    INVALID_ARGUMENT for labels or a template that cannot be.
 Since:     0.1
 */
dllm_status dllm_classifier_new(const struct dllm_model *model,
                                const struct dllm_adapter *adapter,
                                const struct dllm_classifier_options *options,
                                struct dllm_classifier **classifier,
                                struct dllm_error **err);

/*
 How many labels there are; 0 for a handle that is not alive.

 Since: 0.1
 */
size_t dllm_classifier_n_labels(const struct dllm_classifier *classifier);

/*
 The name of a label, in the order of the probabilities; NULL past the last.

 Ownership: the classifier's.
 Since:     0.1
 */
const char *dllm_classifier_label(const struct dllm_classifier *classifier,
                                  size_t label);

/*
 What label scores are divided by before they become probabilities; 1 where nothing was calibrated, NaN for a handle that
 is not alive.

 Since: 0.1
 */
double dllm_classifier_temperature(const struct dllm_classifier *classifier);

/*
 Probabilities of every turn of one dialogue, `probabilities[n_turns][n_labels]`; a turn's sum to 1. A turn sees those
 before it, as many as the template shows. `cancel` may be NULL.

 Errors: INVALID_ARGUMENT for too little room; CONTEXT_FULL; CANCELLED; NUMERIC.
 Since:  0.1
 */
dllm_status dllm_classifier_predict(const struct dllm_classifier *classifier,
                                    const struct dllm_turn *turns,
                                    size_t n_turns,
                                    const struct dllm_cancel *cancel,
                                    float *probabilities,
                                    size_t capacity,
                                    struct dllm_error **err);

/*
 Probabilities of every turn of every dialogue of a dataset, `probabilities[n_turns][n_labels]`: see
 dllm_dataset_n_turns(). Many dialogues cost less together than one by one, with the same bits.

 Errors: as dllm_classifier_predict().
 Since:  0.1
 */
dllm_status dllm_classifier_predict_all(const struct dllm_classifier *classifier,
                                        const struct dllm_dataset *dataset,
                                        const struct dllm_cancel *cancel,
                                        float *probabilities,
                                        size_t capacity,
                                        struct dllm_error **err);

/*
 What made the last turn's label, as JSON: {"turn", "label", "prob", "turns": [part, ..], "words": [part, ..]}. A part is
 {"turn", "text", "change"}: what it adds to ln of the label's probability, above 0 where it speaks for the label; a word also
 has "start", the first of its bytes in the turn's text, and what was left out has "without", the probability without it. After
 gradients there is "integral": {"base", "gap", "points"}: ln of the probability where every word is a full stop, and what the
 parts do not account for. Turns count from 0. `label` is a label's number, or DLLM_ALL for the likeliest; `method` is a
 DLLM_WHY_; `cancel` may be NULL. It costs a prompt for every part that is left out, by gradients 16 to 256 prompts forward and
 backward.

 Ownership: the caller's; free it with dllm_string_free().
 Errors:    INVALID_ARGUMENT without turns, or for a label or method that there is not; UNSUPPORTED for gradients of a
            template that makes other words of a text; as dllm_classifier_predict().
 Since:     0.1
 */
dllm_status dllm_classifier_why(const struct dllm_classifier *classifier,
                                const struct dllm_turn *turns,
                                size_t n_turns,
                                size_t label,
                                uint32_t method,
                                const struct dllm_cancel *cancel,
                                struct dllm_string **why,
                                struct dllm_error **err);

/*
 Figures on the labelled turns of a dataset, as JSON: accuracy, weighted and macro F1, per label, confusion, NLL, ECE.

 Ownership: the caller's; free it with dllm_string_free().
 Errors:    NOT_FOUND for a label that the classifier does not have; as dllm_classifier_predict().
 Since:     0.1
 */
dllm_status dllm_classifier_evaluate(const struct dllm_classifier *classifier,
                                     const struct dllm_dataset *dataset,
                                     const struct dllm_cancel *cancel,
                                     struct dllm_string **report,
                                     struct dllm_error **err);

/*
 The same classifier with a temperature fitted on the labelled turns of a dataset: never the one it is judged by.

 Ownership: the caller's, beside the one it is made of.
 Errors:    as dllm_classifier_evaluate().
 Since:     0.1
 */
dllm_status dllm_classifier_calibrate(const struct dllm_classifier *classifier,
                                      const struct dllm_dataset *dataset,
                                      const struct dllm_cancel *cancel,
                                      struct dllm_classifier **calibrated,
                                      struct dllm_error **err);

/*
 Writes the classifier as an adapter folder: PEFT's files and dialoguellm.json with labels, template and calibration. A
 folder that is there is replaced in one step.

 Errors: IO; INVALID_ARGUMENT for a classifier without an adapter.
 Since:  0.1
 */
dllm_status dllm_classifier_save(const struct dllm_classifier *classifier,
                                 const char *dir,
                                 struct dllm_error **err);

/*
 Frees a classifier; NULL is fine. Conversations keep their own hold.

 Since: 0.1
 */
void dllm_classifier_free(struct dllm_classifier *classifier);

/*
 ---- Conversation: one dialogue as it happens ----

 A conversation in which nothing was said; `options` may be NULL.

 Ownership: the caller's; it keeps the classifier alive.
 Since:     0.1
 */
dllm_status dllm_conversation_new(const struct dllm_classifier *classifier,
                                  const struct dllm_conversation_options *options,
                                  struct dllm_conversation **conversation,
                                  struct dllm_error **err);

/*
 The conversation that dllm_conversation_save() wrote; its tokens are computed again. `report` may be NULL.

 Ownership: the caller's.
 Errors:    BAD_FILE for other text, or a conversation of another base model; UNSUPPORTED for a newer format.
 Since:     0.1
 */
dllm_status dllm_conversation_restore(const struct dllm_classifier *classifier,
                                      const struct dllm_conversation_options *options,
                                      const char *saved,
                                      size_t saved_len,
                                      struct dllm_conversation **conversation,
                                      struct dllm_turn_report *report,
                                      struct dllm_error **err);

/*
 Listens to a turn, which costs its own tokens; a full context drops the oldest turns. `report` may be NULL.

 Errors: CONTEXT_FULL for a turn that does not fit alone; CANCELLED. The conversation is then as before.
 Cost:   the cancel handle is read once a layer.
 Since:  0.1
 */
dllm_status dllm_conversation_add_turn(struct dllm_conversation *conversation,
                                       const struct dllm_turn *turn,
                                       struct dllm_turn_report *report,
                                       struct dllm_error **err);

/*
 Listens to a turn of which there is a picture or a film: where the template shows what is seen and `turn.visual` does not
 say it, `describe` is asked, on this thread; its answer stays with the turn, also in what is saved. `clip` is handed to it
 as it is, a path or whatever it understands. `report` may be NULL.

 Errors: INVALID_ARGUMENT for a description that is not UTF-8; CANCELLED by `describe`; as dllm_conversation_add_turn().
 Since:  0.1
 */
dllm_status dllm_conversation_add_clip(struct dllm_conversation *conversation,
                                       const struct dllm_turn *turn,
                                       const char *clip,
                                       dllm_describe_fn describe,
                                       void *user,
                                       struct dllm_turn_report *report,
                                       struct dllm_error **err);

/*
 Probabilities of the last turn's labels, `probabilities[n_labels]`, which costs the question alone.

 Errors: INVALID_ARGUMENT where nothing was said, or for too little room; CANCELLED; NUMERIC.
 Since:  0.1
 */
dllm_status dllm_conversation_ask(struct dllm_conversation *conversation,
                                  float *probabilities,
                                  size_t capacity,
                                  struct dllm_error **err);

/*
 Takes back the last `n_turns`; nothing is computed.

 Errors: INVALID_ARGUMENT for more than are held.
 Since:  0.1
 */
dllm_status dllm_conversation_rollback(struct dllm_conversation *conversation,
                                       size_t n_turns,
                                       struct dllm_error **err);

/*
 Turns that are held; 0 for a handle that is busy or not alive.

 Since: 0.1
 */
size_t dllm_conversation_n_turns(const struct dllm_conversation *conversation);

/*
 Tokens in the cache; 0 for a handle that is busy or not alive.

 Since: 0.1
 */
size_t dllm_conversation_n_tokens(const struct dllm_conversation *conversation);

/*
 The conversation as JSON text, its dialogue included, for dllm_conversation_restore().

 Ownership: the caller's; free it with dllm_string_free().
 Since:     0.1
 */
dllm_status dllm_conversation_save(struct dllm_conversation *conversation,
                                   struct dllm_string **saved,
                                   struct dllm_error **err);

/*
 Frees a conversation; NULL is fine.

 Since: 0.1
 */
void dllm_conversation_free(struct dllm_conversation *conversation);

/*
 ---- Dataset: dialogues ----

 Reads data: `spec` is "KIND:PATH", `split` "train", "dev" or "test" where the data have them. The kinds:

 - "meld:DIR": MELD as released; also "meld-dyadic:DIR"
 - "emorynlp:DIR": EmoryNLP in its official, its small or its reduced form
 - "iemocap:DIR": IEMOCAP's release; ?labels=4|6|8, unlabelled=keep|drop, dev=last20|FILE, hap=FILE, joined by &
 - "dailydialog:DIR": DailyDialog
 - "emotionlines:PATH": EmotionLines or EmotionX
 - "jsonl:PATH": a dialogue a line, in this library's own form, or a folder with train.jsonl and so on
 - "log:FILE": "Name: text" a line
 - "pairs:FILE": {"prompt", "completion"} a line
 - "instructions:FILE": a list of {"instruction", "input", "output"}

 Behind dialogues of any kind "?visual=PATH" adds descriptions of what is seen, as JSON lines {"dialogue", "turn", "visual"}
 or a folder of texts dia0_utt3.txt, and "?label=speaker" takes who speaks, Speaker_0 to Speaker_8, as the label. A label that is not among `labels` is an error; NULL takes a set's own, and any for
 jsonl and log. `cancel` may be NULL.

 Ownership: the caller's.
 Errors:    NOT_FOUND, IO; BAD_FILE with the line, never with its text; CANCELLED.
 Cost:      memory for the file and for what it holds; `cancel` is read between lines.
 Since:     0.1
 */
dllm_status dllm_dataset_open(const char *spec,
                              const char *split,
                              const struct dllm_str *labels,
                              size_t n_labels,
                              const struct dllm_cancel *cancel,
                              struct dllm_dataset **dataset,
                              struct dllm_error **err);

/*
 Dialogues from JSON lines in memory, as the files of "jsonl:FILE" have them; `labels` and `cancel` as for
 dllm_dataset_open().

 Ownership: the caller's.
 Errors:    BAD_FILE with the line, never with its text; CANCELLED.
 Since:     0.1
 */
dllm_status dllm_dataset_parse(const char *json_lines,
                               size_t json_lines_len,
                               const struct dllm_str *labels,
                               size_t n_labels,
                               const struct dllm_cancel *cancel,
                               struct dllm_dataset **dataset,
                               struct dllm_error **err);

/*
 Dialogues in it, or prompts; 0 for a handle that is not alive.

 Since: 0.1
 */
size_t dllm_dataset_n_dialogues(const struct dllm_dataset *dataset);

/*
 Turns of a dialogue, or of all for DLLM_ALL; 0 past the last, for prompts, and for a handle that is not alive.

 Since: 0.1
 */
size_t dllm_dataset_n_turns(const struct dllm_dataset *dataset,
                            size_t dialogue);

/*
 What dialogues hold, as JSON: `dialogues`, `turns`, and under `labels` the turns of each, the most frequent first.

 Ownership: the caller's; free it with dllm_string_free().
 Errors:    INVALID_ARGUMENT for prompts.
 Since:     0.1
 */
dllm_status dllm_dataset_stats(const struct dllm_dataset *dataset,
                               struct dllm_string **stats,
                               struct dllm_error **err);

/*
 All dialogues as JSON lines, as dllm_dataset_parse() reads them: whatever was read becomes one format.

 Ownership: the caller's; free it with dllm_string_free().
 Errors:    INVALID_ARGUMENT for prompts.
 Since:     0.1
 */
dllm_status dllm_dataset_json_lines(const struct dllm_dataset *dataset,
                                    struct dllm_string **json_lines,
                                    struct dllm_error **err);

/*
 Figures, as dllm_classifier_evaluate() gives them, of a bag of words that learned from `learned`, on `judged`: the bar that
 a model has to clear. The labels are those of `learned`.

 Ownership: the caller's; free it with dllm_string_free().
 Errors:    INVALID_ARGUMENT for fewer than two labels and for prompts; NOT_FOUND for a label that was not learned.
 Since:     0.1
 */
dllm_status dllm_dataset_baseline(const struct dllm_dataset *learned,
                                  const struct dllm_dataset *judged,
                                  struct dllm_string **report,
                                  struct dllm_error **err);

/*
 Whether answers `b` are better than answers `a` by more than chance: paired bootstrap of the weighted F1, as JSON:
 `difference` (b minus a, 0 to 1), its 95 % interval `low` and `high`, and `not_better`, the part of the resamples in which
 b is not better.

 `gold`, `a` and `b` have a label's number for each of `n_turns` turns, below `n_labels`. `dialogue_turns` says how many
 turns each of `n_dialogues` dialogues has, which are drawn whole; NULL draws single turns.

 Ownership: the caller's; free it with dllm_string_free().
 Errors:    INVALID_ARGUMENT for a number that is no label, turns that do not add up, no turns, no or over 1,000,000
            resamples, over 1,000 labels.
 Since:     0.1
 */
dllm_status dllm_paired_bootstrap(size_t n_labels,
                                  const uint32_t *gold,
                                  const uint32_t *a,
                                  const uint32_t *b,
                                  size_t n_turns,
                                  const size_t *dialogue_turns,
                                  size_t n_dialogues,
                                  size_t resamples,
                                  uint64_t seed,
                                  struct dllm_string **result,
                                  struct dllm_error **err);

/*
 Frees a dataset; NULL is fine. Trainers keep what they need of it.

 Since: 0.1
 */
void dllm_dataset_free(struct dllm_dataset *dataset);

/*
 ---- Trainer: an adapter that is being trained ----

 A run on `train`; `dev`, which may be NULL, chooses the epoch and is what calibration is fitted on. `recipe` is TOML text
 with the tables lora, train, emotion and eval, each field as the command has it; an empty text is all defaults.
 `options` may be NULL.

 Ownership: the caller's; it keeps the model alive, and what it needs of the data.
 Errors:    INVALID_ARGUMENT naming the recipe's field, its value and its range; as dllm_adapter_open() for an adapter to
            begin with; BAD_FILE or INVALID_ARGUMENT for a checkpoint of another model, data or recipe.
 Since:     0.1
 */
dllm_status dllm_trainer_new(const struct dllm_model *model,
                             const struct dllm_dataset *train,
                             const struct dllm_dataset *dev,
                             const char *recipe,
                             size_t recipe_len,
                             const struct dllm_trainer_options *options,
                             struct dllm_trainer **trainer,
                             struct dllm_error **err);

/*
 One step of the optimiser, or the dev score that is due; `report` may be NULL.

 Errors: CANCELLED; NUMERIC after too many steps in a row that were not finite; IO for the metrics file; INVALID_ARGUMENT
         after the last step. The trainer is then as before the call.
 Cost:   the cancel handle is read once a layer, forward and backward.
 Since:  0.1
 */
dllm_status dllm_trainer_step(struct dllm_trainer *trainer,
                              struct dllm_train_report *report,
                              struct dllm_error **err);

/*
 Makes every step and dev score that is left. `on_event`, which may be NULL, hears of each; a checkpoint goes to `dir`,
 which may be NULL, as often as the recipe says, and when the run is stopped.

 Errors: as dllm_trainer_step() and dllm_trainer_save(); CANCELLED where `on_event` stops it.
 Since:  0.1
 */
dllm_status dllm_trainer_run(struct dllm_trainer *trainer,
                             const char *dir,
                             dllm_train_fn on_event,
                             void *user,
                             struct dllm_error **err);

/*
 Writes a checkpoint, which is at the same time an adapter folder that can be used. What is at `dir` is replaced in one
 step, so a kill leaves the old or the new one.

 Errors: IO, or INVALID_ARGUMENT where `dir` holds something else; what was there still stands.
 Since:  0.1
 */
dllm_status dllm_trainer_save(struct dllm_trainer *trainer,
                              const char *dir,
                              struct dllm_error **err);

/*
 The adapter as it is now; the trainer may go on.

 Ownership: the caller's.
 Since:     0.1
 */
dllm_status dllm_trainer_adapter(struct dllm_trainer *trainer,
                                 struct dllm_adapter **adapter,
                                 struct dllm_error **err);

/*
 Ends the run: `dir` becomes the folder for dllm_classifier_open(), with the best parameters, their calibration, the
 recipe and the metrics. `summary`, which may be NULL, is what the run did, as JSON.

 Ownership: `summary` is the caller's; free it with dllm_string_free(). The trainer can only be freed from then on, after an
            error too, which leaves a checkpoint that is at `dir`.
 Errors:    IO; NUMERIC where every step was skipped; CANCELLED.
 Since:     0.1
 */
dllm_status dllm_trainer_finish(struct dllm_trainer *trainer,
                                const char *dir,
                                struct dllm_string **summary,
                                struct dllm_error **err);

/*
 Frees a trainer; NULL is fine. What was not saved is lost.

 Since: 0.1
 */
void dllm_trainer_free(struct dllm_trainer *trainer);

/*
 ---- Model folders made of others ----

 Makes the model folder `out` of a GGUF file: F32, F16 and BF16 tensors keep every bit, Q8_0, Q4_0 and Q4_1 become
 `dtype` (DLLM_DTYPE_*). A model that is at `out` is replaced in one step. `progress` and `cancel` may be NULL.

 Errors: NOT_FOUND, IO, BAD_FILE; UNSUPPORTED for what is no LLaMA of these types; CANCELLED. `out` is then as before.
 Cost:   memory for one tensor at a time; `cancel` is read row by row.
 Since:  0.1
 */
dllm_status dllm_import_gguf(const char *file,
                             const char *out,
                             uint32_t dtype,
                             dllm_progress_fn progress,
                             void *user,
                             const struct dllm_cancel *cancel,
                             struct dllm_error **err);

/*
 Makes the model folder `out` of a model with an adapter merged into its weights; labels, template and calibration come
 along. A model that is at `out` is replaced in one step. `progress` and `cancel` may be NULL.

 Errors: as dllm_model_open() and dllm_adapter_open(); CANCELLED. `out` is then as before.
 Cost:   memory for one tensor at a time; `cancel` is read row by row.
 Since:  0.1
 */
dllm_status dllm_merge(const char *model,
                       const char *adapter,
                       const char *out,
                       dllm_progress_fn progress,
                       void *user,
                       const struct dllm_cancel *cancel,
                       struct dllm_error **err);

/*
 Makes the model folder `out` of a model with its linear maps in whole numbers of `bits` (8 or 4): half or a quarter of
 bf16 on the disk, which transformers and vLLM read too. Adapters of the model fit it; labels, template and calibration of a
 merged one come along. A model that is at `out` is replaced in one step. `progress` and `cancel` may be NULL.

 Errors: as dllm_model_open(); INVALID_ARGUMENT where it is quantised already; UNSUPPORTED where a width is no multiple of 32
         and `bits` is 4; NUMERIC where a weight is not finite; CANCELLED. `out` is then as before.
 Cost:   memory for one row and the scales of one matrix; `cancel` is read row by row.
 Since:  0.1
 */
dllm_status dllm_quantize(const char *model,
                          const char *out,
                          uint32_t bits,
                          dllm_progress_fn progress,
                          void *user,
                          const struct dllm_cancel *cancel,
                          struct dllm_error **err);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* DIALOGUELLM_H */
