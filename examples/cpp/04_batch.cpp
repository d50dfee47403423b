// 04: label every turn of a file of dialogues. Usage: 04_batch MODEL ADAPTER DIALOGUES.jsonl
#include <cstdio>
#include <dialoguellm.hpp>

int main(int argc, char **argv) try {
    if (argc != 4) return std::fprintf(stderr, "usage: %s MODEL ADAPTER DIALOGUES.jsonl\n", argv[0]), 2;
    dllm::Model model(argv[1]);
    auto classifier = dllm::Classifier::open(model, argv[2]);
    dllm::Dataset data(std::string("jsonl:") + argv[3], "test");
    auto rows = classifier.predict_all(data);
    auto row = rows.begin();
    for (size_t dialogue = 0; dialogue < data.n_dialogues(); dialogue++) {
        std::printf("%zu:", dialogue);
        for (size_t turn = 0; turn < data.n_turns(dialogue); turn++) std::printf(" %s", (row++)->best().first.data());
        std::printf("\n");
    }
} catch (const dllm::Error &error) {
    return std::fprintf(stderr, "%s\n", error.what()), error.status();
}
