// 01: label a conversation. Usage: 01_label MODEL
#include <cstdio>
#include <dialoguellm.hpp>

int main(int argc, char **argv) try {
    if (argc != 2) return std::fprintf(stderr, "usage: %s MODEL\n", argv[0]), 2;
    dllm::Model model(argv[1]);
    dllm::Classifier classifier(model); // MELD's seven labels
    const std::vector<dllm::Turn> turns = {
        {"Ann", "We won! What a lovely day!"}, {"Bo", "You won? I had no idea."}, {"Ann", "You forgot. Again."}};
    auto rows = classifier.predict(turns);
    for (size_t turn = 0; turn < turns.size(); turn++) {
        auto [label, p] = rows[turn].best();
        std::printf("%s: %s %.4f\n", turns[turn].speaker.data(), label.data(), static_cast<double>(p));
    }
} catch (const dllm::Error &error) {
    return std::fprintf(stderr, "%s\n", error.what()), error.status();
}
