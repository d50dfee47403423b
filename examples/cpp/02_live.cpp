// 02: a live chat, a turn a line as `Name: text`; Ctrl-C ends it, also inside a call. Usage: 02_live MODEL
#include <csignal>
#include <cstdio>
#include <dialoguellm.hpp>
#include <iostream>

static dllm::Cancel cancel;

int main(int argc, char **argv) try {
    if (argc != 2) return std::fprintf(stderr, "usage: %s MODEL\n", argv[0]), 2;
    std::signal(SIGINT, [](int) { cancel.set(); });
    dllm::Model model(argv[1], nullptr, &cancel);
    dllm::Conversation talk(dllm::Classifier(model), &cancel);
    for (std::string line; !cancel.is_set() && std::getline(std::cin, line);) {
        auto at = line.find(": ");
        if (at == std::string::npos) continue;
        auto emotions = talk.say(line.substr(0, at), line.substr(at + 2)); // costs this turn's tokens alone
        auto [label, p] = emotions.best();
        std::printf("%s %.4f\n", label.data(), static_cast<double>(p));
    }
    std::printf("%zu turns\n", talk.n_turns());
} catch (const dllm::Error &error) {
    return std::fprintf(stderr, "%s\n", error.what()), error.status();
}
