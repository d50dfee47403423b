// The C++ header's facts, one a function. Usage: wrapper MODEL WORK. The header is included twice, and alone first.
#include <dialoguellm.hpp>
#include <dialoguellm.hpp>

#include <iostream>
#include <type_traits>

static std::string model_dir, work_dir;

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            std::cerr << __FILE__ << ':' << __LINE__ << ": " #condition "\n";                                          \
            std::exit(1);                                                                                              \
        }                                                                                                              \
    } while (0)

static_assert(!std::is_copy_constructible_v<dllm::Model> && std::is_nothrow_move_constructible_v<dllm::Model>);
static_assert(!std::is_copy_constructible_v<dllm::Conversation> && std::is_move_constructible_v<dllm::Conversation>);

static const char DATA[] = "{\"turns\":[{\"speaker\":\"Ann\",\"text\":\"We won!\",\"emotion\":\"joy\"},"
                           "{\"speaker\":\"Bo\",\"text\":\"Leave me alone.\",\"emotion\":\"anger\"}]}\n";

static void a_failure_is_thrown_with_status_and_sentence() {
    try {
        dllm::Model("no/such/folder");
        CHECK(false);
    } catch (const dllm::Error &error) {
        CHECK(error.status() == DLLM_STATUS_NOT_FOUND && std::string(error.what()).find("no/such/folder") != std::string::npos);
    }
}

static void emotions_are_iterated_with_their_labels() {
    dllm::Model model(model_dir);
    dllm::Classifier classifier(model);
    dllm::Conversation talk(classifier);
    float sum = 0;
    size_t n = 0;
    for (auto [label, p] : talk.say("Ann", "We won!")) sum += p, n += !label.empty();
    CHECK(n == 7 && sum > 0.999f && sum < 1.001f);
    auto alone = classifier.predict({{"Ann", "We won!"}});
    CHECK(alone[0].best() == talk.ask().best());
    auto saved = talk.save();
    talk.rollback();
    CHECK(talk.n_turns() == 0);
    auto again = dllm::Conversation::restore(classifier, saved);
    dllm::Conversation moved = std::move(again);
    CHECK(moved.n_turns() == 1 && moved.ask().best() == alone[0].best());
}

static void what_a_callback_throws_goes_through() {
    dllm::Model model(model_dir);
    dllm::Classifier classifier(model);
    dllm::Conversation talk(classifier), told(classifier);
    talk.add({"Ann", "We won!"}, "clip.mp4", [](const std::string &clip) { return "Ann jumps in " + clip; });
    told.add({"Ann", "We won!", "Ann jumps in clip.mp4"});
    CHECK(talk.ask().best() == told.ask().best());
    try {
        talk.add({"Bo", "Leave me alone."}, "broken", [](const std::string &clip) -> std::string { throw clip; });
        CHECK(false);
    } catch (const std::string &clip) {
        CHECK(clip == "broken" && talk.n_turns() == 1);
    }
    std::string heard;
    auto text = model.generate("Ann: We", nullptr, [&](std::string_view piece) { return heard += piece, heard.size() < 8; });
    CHECK(heard == text && !text.empty());
    try {
        model.generate("Ann: We", nullptr, [](std::string_view) -> bool { throw std::string("mine"); });
        CHECK(false);
    } catch (const std::string &mine) {
        CHECK(mine == "mine");
    }
    CHECK(model.detokenize(model.tokenize("We won!")) == "We won!");
    CHECK(model.logits(model.tokenize("We won!")).size() == model.vocab_size());
    CHECK(model.score("Is it?", {" yes", " no"}).size() == 2);
}

static void data_are_written_judged_and_compared() {
    auto data = dllm::Dataset::parse(DATA);
    const auto lines = data.json_lines();
    CHECK(dllm::Dataset::parse(lines).json_lines() == lines);
    try {
        dllm::Dataset::parse(lines, {"glee", "gloom"});
        CHECK(false);
    } catch (const dllm::Error &error) {
        CHECK(error.status() == DLLM_STATUS_BAD_FILE);
    }
    CHECK(dllm::paired_bootstrap(2, {0, 1, 1}, {0, 0, 0}, {0, 1, 1}, {2, 1}, 100).find("\"not_better\":0.0") != std::string::npos);
    dllm::Model model(model_dir, nullptr, nullptr, DLLM_PRECISION_BF16, false);
    dllm_classifier_options options = {};
    options.struct_size = sizeof options;
    options.window = 1;
    const dllm::Turn turns[] = {{"Ann", "We won!"}, {"Bo", "Leave me alone."}};
    dllm::Classifier one(model, options), all(model);
    CHECK(one.predict({turns[0], turns[1]})[1][0].second == one.predict({turns[1]})[0][0].second);
    CHECK(all.predict({turns[0], turns[1]})[1][0].second != all.predict({turns[1]})[0][0].second);
}

static void training_is_a_loop_over_events() {
    dllm::Model model(model_dir);
    auto data = dllm::Dataset::parse(DATA);
    dllm::Trainer trainer(model, data, &data, "[lora]\nrank = 2\n[train]\nepochs = 3\n");
    int steps = 0, devs = 0;
    for (const auto &event : trainer) event.kind == DLLM_TRAIN_STEP ? steps++ : devs++;
    CHECK(steps == 3 && devs == 3);
    CHECK(trainer.adapter().n_parameters() > 0);
    CHECK(trainer.finish(work_dir + "/cpp").find("\"steps\":3") != std::string::npos);
    auto trained = dllm::Classifier::open(model, work_dir + "/cpp");
    CHECK(trained.labels().size() == 2 && trained.predict_all(data).size() == 2);
    CHECK(trained.why({{"Ann", "We won!"}, {"Bo", "I see"}}, DLLM_WHY_WORDS).find("\"won!\"") != std::string::npos);
    CHECK(trained.evaluate(data).find("accuracy") != std::string::npos);
    const std::string merged = work_dir + "/cpp-merged", small = work_dir + "/cpp-small";
    dllm::merge(model_dir, work_dir + "/cpp", merged);
    uint64_t heard = 0;
    dllm::quantize(merged, small, 4, [&](uint64_t, uint64_t all) { return ++heard <= all + 1; });
    CHECK(heard == 29);
    dllm::Model less(small);
    CHECK(dllm::Classifier::open(less, small).labels() == trained.labels());
    CHECK(dllm::Model(model_dir, nullptr, nullptr, DLLM_PRECISION_INT8).info().find("\"int8\"") != std::string::npos);
    CHECK(dllm::estimate(small).weights < dllm::estimate(merged).weights);
    CHECK(dllm::estimate(model_dir, DLLM_PRECISION_INT8).weights < dllm::estimate(model_dir).weights);
    try {
        dllm::quantize(merged, small, 8, [](uint64_t, uint64_t) -> bool { throw std::string("mine"); });
        CHECK(false);
    } catch (const std::string &mine) {
        CHECK(mine == "mine");
    }
    try {
        dllm::import_gguf("no/such/file", small);
        CHECK(false);
    } catch (const dllm::Error &error) {
        CHECK(error.status() == DLLM_STATUS_NOT_FOUND);
    }
    dllm::Cancel cancel;
    cancel.set();
    try {
        trained.predict_all(data, &cancel);
        CHECK(false);
    } catch (const dllm::Error &error) {
        CHECK(error.status() == DLLM_STATUS_CANCELLED);
    }
#ifdef __cpp_lib_expected
    CHECK(dllm::attempt([] { return dllm::Model("nowhere"); }).error().status() == DLLM_STATUS_NOT_FOUND);
#endif
}

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    model_dir = argv[1];
    work_dir = argv[2];
    a_failure_is_thrown_with_status_and_sentence();
    emotions_are_iterated_with_their_labels();
    what_a_callback_throws_goes_through();
    data_are_written_judged_and_compared();
    training_is_a_loop_over_events();
    return 0;
}
