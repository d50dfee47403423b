// 03: train with progress, stop half-way, save, resume. Usage: 03_train MODEL TRAIN.jsonl OUT
#include <cstdio>
#include <dialoguellm.hpp>

static const char RECIPE[] = "[lora]\nrank = 4\n[train]\nepochs = 1\nbatch = 25\nlearning_rate = 2e-3\n";

static void show(const dllm_train_report &event) {
    std::printf("step %d of %d: loss %.4f\n", static_cast<int>(event.step), static_cast<int>(event.steps), event.loss);
}

int main(int argc, char **argv) try {
    if (argc != 4) return std::fprintf(stderr, "usage: %s MODEL TRAIN.jsonl OUT\n", argv[0]), 2;
    dllm::Model model(argv[1]);
    dllm::Dataset data(std::string("jsonl:") + argv[2]);
    {
        dllm::Trainer trainer(model, data, nullptr, RECIPE);
        for (const auto &event : trainer) {
            show(event);
            if (event.step >= event.steps / 2) break;
        }
        trainer.save(argv[3]); // a kill leaves the old checkpoint or the new one
    }
    dllm_trainer_options options = {};
    options.struct_size = sizeof options;
    options.resume = argv[3];
    dllm::Trainer trainer(model, data, nullptr, RECIPE, &options);
    for (const auto &event : trainer) show(event);
    trainer.finish(argv[3]);
} catch (const dllm::Error &error) {
    return std::fprintf(stderr, "%s\n", error.what()), error.status();
}
