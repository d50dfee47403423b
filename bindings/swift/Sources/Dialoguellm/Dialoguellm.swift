// Emotion in conversation: a LLaMA that fits in the process. What the functions do is said in the C header, dialoguellm.h; a
// method is the function of its name.
//
// Handles are freed with their objects. Every failure is a DialoguellmError; a task that is cancelled ends the call it waits
// for, within one layer of the model, with a CancellationError.

import CDialoguellm

/// A failure of the library: its status and its sentence.
public struct DialoguellmError: Error, CustomStringConvertible, Equatable, Sendable {
    public enum Status: Int32, Sendable {
        case invalidArgument = 1, notFound, io, badFile, unsupported, outOfMemory, contextFull, busy, cancelled, deviceLost
        case numeric, poisoned, `internal`
    }
    public let status: Status
    public let description: String
}

/// Calls a function that answers a status; throws what it left behind.
func check(_ call: (inout OpaquePointer?) -> dllm_status) throws {
    var error: OpaquePointer?
    let status = call(&error)
    guard status != 0 else { return }
    defer { dllm_error_free(error) }
    let sentence = String(cString: dllm_error_message(error))
    throw DialoguellmError(status: .init(rawValue: status) ?? .internal, description: sentence)
}

/// The text of a string that the library handed out.
func taken(_ text: OpaquePointer?) -> String {
    defer { dllm_string_free(text) }
    let bytes = UnsafeRawBufferPointer(start: dllm_string_data(text), count: dllm_string_len(text))
    return String(decoding: bytes, as: UTF8.self)
}

/// The text that a call hands out.
func text(_ call: (UnsafeMutablePointer<OpaquePointer?>, inout OpaquePointer?) -> dllm_status) throws -> String {
    var text: OpaquePointer?
    try check { call(&text, &$0) }
    return taken(text)
}

/// Texts that stay where they are during a call.
final class Pinned {
    private var held: [UnsafeMutablePointer<CChar>] = []
    deinit {
        held.forEach { $0.deallocate() }
        lists.forEach { $0.deallocate() }
    }

    func view(_ text: String?) -> dllm_str {
        guard let text else { return dllm_str(data: nil, len: 0) }
        let bytes = Array(text.utf8)
        let copy = UnsafeMutablePointer<CChar>.allocate(capacity: bytes.count + 1)
        for (i, byte) in bytes.enumerated() { copy[i] = CChar(bitPattern: byte) }
        copy[bytes.count] = 0
        held.append(copy)
        return dllm_str(data: copy, len: UInt64(bytes.count))
    }

    private var lists: [UnsafeMutablePointer<dllm_str>] = []

    /// NULL for none.
    func views(_ texts: [String]) -> UnsafePointer<dllm_str>? {
        if texts.isEmpty { return nil }
        let list = UnsafeMutablePointer<dllm_str>.allocate(capacity: texts.count)
        for (i, text) in texts.enumerated() { list[i] = view(text) }
        lists.append(list)
        return UnsafePointer(list)
    }
}

/// One handle, freed with this object. The library allows any thread.
final class Handle: @unchecked Sendable {
    let pointer: OpaquePointer
    private let free: (OpaquePointer?) -> Void
    init(_ pointer: OpaquePointer?, _ free: @escaping (OpaquePointer?) -> Void) {
        self.pointer = pointer!
        self.free = free
    }
    deinit { free(pointer) }
}

/// A request to stop that a task's cancellation makes.
final class Cancel: Sendable {
    let handle: Handle
    init() throws {
        var made: OpaquePointer?
        try check { dllm_cancel_new(&made, &$0) }
        handle = Handle(made, dllm_cancel_free)
    }

    /// Runs a call that the task's cancellation ends, away from the threads of Swift's own pool.
    func during<T: Sendable>(_ call: @escaping @Sendable () throws -> T) async throws -> T {
        try Task.checkCancellation()
        defer { dllm_cancel_clear(handle.pointer) }
        do {
            return try await withTaskCancellationHandler {
                try await withCheckedThrowingContinuation { continuation in
                    onAThread { continuation.resume(with: Result(catching: call)) }
                }
            } onCancel: {
                dllm_cancel_set(handle.pointer)
            }
        } catch let error as DialoguellmError where error.status == .cancelled && Task.isCancelled {
            throw CancellationError()
        }
    }
}

/// The library's version.
public var version: String { String(cString: dllm_version()) }

/// Where to compute.
public enum Device: UInt32, Sendable { case auto, cpu, cuda }

/// Threads and device that models share.
public final class Runtime: Sendable {
    let handle: Handle
    /// Threads 0: one a core.
    public init(threads: Int = 0, device: Device = .auto) throws {
        var options = dllm_runtime_options()
        options.struct_size = UInt32(MemoryLayout.size(ofValue: options))
        options.threads = UInt32(threads)
        options.device = device.rawValue
        var made: OpaquePointer?
        try check { dllm_runtime_new(&options, &made, &$0) }
        handle = Handle(made, dllm_runtime_free)
    }
}

/// Weights and tokenizer; it never changes, and any number of tasks may use it at once.
public final class Model: Sendable {
    let handle: Handle
    /// `mapped` false reads the weights into memory instead of mapping the files.
    public init(_ dir: String, runtime: Runtime? = nil, precision: Precision = .bf16, mapped: Bool = true) throws {
        var options = dllm_model_options()
        options.struct_size = UInt32(MemoryLayout.size(ofValue: options))
        options.precision = precision.rawValue
        options.no_map = mapped ? 0 : 1
        var made: OpaquePointer?
        try check { dllm_model_open(runtime?.handle.pointer, dir, &options, nil, &made, &$0) }
        handle = Handle(made, dllm_model_free)
    }

    /// What the model is, as JSON.
    public func info() throws -> String {
        let pointer = handle.pointer
        return try text { dllm_model_info(pointer, $0, &$1) }
    }
    /// How many tokens there are.
    public var vocabularySize: Int { dllm_model_vocab_size(handle.pointer) }

    /// The tokens of a text; `special` adds what the tokenizer puts around a text.
    public func tokenize(_ text: String, special: Bool = false) throws -> [UInt32] {
        var n = 0
        try check { dllm_model_tokenize(handle.pointer, text, text.utf8.count, special ? 1 : 0, nil, 0, &n, &$0) }
        var ids = [UInt32](repeating: 0, count: n)
        if n > 0 { try check { dllm_model_tokenize(handle.pointer, text, text.utf8.count, special ? 1 : 0, &ids, n, &n, &$0) } }
        return ids
    }
    /// The text of tokens; `special` keeps those that are no text.
    public func detokenize(_ tokens: [UInt32], special: Bool = false) throws -> String {
        let pointer = handle.pointer
        return try text { dllm_model_detokenize(pointer, tokens, tokens.count, special ? 0 : 1, $0, &$1) }
    }

    /// The logits of what comes after tokens, one for every token of the vocabulary.
    public func logits(after tokens: [UInt32], adapter: Adapter? = nil) async throws -> [Float] {
        let cancel = try Cancel()
        return try await cancel.during { [handle, vocabularySize] in
            var logits = [Float](repeating: 0, count: vocabularySize)
            try check {
                dllm_model_logits(
                    handle.pointer, adapter?.handle.pointer, tokens, tokens.count, cancel.handle.pointer, &logits, logits.count, &$0)
            }
            return logits
        }
    }

    /// Natural logarithms of the probabilities of continuations after a prompt.
    public func score(_ prompt: String, continuations: [String], adapter: Adapter? = nil) async throws -> [Double] {
        let cancel = try Cancel()
        return try await cancel.during { [handle] in
            let pinned = Pinned()
            let views = pinned.views(continuations)
            var scores = [Double](repeating: 0, count: continuations.count)
            try withExtendedLifetime(pinned) {
                try check {
                    dllm_model_score(
                        handle.pointer, adapter?.handle.pointer, prompt, prompt.utf8.count, views, continuations.count,
                        cancel.handle.pointer, &scores, &$0)
                }
            }
            return scores
        }
    }

    /// The prompt's continuation, piece by piece; ends with the task that reads it.
    public func generate(_ prompt: String, _ options: GenerateOptions = .init(), adapter: Adapter? = nil) -> AsyncThrowingStream<String, Error> {
        AsyncThrowingStream { stream in
            let task = Task {
                do {
                    try await self.generate(prompt, options, adapter) { stream.yield($0) }
                    stream.finish()
                } catch {
                    stream.finish(throwing: error)
                }
            }
            stream.onTermination = { _ in task.cancel() }
        }
    }

    private func generate(
        _ prompt: String, _ how: GenerateOptions, _ adapter: Adapter?, hear: @escaping @Sendable (String) -> Void
    ) async throws {
        final class Hearer { let hear: @Sendable (String) -> Void; init(_ hear: @escaping @Sendable (String) -> Void) { self.hear = hear } }
        let cancel = try Cancel()
        try await cancel.during { [handle] in
            let (pinned, hearer) = (Pinned(), Hearer(hear))
            var options = how.c(pinned)
            let user = Unmanaged.passUnretained(hearer).toOpaque()
            let onText: dllm_text_fn = { user, text, len in
                let bytes = UnsafeRawBufferPointer(start: text, count: len)
                Unmanaged<Hearer>.fromOpaque(user!).takeUnretainedValue().hear(String(decoding: bytes, as: UTF8.self))
                return 0
            }
            try withExtendedLifetime((pinned, hearer)) {
                try check {
                    dllm_model_generate(
                        handle.pointer, adapter?.handle.pointer, prompt, prompt.utf8.count, &options, cancel.handle.pointer, onText, user,
                        nil, &$0)
                }
            }
        }
    }
}

/// How a text is continued.
public struct GenerateOptions: Sendable {
    public var maxTokens = 256
    /// Divides the logits; 0 takes the likeliest token every time.
    public var temperature: Float = 0
    /// Draw from the likeliest tokens that together reach this probability, and from so many of them; 0 for all.
    public var topP: Float = 1, topK = 0
    /// Above 1, tokens that were there before become less likely.
    public var repetitionPenalty: Float = 1
    public var seed: UInt64 = 0
    /// End before the first of these texts.
    public var stops: [String] = []
    /// The prompt is a message in the model's own chat format, behind this message of the system's if there is one.
    public var chat = false, system: String?
    /// Above 1, so many beams are kept and the likeliest text as a whole is given, instead of drawing token by token.
    public var beams = 1

    public init(maxTokens: Int = 256, temperature: Float = 0, seed: UInt64 = 0, chat: Bool = false, system: String? = nil) {
        (self.maxTokens, self.temperature, self.seed, self.chat, self.system) = (maxTokens, temperature, seed, chat, system)
    }

    func c(_ pinned: Pinned) -> dllm_generate_options {
        var options = dllm_generate_options()
        options.struct_size = UInt32(MemoryLayout.size(ofValue: options))
        options.max_tokens = UInt32(maxTokens)
        (options.temperature, options.top_p, options.top_k) = (temperature, topP, UInt32(topK))
        (options.repetition_penalty, options.seed) = (repetitionPenalty, seed)
        (options.stops, options.n_stops) = (pinned.views(stops), UInt64(stops.count))
        (options.chat, options.system) = (chat ? 1 : 0, pinned.view(system).data)
        options.beams = UInt32(beams)
        return options
    }
}

/// LoRA tensors; it never changes, and any number of tasks may use it at once.
public final class Adapter: Sendable {
    let handle: Handle
    init(_ made: OpaquePointer?) { handle = Handle(made, dllm_adapter_free) }
    /// An adapter folder as PEFT writes them.
    public convenience init(_ model: Model, _ dir: String) throws {
        var made: OpaquePointer?
        try check { dllm_adapter_open(model.handle.pointer, dir, &made, &$0) }
        self.init(made)
    }
    /// How many trained values it has.
    public var parameters: Int { dllm_adapter_n_parameters(handle.pointer) }
    /// Writes a folder that PEFT reads; a folder that is there is replaced in one step.
    public func save(_ dir: String) throws { try check { dllm_adapter_save(handle.pointer, dir, &$0) } }
}

/// A turn of a dialogue.
public struct Turn: Sendable {
    public var speaker: String, text: String, visual: String?, emotion: String?
    public init(_ speaker: String, _ text: String, visual: String? = nil, emotion: String? = nil) {
        (self.speaker, self.text, self.visual, self.emotion) = (speaker, text, visual, emotion)
    }
    func view(_ pinned: Pinned) -> dllm_turn {
        dllm_turn(speaker: pinned.view(speaker), text: pinned.view(text), visual: pinned.view(visual), emotion: pinned.view(emotion))
    }
}

/// Probabilities by label, in the classifier's order.
public struct Emotions: Sendable, Equatable {
    public let labels: [String], probabilities: [Float]
    /// The likeliest; the first of equals.
    public var best: (label: String, probability: Float) {
        var best = 0
        for (i, p) in probabilities.enumerated() where p > probabilities[best] { best = i }
        return (labels[best], probabilities[best])
    }
}

/// What names emotions; it never changes, and any number of tasks may use it at once.
public final class Classifier: Sendable {
    let handle: Handle
    public let labels: [String]

    fileprivate init(_ made: OpaquePointer?) {
        handle = Handle(made, dllm_classifier_free)
        labels = (0..<dllm_classifier_n_labels(made)).map { String(cString: dllm_classifier_label(made, $0)) }
    }

    /// The classifier that a folder describes.
    public convenience init(_ model: Model, _ dir: String) throws {
        var made: OpaquePointer?
        try check { dllm_classifier_open(model.handle.pointer, dir, &made, &$0) }
        self.init(made)
    }

    /// Labels of one's own; none: MELD's seven. `words` are what the model reads and writes for them; `template` is "dialogue",
    /// "dialoguellm" or TOML text; `window` is how many previous turns are shown and one more, 0 as the template says.
    public convenience init(
        _ model: Model, labels: [String] = [], words: [String] = [], template: String? = nil, window: UInt64 = 0, adapter: Adapter? = nil
    ) throws {
        precondition(words.isEmpty || words.count == labels.count, "as many words as labels")
        let pinned = Pinned()
        var options = dllm_classifier_options()
        options.struct_size = UInt32(MemoryLayout.size(ofValue: options))
        (options.labels, options.n_labels, options.words) = (pinned.views(labels), UInt32(labels.count), pinned.views(words))
        (options.template_text, options.window) = (pinned.view(template).data, window)
        var made: OpaquePointer?
        try withExtendedLifetime(pinned) {
            try check { dllm_classifier_new(model.handle.pointer, adapter?.handle.pointer, &options, &made, &$0) }
        }
        self.init(made)
    }

    private func rows(_ turns: Int, _ call: @escaping @Sendable (UnsafeMutablePointer<Float>, Int, OpaquePointer, inout OpaquePointer?) -> dllm_status) async throws -> [Emotions] {
        let (width, labels, cancel) = (labels.count, labels, try Cancel())
        return try await cancel.during {
            let room = UnsafeMutablePointer<Float>.allocate(capacity: max(turns * width, 1))
            defer { room.deallocate() }
            try check { call(room, turns * width, cancel.handle.pointer, &$0) }
            return (0..<turns).map { turn in
                Emotions(labels: labels, probabilities: (0..<width).map { room[turn * width + $0] })
            }
        }
    }

    /// The emotion of every turn of one dialogue.
    public func predict(_ turns: [Turn]) async throws -> [Emotions] {
        try await rows(turns.count) { [handle] room, n, cancel, error in
            let pinned = Pinned()
            let views = turns.map { $0.view(pinned) }
            return withExtendedLifetime(pinned) {
                dllm_classifier_predict(handle.pointer, views, views.count, cancel, room, n, &error)
            }
        }
    }

    /// The emotion of every turn of every dialogue.
    public func predictAll(_ data: Dataset) async throws -> [Emotions] {
        try await rows(data.turns) { [handle] room, n, cancel, error in
            dllm_classifier_predict_all(handle.pointer, data.handle.pointer, cancel, room, n, &error)
        }
    }
}

/// How `Classifier.why` finds out: by leaving out turns, or words too, or by gradients, which share the whole out among all words.
public enum Method: UInt32, Sendable { case turns, words, gradients }

extension Classifier {
    /// What made the last turn's label (by default the likeliest one): JSON, as `dllm_classifier_why` says.
    public func why(_ turns: [Turn], _ method: Method = .turns, label: String? = nil) async throws -> String {
        let number = try label.map { label in
            guard let number = labels.firstIndex(of: label) else {
                throw DialoguellmError(status: .notFound, description: "there is no label \(label) among \(labels)")
            }
            return number
        }
        let cancel = try Cancel()
        return try await cancel.during { [handle] in
            let pinned = Pinned()
            let views = turns.map { $0.view(pinned) }
            return try withExtendedLifetime(pinned) {
                try text {
                    dllm_classifier_why(
                        handle.pointer, views, views.count, number ?? -1, method.rawValue, cancel.handle.pointer, $0, &$1)
                }
            }
        }
    }
    /// Figures on labelled turns, as JSON.
    public func evaluate(_ data: Dataset) async throws -> String {
        let cancel = try Cancel()
        return try await cancel.during { [handle] in
            try text { dllm_classifier_evaluate(handle.pointer, data.handle.pointer, cancel.handle.pointer, $0, &$1) }
        }
    }
    /// The same with a temperature fitted on labelled turns: never those it is judged by.
    public func calibrated(on data: Dataset) async throws -> Classifier {
        let cancel = try Cancel()
        return try await cancel.during { [handle] in
            var made: OpaquePointer?
            try check { dllm_classifier_calibrate(handle.pointer, data.handle.pointer, cancel.handle.pointer, &made, &$0) }
            return Classifier(made)
        }
    }
    /// What label scores are divided by; 1 where nothing was calibrated.
    public var temperature: Double { dllm_classifier_temperature(handle.pointer) }
    /// Writes the folder that a classifier is opened from; there must be an adapter.
    public func save(_ dir: String) throws { try check { dllm_classifier_save(handle.pointer, dir, &$0) } }
}

/// One dialogue as it happens.
public actor Conversation {
    private let handle: Handle, cancel: Cancel, labels: [String]

    /// Of at most `within` tokens: the oldest turns are dropped then; 0: as many as the model's context holds.
    public init(_ classifier: Classifier, within tokens: Int = 0) throws {
        try self.init(classifier, tokens, saved: nil)
    }
    /// What save() wrote.
    public init(_ classifier: Classifier, restoring saved: String, within tokens: Int = 0) throws {
        try self.init(classifier, tokens, saved: saved)
    }
    private init(_ classifier: Classifier, _ tokens: Int, saved: String?) throws {
        let cancel = try Cancel()
        var options = dllm_conversation_options()
        options.struct_size = UInt32(MemoryLayout.size(ofValue: options))
        (options.cancel, options.context) = (cancel.handle.pointer, UInt64(tokens))
        var made: OpaquePointer?
        if let saved {
            try check { dllm_conversation_restore(classifier.handle.pointer, &options, saved, saved.utf8.count, &made, nil, &$0) }
        } else {
            try check { dllm_conversation_new(classifier.handle.pointer, &options, &made, &$0) }
        }
        (handle, self.cancel, labels) = (Handle(made, dllm_conversation_free), cancel, classifier.labels)
    }

    /// Listens to a turn, which costs its own tokens.
    public func add(_ turn: Turn) async throws {
        try await cancel.during { [handle] in
            let pinned = Pinned()
            var view = turn.view(pinned)
            try withExtendedLifetime(pinned) { try check { dllm_conversation_add_turn(handle.pointer, &view, nil, &$0) } }
        }
    }
    /// Listens to a turn of which there is a picture or a film: where the template shows what is seen and the turn does not say
    /// it, `describe` is asked, once. What it throws ends the call.
    public func add(_ turn: Turn, clip: String, describe: @escaping @Sendable (String) throws -> String?) async throws {
        final class Seer {
            let describe: @Sendable (String) throws -> String?, pinned: Pinned
            var thrown: Error?
            init(_ describe: @escaping @Sendable (String) throws -> String?, _ pinned: Pinned) { (self.describe, self.pinned) = (describe, pinned) }
        }
        try await cancel.during { [handle] in
            let pinned = Pinned()
            let seer = Seer(describe, pinned)
            var view = turn.view(pinned)
            let see: dllm_describe_fn = { user, _, clip, description in
                let seer = Unmanaged<Seer>.fromOpaque(user!).takeUnretainedValue()
                do {
                    description!.pointee = seer.pinned.view(try seer.describe(String(cString: clip!)))
                    return 0
                } catch {
                    seer.thrown = error
                    return 1
                }
            }
            try withExtendedLifetime(seer) {
                do {
                    let user = Unmanaged.passUnretained(seer).toOpaque()
                    try check { dllm_conversation_add_clip(handle.pointer, &view, clip, see, user, nil, &$0) }
                } catch {
                    throw seer.thrown ?? error
                }
            }
        }
    }
    /// The last turn's emotion.
    public func ask() async throws -> Emotions {
        try await cancel.during { [handle, labels] in
            var p = [Float](repeating: 0, count: labels.count)
            try check { dllm_conversation_ask(handle.pointer, &p, p.count, &$0) }
            return Emotions(labels: labels, probabilities: p)
        }
    }
    /// Listens to a turn and names its emotion.
    public func say(_ speaker: String, _ text: String) async throws -> Emotions {
        try await add(Turn(speaker, text))
        return try await ask()
    }
    /// Takes back the last turns.
    public func rollback(_ turns: Int = 1) throws { try check { dllm_conversation_rollback(handle.pointer, turns, &$0) } }
    /// The conversation as JSON.
    public func save() throws -> String {
        let pointer = handle.pointer
        return try text { dllm_conversation_save(pointer, $0, &$1) }
    }
    public var turns: Int { dllm_conversation_n_turns(handle.pointer) }
    public var tokens: Int { dllm_conversation_n_tokens(handle.pointer) }
}
