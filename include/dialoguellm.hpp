// dialoguellm for C++17: the C interface with owners that move, std::string_view, and exceptions. What the functions do is said
// in dialoguellm.h; a method is the function of its name.
//
//     dllm::Model model("model");
//     dllm::Conversation talk(dllm::Classifier::open(model, "adapter"));
//     for (auto [label, p] : talk.say("Ann", "We won! What a lovely day!")) std::cout << label << ' ' << p << '\n';
//
// Every failure is thrown as dllm::Error. Where the compiler has std::expected, dllm::attempt gives it instead:
//
//     std::expected<dllm::Model, dllm::Error> model = dllm::attempt([] { return dllm::Model("model"); });
#ifndef DIALOGUELLM_HPP
#define DIALOGUELLM_HPP

#include "dialoguellm.h"

#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>
#if __cplusplus > 202002L && __has_include(<expected>)
#include <expected>
#endif

namespace dllm {

/// A failure: its status and its sentence.
class Error : public std::runtime_error {
public:
    Error(dllm_status status, const std::string &sentence) : std::runtime_error(sentence), status_(status) {}
    dllm_status status() const noexcept { return status_; }

private:
    dllm_status status_;
};

namespace detail {

/// Throws what a call left behind. The error handle lives as long as this.
class Check {
public:
    Check() = default;
    Check(const Check &) = delete;
    Check &operator=(const Check &) = delete;
    ~Check() { dllm_error_free(error_); }
    dllm_error **out() { return &error_; }
    void operator()(dllm_status status) const {
        if (status != DLLM_STATUS_OK) throw Error(status, dllm_error_message(error_));
    }

private:
    dllm_error *error_ = nullptr;
};

template <class T, void (*Free)(T *)> struct Freed {
    void operator()(T *handle) const noexcept { Free(handle); }
};
template <class T, void (*Free)(T *)> using Owner = std::unique_ptr<T, Freed<T, Free>>;

inline dllm_str view(std::string_view text) { return {text.data(), text.size()}; }

inline std::vector<dllm_str> views(const std::vector<std::string> &texts) {
    std::vector<dllm_str> views;
    for (const auto &text : texts) views.push_back(view(text));
    return views;
}

inline std::string taken(dllm_string *text) {
    Owner<dllm_string, dllm_string_free> owner(text);
    return std::string(dllm_string_data(text), dllm_string_len(text));
}

template <class T> T sized() {
    T zero;
    std::memset(&zero, 0, sizeof zero);
    zero.struct_size = sizeof zero;
    return zero;
}

} // namespace detail

/// A request to stop, from any thread.
class Cancel {
public:
    Cancel() {
        detail::Check check;
        dllm_cancel *made = nullptr;
        check(dllm_cancel_new(&made, check.out()));
        handle_.reset(made);
    }
    void set() const noexcept { dllm_cancel_set(get()); }
    void clear() const noexcept { dllm_cancel_clear(get()); }
    bool is_set() const noexcept { return dllm_cancel_is_set(get()) != 0; }
    const dllm_cancel *get() const noexcept { return handle_.get(); }

private:
    detail::Owner<dllm_cancel, dllm_cancel_free> handle_;
};

inline const dllm_cancel *handle_of(const Cancel *cancel) { return cancel ? cancel->get() : nullptr; }

/// Threads and device that models share.
class Runtime {
public:
    explicit Runtime(uint32_t threads = 0, uint32_t device = DLLM_DEVICE_AUTO) {
        auto options = detail::sized<dllm_runtime_options>();
        options.threads = threads;
        options.device = device;
        detail::Check check;
        dllm_runtime *made = nullptr;
        check(dllm_runtime_new(&options, &made, check.out()));
        handle_.reset(made);
    }
    const dllm_runtime *get() const noexcept { return handle_.get(); }

private:
    detail::Owner<dllm_runtime, dllm_runtime_free> handle_;
};

class Adapter;

/// Weights and tokenizer; immutable, for any number of calls at once.
class Model {
public:
    explicit Model(const std::string &dir, const Runtime *runtime = nullptr, const Cancel *cancel = nullptr,
                   uint32_t precision = DLLM_PRECISION_BF16, bool map = true) {
        auto options = detail::sized<dllm_model_options>();
        options.precision = precision;
        options.no_map = !map;
        detail::Check check;
        dllm_model *made = nullptr;
        check(dllm_model_open(runtime ? runtime->get() : nullptr, dir.c_str(), &options, handle_of(cancel), &made, check.out()));
        handle_.reset(made);
    }
    const dllm_model *get() const noexcept { return handle_.get(); }
    size_t vocab_size() const noexcept { return dllm_model_vocab_size(get()); }

    /// JSON.
    std::string info() const {
        detail::Check check;
        dllm_string *info = nullptr;
        check(dllm_model_info(get(), &info, check.out()));
        return detail::taken(info);
    }
    std::vector<uint32_t> tokenize(std::string_view text, bool special = false) const {
        detail::Check check;
        size_t n = 0;
        check(dllm_model_tokenize(get(), text.data(), text.size(), special, nullptr, 0, &n, check.out()));
        std::vector<uint32_t> ids(n);
        if (n > 0) check(dllm_model_tokenize(get(), text.data(), text.size(), special, ids.data(), n, &n, check.out()));
        return ids;
    }
    std::string detokenize(const std::vector<uint32_t> &ids, bool skip_special = true) const {
        detail::Check check;
        dllm_string *text = nullptr;
        check(dllm_model_detokenize(get(), ids.data(), ids.size(), skip_special, &text, check.out()));
        return detail::taken(text);
    }
    std::vector<float> logits(const std::vector<uint32_t> &ids, const Adapter *adapter = nullptr, const Cancel *cancel = nullptr) const;
    std::vector<double> score(std::string_view prompt, const std::vector<std::string> &continuations,
                              const Adapter *adapter = nullptr, const Cancel *cancel = nullptr) const;
    /// `on_text` hears the text piece by piece and ends it by returning false; what it throws goes through.
    std::string generate(std::string_view prompt, const dllm_generate_options *options = nullptr,
                         const std::function<bool(std::string_view)> &on_text = {}, const Adapter *adapter = nullptr,
                         const Cancel *cancel = nullptr) const;

private:
    detail::Owner<dllm_model, dllm_model_free> handle_;
};

/// LoRA tensors; immutable, for any number of calls at once.
class Adapter {
public:
    Adapter(const Model &model, const std::string &dir) {
        detail::Check check;
        dllm_adapter *made = nullptr;
        check(dllm_adapter_open(model.get(), dir.c_str(), &made, check.out()));
        handle_.reset(made);
    }
    explicit Adapter(dllm_adapter *taken) : handle_(taken) {}
    const dllm_adapter *get() const noexcept { return handle_.get(); }
    size_t n_parameters() const noexcept { return dllm_adapter_n_parameters(get()); }
    void save(const std::string &dir) const {
        detail::Check check;
        check(dllm_adapter_save(get(), dir.c_str(), check.out()));
    }

private:
    detail::Owner<dllm_adapter, dllm_adapter_free> handle_;
};

inline const dllm_adapter *handle_of(const Adapter *adapter) { return adapter ? adapter->get() : nullptr; }

inline std::vector<float> Model::logits(const std::vector<uint32_t> &ids, const Adapter *adapter, const Cancel *cancel) const {
    detail::Check check;
    std::vector<float> logits(vocab_size());
    check(dllm_model_logits(get(), handle_of(adapter), ids.data(), ids.size(), handle_of(cancel), logits.data(), logits.size(), check.out()));
    return logits;
}

inline std::vector<double> Model::score(std::string_view prompt, const std::vector<std::string> &continuations,
                                        const Adapter *adapter, const Cancel *cancel) const {
    detail::Check check;
    std::vector<dllm_str> views;
    for (const auto &text : continuations) views.push_back(detail::view(text));
    std::vector<double> scores(views.size());
    check(dllm_model_score(get(), handle_of(adapter), prompt.data(), prompt.size(), views.data(), views.size(), handle_of(cancel),
                           scores.data(), check.out()));
    return scores;
}

inline std::string Model::generate(std::string_view prompt, const dllm_generate_options *options,
                                   const std::function<bool(std::string_view)> &on_text, const Adapter *adapter,
                                   const Cancel *cancel) const {
    // an exception must not cross the library: it waits here
    struct Hearer {
        const std::function<bool(std::string_view)> &on_text;
        std::exception_ptr thrown;
    } hearer{on_text, nullptr};
    auto hear = [](void *user, const char *text, size_t len) -> int32_t {
        auto &hearer = *static_cast<Hearer *>(user);
        try {
            return hearer.on_text({text, len}) ? 0 : 1;
        } catch (...) {
            hearer.thrown = std::current_exception();
            return 1;
        }
    };
    detail::Check check;
    dllm_string *text = nullptr;
    check(dllm_model_generate(get(), handle_of(adapter), prompt.data(), prompt.size(), options, handle_of(cancel),
                              on_text ? +hear : nullptr, &hearer, &text, check.out()));
    std::string generated = detail::taken(text);
    if (hearer.thrown) std::rethrow_exception(hearer.thrown);
    return generated;
}

/// Dialogues, or prompts with completions.
class Dataset {
public:
    /// "KIND:PATH", such as "meld:DIR" or "jsonl:FILE" (dllm_dataset_open() lists the kinds), and "train", "dev" or "test".
    explicit Dataset(const std::string &spec, const std::string &split = "train", const std::vector<std::string> &labels = {},
                     const Cancel *cancel = nullptr) {
        const auto views = detail::views(labels);
        detail::Check check;
        dllm_dataset *made = nullptr;
        check(dllm_dataset_open(spec.c_str(), split.c_str(), views.empty() ? nullptr : views.data(), views.size(), handle_of(cancel),
                                &made, check.out()));
        handle_.reset(made);
    }
    /// JSON lines in memory.
    static Dataset parse(std::string_view json_lines, const std::vector<std::string> &labels = {}, const Cancel *cancel = nullptr) {
        const auto views = detail::views(labels);
        detail::Check check;
        dllm_dataset *made = nullptr;
        check(dllm_dataset_parse(json_lines.data(), json_lines.size(), views.empty() ? nullptr : views.data(), views.size(),
                                 handle_of(cancel), &made, check.out()));
        return Dataset(made);
    }
    /// As parse() reads them.
    std::string json_lines() const {
        detail::Check check;
        dllm_string *lines = nullptr;
        check(dllm_dataset_json_lines(get(), &lines, check.out()));
        return detail::taken(lines);
    }
    const dllm_dataset *get() const noexcept { return handle_.get(); }
    size_t n_dialogues() const noexcept { return dllm_dataset_n_dialogues(get()); }
    size_t n_turns(size_t dialogue = DLLM_ALL) const noexcept { return dllm_dataset_n_turns(get(), dialogue); }
    /// JSON.
    std::string stats() const {
        detail::Check check;
        dllm_string *stats = nullptr;
        check(dllm_dataset_stats(get(), &stats, check.out()));
        return detail::taken(stats);
    }
    /// JSON: the figures on `judged` of a bag of words that learned from this.
    std::string baseline(const Dataset &judged) const {
        detail::Check check;
        dllm_string *report = nullptr;
        check(dllm_dataset_baseline(get(), judged.get(), &report, check.out()));
        return detail::taken(report);
    }

private:
    explicit Dataset(dllm_dataset *taken) : handle_(taken) {}
    detail::Owner<dllm_dataset, dllm_dataset_free> handle_;
};

/// JSON: whether answers `b` are better than answers `a` by more than chance; labels are numbers below `n_labels`.
/// `dialogue_turns` says how many turns each dialogue has, which are drawn whole; none draws single turns.
inline std::string paired_bootstrap(size_t n_labels, const std::vector<uint32_t> &gold, const std::vector<uint32_t> &a,
                                    const std::vector<uint32_t> &b, const std::vector<size_t> &dialogue_turns = {},
                                    size_t resamples = 10000, uint64_t seed = 0) {
    if (gold.size() != a.size() || gold.size() != b.size()) throw std::invalid_argument("as many answers as gold labels");
    detail::Check check;
    dllm_string *result = nullptr;
    check(dllm_paired_bootstrap(n_labels, gold.data(), a.data(), b.data(), gold.size(),
                                dialogue_turns.empty() ? nullptr : dialogue_turns.data(), dialogue_turns.size(), resamples, seed,
                                &result, check.out()));
    return detail::taken(result);
}

/// A turn of the caller's; its texts must outlive the call.
struct Turn {
    std::string_view speaker, text, visual = {}, emotion = {};
};

/// Labels with their probabilities, in the classifier's order: for (auto [label, p] : emotions).
class Emotions {
public:
    using value_type = std::pair<std::string_view, float>;
    class iterator {
    public:
        iterator(const Emotions *of, size_t at) : of_(of), at_(at) {}
        value_type operator*() const { return (*of_)[at_]; }
        iterator &operator++() { return ++at_, *this; }
        bool operator!=(const iterator &other) const { return at_ != other.at_; }
        bool operator==(const iterator &other) const { return at_ == other.at_; }

    private:
        const Emotions *of_;
        size_t at_;
    };
    Emotions(std::vector<std::string> labels, std::vector<float> probabilities)
        : labels_(std::move(labels)), probabilities_(std::move(probabilities)) {}
    size_t size() const noexcept { return probabilities_.size(); }
    value_type operator[](size_t label) const { return {labels_[label], probabilities_[label]}; }
    iterator begin() const { return {this, 0}; }
    iterator end() const { return {this, size()}; }
    /// The likeliest; the first of equals.
    value_type best() const {
        size_t best = 0;
        for (size_t label = 1; label < size(); label++)
            if (probabilities_[label] > probabilities_[best]) best = label;
        return (*this)[best];
    }

private:
    std::vector<std::string> labels_;
    std::vector<float> probabilities_;
};

/// What names emotions; immutable, for any number of calls at once.
class Classifier {
public:
    /// The classifier that a folder describes.
    static Classifier open(const Model &model, const std::string &dir) {
        detail::Check check;
        dllm_classifier *made = nullptr;
        check(dllm_classifier_open(model.get(), dir.c_str(), &made, check.out()));
        return Classifier(made);
    }
    /// Labels of one's own (none: MELD's seven) and a template.
    explicit Classifier(const Model &model, const std::vector<std::string> &labels = {}, const std::string &template_text = "dialogue",
                        const Adapter *adapter = nullptr) {
        const auto views = detail::views(labels);
        auto options = detail::sized<dllm_classifier_options>();
        options.labels = views.empty() ? nullptr : views.data();
        options.n_labels = static_cast<uint32_t>(views.size());
        options.template_text = template_text.c_str();
        *this = Classifier(model, options, adapter);
    }
    /// Everything of one's own.
    Classifier(const Model &model, const dllm_classifier_options &options, const Adapter *adapter = nullptr) {
        detail::Check check;
        dllm_classifier *made = nullptr;
        check(dllm_classifier_new(model.get(), handle_of(adapter), &options, &made, check.out()));
        handle_.reset(made);
    }
    const dllm_classifier *get() const noexcept { return handle_.get(); }
    double temperature() const noexcept { return dllm_classifier_temperature(get()); }
    std::vector<std::string> labels() const {
        std::vector<std::string> labels;
        for (size_t label = 0; label < dllm_classifier_n_labels(get()); label++) labels.emplace_back(dllm_classifier_label(get(), label));
        return labels;
    }
    /// One dialogue, a row a turn.
    std::vector<Emotions> predict(const std::vector<Turn> &turns, const Cancel *cancel = nullptr) const {
        const auto views = views_of(turns);
        return rows(turns.size(), [&](float *p, size_t n, dllm_error **err) {
            return dllm_classifier_predict(get(), views.data(), views.size(), handle_of(cancel), p, n, err);
        });
    }
    /// Every dialogue of a dataset, a row a turn.
    std::vector<Emotions> predict_all(const Dataset &data, const Cancel *cancel = nullptr) const {
        return rows(data.n_turns(), [&](float *p, size_t n, dllm_error **err) {
            return dllm_classifier_predict_all(get(), data.get(), handle_of(cancel), p, n, err);
        });
    }
    /// What made the last turn's label (DLLM_ALL: the likeliest): JSON, as dllm_classifier_why() says.
    std::string why(const std::vector<Turn> &turns, uint32_t method = DLLM_WHY_TURNS, size_t label = DLLM_ALL, const Cancel *cancel = nullptr) const {
        const auto views = views_of(turns);
        detail::Check check;
        dllm_string *why = nullptr;
        check(dllm_classifier_why(get(), views.data(), views.size(), label, method, handle_of(cancel), &why, check.out()));
        return detail::taken(why);
    }
    /// JSON.
    std::string evaluate(const Dataset &data, const Cancel *cancel = nullptr) const {
        detail::Check check;
        dllm_string *report = nullptr;
        check(dllm_classifier_evaluate(get(), data.get(), handle_of(cancel), &report, check.out()));
        return detail::taken(report);
    }
    Classifier calibrated(const Dataset &data, const Cancel *cancel = nullptr) const {
        detail::Check check;
        dllm_classifier *made = nullptr;
        check(dllm_classifier_calibrate(get(), data.get(), handle_of(cancel), &made, check.out()));
        return Classifier(made);
    }
    void save(const std::string &dir) const {
        detail::Check check;
        check(dllm_classifier_save(get(), dir.c_str(), check.out()));
    }

private:
    explicit Classifier(dllm_classifier *taken) : handle_(taken) {}
    static std::vector<dllm_turn> views_of(const std::vector<Turn> &turns) {
        std::vector<dllm_turn> views;
        for (const auto &turn : turns)
            views.push_back({detail::view(turn.speaker), detail::view(turn.text), detail::view(turn.visual), detail::view(turn.emotion)});
        return views;
    }
    template <class Call> std::vector<Emotions> rows(size_t turns, Call call) const {
        auto names = labels();
        std::vector<float> all(turns * names.size());
        detail::Check check;
        check(call(all.data(), all.size(), check.out()));
        std::vector<Emotions> rows;
        for (auto at = all.begin(); at != all.end(); at += static_cast<std::ptrdiff_t>(names.size()))
            rows.emplace_back(names, std::vector<float>(at, at + static_cast<std::ptrdiff_t>(names.size())));
        return rows;
    }
    detail::Owner<dllm_classifier, dllm_classifier_free> handle_;
};

/// One dialogue as it happens; one call at a time.
class Conversation {
public:
    explicit Conversation(const Classifier &classifier, const Cancel *cancel = nullptr, size_t context = 0) : labels_(classifier.labels()) {
        auto options = options_of(cancel, context);
        detail::Check check;
        dllm_conversation *made = nullptr;
        check(dllm_conversation_new(classifier.get(), &options, &made, check.out()));
        handle_.reset(made);
    }
    /// What save() wrote.
    static Conversation restore(const Classifier &classifier, std::string_view saved, const Cancel *cancel = nullptr, size_t context = 0) {
        auto options = options_of(cancel, context);
        detail::Check check;
        dllm_conversation *made = nullptr;
        check(dllm_conversation_restore(classifier.get(), &options, saved.data(), saved.size(), &made, nullptr, check.out()));
        return Conversation(made, classifier.labels());
    }
    /// Listens to a turn.
    dllm_turn_report add(const Turn &turn) {
        auto report = detail::sized<dllm_turn_report>();
        dllm_turn view = {detail::view(turn.speaker), detail::view(turn.text), detail::view(turn.visual), detail::view(turn.emotion)};
        detail::Check check;
        check(dllm_conversation_add_turn(handle_.get(), &view, &report, check.out()));
        return report;
    }
    /// Listens to a turn of which there is a picture or a film: where the template shows what is seen and the turn does not
    /// say it, `describe` is asked, once.
    dllm_turn_report add(const Turn &turn, const std::string &clip, const std::function<std::string(const std::string &clip)> &describe) {
        // an exception must not cross the library: it waits here
        struct Seer {
            const std::function<std::string(const std::string &)> &describe;
            std::string seen;
            std::exception_ptr thrown;
        } seer{describe, {}, nullptr};
        auto ask = [](void *user, const dllm_turn *, const char *clip, dllm_str *description) -> int32_t {
            auto &seer = *static_cast<Seer *>(user);
            try {
                *description = detail::view(seer.seen = seer.describe(clip));
                return 0;
            } catch (...) {
                seer.thrown = std::current_exception();
                return 1;
            }
        };
        auto report = detail::sized<dllm_turn_report>();
        dllm_turn view = {detail::view(turn.speaker), detail::view(turn.text), detail::view(turn.visual), detail::view(turn.emotion)};
        detail::Check check;
        const auto status = dllm_conversation_add_clip(handle_.get(), &view, clip.c_str(), ask, &seer, &report, check.out());
        if (seer.thrown) std::rethrow_exception(seer.thrown);
        check(status);
        return report;
    }
    /// The last turn's emotions.
    Emotions ask() {
        std::vector<float> p(labels_.size());
        detail::Check check;
        check(dllm_conversation_ask(handle_.get(), p.data(), p.size(), check.out()));
        return {labels_, std::move(p)};
    }
    /// Listens to a turn and asks about it.
    Emotions say(std::string_view speaker, std::string_view text) { return add({speaker, text}), ask(); }
    void rollback(size_t turns = 1) {
        detail::Check check;
        check(dllm_conversation_rollback(handle_.get(), turns, check.out()));
    }
    std::string save() {
        detail::Check check;
        dllm_string *saved = nullptr;
        check(dllm_conversation_save(handle_.get(), &saved, check.out()));
        return detail::taken(saved);
    }
    size_t n_turns() const noexcept { return dllm_conversation_n_turns(handle_.get()); }
    size_t n_tokens() const noexcept { return dllm_conversation_n_tokens(handle_.get()); }

private:
    Conversation(dllm_conversation *taken, std::vector<std::string> labels) : labels_(std::move(labels)), handle_(taken) {}
    static dllm_conversation_options options_of(const Cancel *cancel, size_t context) {
        auto options = detail::sized<dllm_conversation_options>();
        options.context = context;
        options.cancel = handle_of(cancel);
        return options;
    }
    std::vector<std::string> labels_;
    detail::Owner<dllm_conversation, dllm_conversation_free> handle_;
};

/// An adapter that is being trained, one call at a time: for (const auto &event : trainer) ...
class Trainer {
public:
    /// `options` may be null; its texts must outlive this call.
    Trainer(const Model &model, const Dataset &train, const Dataset *dev, std::string_view recipe, const dllm_trainer_options *options = nullptr) {
        detail::Check check;
        dllm_trainer *made = nullptr;
        check(dllm_trainer_new(model.get(), train.get(), dev ? dev->get() : nullptr, recipe.data(), recipe.size(), options, &made, check.out()));
        handle_.reset(made);
    }
    /// A step, or the dev score that is due.
    dllm_train_report step() {
        auto report = detail::sized<dllm_train_report>();
        detail::Check check;
        check(dllm_trainer_step(handle_.get(), &report, check.out()));
        return report;
    }
    void save(const std::string &dir) {
        detail::Check check;
        check(dllm_trainer_save(handle_.get(), dir.c_str(), check.out()));
    }
    /// The adapter as it is now.
    Adapter adapter() {
        detail::Check check;
        dllm_adapter *made = nullptr;
        check(dllm_trainer_adapter(handle_.get(), &made, check.out()));
        return Adapter(made);
    }
    /// Ends the run; JSON of what it did.
    std::string finish(const std::string &dir) {
        detail::Check check;
        dllm_string *summary = nullptr;
        check(dllm_trainer_finish(handle_.get(), dir.c_str(), &summary, check.out()));
        return detail::taken(summary);
    }

    /// Every step and dev score that is left, each made when it is asked for.
    class iterator {
    public:
        explicit iterator(Trainer *of) : of_(of) { ++*this; }
        iterator() = default;
        const dllm_train_report &operator*() const { return report_; }
        iterator &operator++() {
            if (of_ && report_.done) of_ = nullptr;
            if (of_) report_ = of_->step();
            return *this;
        }
        bool operator!=(const iterator &other) const { return of_ != other.of_; }
        bool operator==(const iterator &other) const { return of_ == other.of_; }

    private:
        Trainer *of_ = nullptr;
        dllm_train_report report_ = detail::sized<dllm_train_report>();
    };
    iterator begin() { return iterator(this); }
    iterator end() { return {}; }

private:
    detail::Owner<dllm_trainer, dllm_trainer_free> handle_;
};

/// Hears how many of how many tensors are done and ends the call by returning false; what it throws goes through.
using Progress = std::function<bool(uint64_t done, uint64_t all)>;

namespace detail {

/// Runs a call that makes a model folder.
template <class Call> void making(const Progress &progress, Call call) {
    // an exception must not cross the library: it waits here
    struct Hearer {
        const Progress &progress;
        std::exception_ptr thrown;
    } hearer{progress, nullptr};
    auto hear = [](void *user, uint64_t done, uint64_t all) -> int32_t {
        auto &hearer = *static_cast<Hearer *>(user);
        try {
            return hearer.progress(done, all) ? 0 : 1;
        } catch (...) {
            hearer.thrown = std::current_exception();
            return 1;
        }
    };
    Check check;
    const dllm_status status = call(progress ? +hear : nullptr, &hearer, check.out());
    if (hearer.thrown) std::rethrow_exception(hearer.thrown);
    check(status);
}

} // namespace detail

/// Makes a model folder of a GGUF file; `dtype` is what quantised tensors become.
inline void import_gguf(const std::string &file, const std::string &out, uint32_t dtype = DLLM_DTYPE_BF16,
                        const Progress &progress = {}, const Cancel *cancel = nullptr) {
    detail::making(progress, [&](dllm_progress_fn hear, void *user, dllm_error **err) {
        return dllm_import_gguf(file.c_str(), out.c_str(), dtype, hear, user, handle_of(cancel), err);
    });
}

/// Makes a model folder of a model with an adapter merged into its weights.
inline void merge(const std::string &model, const std::string &adapter, const std::string &out, const Progress &progress = {},
                  const Cancel *cancel = nullptr) {
    detail::making(progress, [&](dllm_progress_fn hear, void *user, dllm_error **err) {
        return dllm_merge(model.c_str(), adapter.c_str(), out.c_str(), hear, user, handle_of(cancel), err);
    });
}

/// Makes a smaller copy of a model: linear maps in whole numbers of 8 or 4 bits.
inline void quantize(const std::string &model, const std::string &out, uint32_t bits = 8, const Progress &progress = {},
                     const Cancel *cancel = nullptr) {
    detail::making(progress, [&](dllm_progress_fn hear, void *user, dllm_error **err) {
        return dllm_quantize(model.c_str(), out.c_str(), bits, hear, user, handle_of(cancel), err);
    });
}

/// What a model folder will need, without opening it.
inline dllm_memory_report estimate(const std::string &dir, uint32_t precision = DLLM_PRECISION_BF16) {
    auto options = detail::sized<dllm_model_options>();
    options.precision = precision;
    auto report = detail::sized<dllm_memory_report>();
    detail::Check check;
    check(dllm_model_estimate(dir.c_str(), &options, &report, check.out()));
    return report;
}

#ifdef __cpp_lib_expected
/// What a call gives, or its failure.
template <class Call> auto attempt(Call call) -> std::expected<decltype(call()), Error> {
    try {
        return call();
    } catch (const Error &error) {
        return std::unexpected(error);
    }
}
#endif

} // namespace dllm

#endif
