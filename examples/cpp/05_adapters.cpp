// 05: several adapters on one model, whose weights are there once. Usage: 05_adapters MODEL ADAPTER..
#include <cstdio>
#include <dialoguellm.hpp>

int main(int argc, char **argv) try {
    if (argc < 3) return std::fprintf(stderr, "usage: %s MODEL ADAPTER..\n", argv[0]), 2;
    dllm::Model model(argv[1]);
    for (int i = 2; i < argc; i++) {
        auto rows = dllm::Classifier::open(model, argv[i]).predict({{"Ann", "They're turning it down! We keep it!"}});
        auto [label, p] = rows[0].best();
        std::printf("adapter %d: %s %.4f\n", i - 1, label.data(), static_cast<double>(p));
    }
} catch (const dllm::Error &error) {
    return std::fprintf(stderr, "%s\n", error.what()), error.status();
}
