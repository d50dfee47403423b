import CDialoguellm

/// Dialogues, or prompts with completions.
public final class Dataset: Sendable {
    let handle: Handle
    /// "KIND:PATH", such as "meld:DIR" or "jsonl:FILE" (`dllm_dataset_open` in the header lists the kinds), and "train", "dev" or
    /// "test". A label that is not among `labels` is an error; none: a set's own, any for jsonl and log.
    public init(_ spec: String, split: String = "train", labels: [String] = []) throws {
        let pinned = Pinned()
        let names = pinned.views(labels)
        var made: OpaquePointer?
        try withExtendedLifetime(pinned) {
            try check { dllm_dataset_open(spec, split, names, labels.count, nil, &made, &$0) }
        }
        handle = Handle(made, dllm_dataset_free)
    }
    /// JSON lines in memory.
    public init(parsing jsonLines: String, labels: [String] = []) throws {
        let pinned = Pinned()
        let names = pinned.views(labels)
        var made: OpaquePointer?
        try withExtendedLifetime(pinned) {
            try check { dllm_dataset_parse(jsonLines, jsonLines.utf8.count, names, labels.count, nil, &made, &$0) }
        }
        handle = Handle(made, dllm_dataset_free)
    }
    /// All dialogues, as `parsing` reads them.
    public func jsonLines() throws -> String {
        let pointer = handle.pointer
        return try text { dllm_dataset_json_lines(pointer, $0, &$1) }
    }
    public var dialogues: Int { dllm_dataset_n_dialogues(handle.pointer) }
    /// Turns of all dialogues.
    public var turns: Int { dllm_dataset_n_turns(handle.pointer, Int(bitPattern: UInt.max)) }
    /// Turns of one dialogue.
    public func turns(of dialogue: Int) -> Int { dllm_dataset_n_turns(handle.pointer, dialogue) }
    /// Dialogues, turns, and turns of every label, as JSON.
    public func stats() throws -> String {
        var text: OpaquePointer?
        try check { dllm_dataset_stats(handle.pointer, &text, &$0) }
        return taken(text)
    }
    /// The figures on `judged`, as JSON, of a bag of words that learned from this: the bar that a model has to clear.
    public func baseline(judging judged: Dataset) throws -> String {
        var text: OpaquePointer?
        try check { dllm_dataset_baseline(handle.pointer, judged.handle.pointer, &text, &$0) }
        return taken(text)
    }
}

/// Whether answers `b` are better than answers `a` by more than chance, as JSON: the difference of their weighted F1, its 95 %
/// interval over resamples of whole dialogues (of single turns without `dialogueTurns`), and the part in which `b` is not
/// better. Labels are numbers below `labels`.
public func pairedBootstrap(
    labels: Int, gold: [UInt32], _ a: [UInt32], _ b: [UInt32], dialogueTurns: [Int]? = nil, resamples: Int = 10_000, seed: UInt64 = 0
) throws -> String {
    precondition(gold.count == a.count && gold.count == b.count, "as many answers as gold labels")
    var text: OpaquePointer?
    try check {
        dllm_paired_bootstrap(labels, gold, a, b, gold.count, dialogueTurns, dialogueTurns?.count ?? 0, resamples, seed, &text, &$0)
    }
    return taken(text)
}

/// A step of the optimiser, or a dev score.
public struct TrainingEvent: Sendable {
    public let isDev: Bool
    public let step: Int, steps: Int, epoch: Int
    public let loss: Double, gradientNorm: Double, learningRate: Double, seconds: Double, devScore: Double
    public let tokens: Int
    public let isBest: Bool, isDone: Bool
}

/// An adapter that is being trained.
public actor Trainer {
    private let handle: Handle, cancel: Cancel

    /// `recipe` is TOML text; `resume` a checkpoint's folder to go on with, `startingFrom` an adapter's to begin with.
    public init(
        _ model: Model, _ train: Dataset, dev: Dataset? = nil, recipe: String, resume: String? = nil, startingFrom: String? = nil,
        metrics: String? = nil, baseName: String? = nil
    ) throws {
        let (cancel, pinned) = (try Cancel(), Pinned())
        var options = dllm_trainer_options()
        options.struct_size = UInt32(MemoryLayout.size(ofValue: options))
        options.resume = pinned.view(resume).data
        options.init_adapter = pinned.view(startingFrom).data
        options.metrics = pinned.view(metrics).data
        options.base_name = pinned.view(baseName).data
        options.cancel = cancel.handle.pointer
        var made: OpaquePointer?
        try withExtendedLifetime(pinned) {
            try check {
                dllm_trainer_new(model.handle.pointer, train.handle.pointer, dev?.handle.pointer, recipe, recipe.utf8.count, &options, &made, &$0)
            }
        }
        (handle, self.cancel) = (Handle(made, dllm_trainer_free), cancel)
    }

    /// A step of the optimiser, or the dev score that is due.
    public func step() async throws -> TrainingEvent {
        try await cancel.during { [handle] in
            var report = dllm_train_report()
            report.struct_size = UInt32(MemoryLayout.size(ofValue: report))
            try check { dllm_trainer_step(handle.pointer, &report, &$0) }
            return TrainingEvent(
                isDev: report.kind == UInt32(DLLM_TRAIN_DEV), step: Int(report.step), steps: Int(report.steps), epoch: Int(report.epoch),
                loss: report.loss, gradientNorm: report.grad_norm, learningRate: report.learning_rate, seconds: report.seconds,
                devScore: report.dev_score, tokens: Int(report.tokens), isBest: report.is_best != 0, isDone: report.done != 0
            )
        }
    }

    /// Every step and dev score that is left; ends with the task that reads it.
    public nonisolated var events: AsyncThrowingStream<TrainingEvent, Error> {
        AsyncThrowingStream {
            if await self.isOver { return nil }
            return try await self.next()
        }
    }
    private var isOver = false
    private func next() async throws -> TrainingEvent {
        let event = try await step()
        isOver = event.isDone
        return event
    }

    /// The adapter as it is now; training may go on.
    public func adapter() throws -> Adapter {
        let pointer = handle.pointer
        var made: OpaquePointer?
        try check { dllm_trainer_adapter(pointer, &made, &$0) }
        return Adapter(made)
    }

    /// Writes a checkpoint; a kill leaves the old one or the new one.
    public func save(_ dir: String) throws { try check { dllm_trainer_save(handle.pointer, dir, &$0) } }

    /// Ends the run: `dir` becomes the folder for a classifier. What the run did, as JSON.
    @discardableResult
    public func finish(_ dir: String) async throws -> String {
        try await cancel.during { [handle] in
            try text { dllm_trainer_finish(handle.pointer, dir, $0, &$1) }
        }
    }
}
