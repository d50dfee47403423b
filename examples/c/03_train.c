/* 03: train with progress, stop half-way, save, resume. Usage: 03_train MODEL TRAIN.jsonl OUT */
#include "example.h"

static const char RECIPE[] = "[lora]\nrank = 4\n[train]\nepochs = 1\nbatch = 25\nlearning_rate = 2e-3\n";

int main(int argc, char **argv) {
    if (argc != 4) return fprintf(stderr, "usage: %s MODEL TRAIN.jsonl OUT\n", argv[0]), 2;
    char spec[4096];
    snprintf(spec, sizeof spec, "jsonl:%s", argv[2]);
    dllm_model *model = NULL;
    dllm_dataset *data = NULL;
    check(dllm_model_open(NULL, argv[1], NULL, NULL, &model, &err));
    check(dllm_dataset_open(spec, "train", NULL, 0, NULL, &data, &err));

    dllm_trainer *trainer = NULL;
    dllm_train_report report = { .struct_size = sizeof report };
    check(dllm_trainer_new(model, data, NULL, RECIPE, DLLM_NTS, NULL, &trainer, &err));
    do {
        check(dllm_trainer_step(trainer, &report, &err));
        printf("step %d of %d: loss %.4f\n", (int)report.step, (int)report.steps, report.loss);
    } while (report.step < report.steps / 2);
    check(dllm_trainer_save(trainer, argv[3], &err)); /* a kill leaves the old checkpoint or the new one */
    dllm_trainer_free(trainer);

    const dllm_trainer_options options = { .struct_size = sizeof options, .resume = argv[3] };
    check(dllm_trainer_new(model, data, NULL, RECIPE, DLLM_NTS, &options, &trainer, &err));
    do {
        check(dllm_trainer_step(trainer, &report, &err));
        printf("step %d of %d: loss %.4f\n", (int)report.step, (int)report.steps, report.loss);
    } while (!report.done);
    check(dllm_trainer_finish(trainer, argv[3], NULL, &err));
    dllm_trainer_free(trainer);
    dllm_dataset_free(data);
    dllm_model_free(model);
    return 0;
}
