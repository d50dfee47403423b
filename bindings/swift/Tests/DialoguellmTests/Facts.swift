// One fact a test, named as a sentence. DLLM_TINY names the tiny model's folder.

import Dialoguellm
import Foundation
import Testing

private let data = """
    {"turns":[{"speaker":"Ann","text":"We won!","emotion":"joy"},{"speaker":"Bo","text":"Leave me alone.","emotion":"anger"}]}
    {"turns":[{"speaker":"Cy","text":"Oh! What was that?","emotion":"surprise"}]}
    """
private let recipe = "[lora]\nrank = 2\n[train]\nepochs = 2\nbatch = 1\n"

private func model() throws -> Model {
    try Model(ProcessInfo.processInfo.environment["DLLM_TINY"] ?? "../../examples/tiny/model", runtime: Runtime(threads: 2, device: .cpu))
}

private func folder() throws -> String {
    let url = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
    try FileManager.default.createDirectory(at: url, withIntermediateDirectories: true)
    return url.path
}

@Test func aTurnIsTheSameAloneAndInAConversation() async throws {
    let classifier = try Classifier(model())
    let alone = try await classifier.predict([Turn("Ann", "We won!"), Turn("Bo", "Leave me alone.")])
    let talk = try Conversation(classifier)
    #expect(try await talk.say("Ann", "We won!") == alone[0])
    #expect(try await talk.say("Bo", "Leave me alone.") == alone[1])
    let again = try Conversation(classifier, restoring: await talk.save())
    #expect(try await again.ask() == alone[1])
    try await talk.rollback()
    #expect(await talk.turns == 1)
    #expect(try await talk.ask() == alone[0])
}

// DLLM_BITS names the probability bits that every language gets with DLLM_ISA=portable.
@Test(.enabled(if: ProcessInfo.processInfo.environment["DLLM_BITS"] != nil))
func probabilitiesHaveTheBitsOfAllLanguages() async throws {
    let classifier = try Classifier(model())
    let alone = try await classifier.predict([Turn("Ann", "We won!"), Turn("Bo", "Leave me alone.")])
    let bits = alone[1].probabilities.map { String(format: "%08x", $0.bitPattern) }
    let want = try String(contentsOfFile: ProcessInfo.processInfo.environment["DLLM_BITS"]!, encoding: .utf8)
    #expect(bits == want.split(whereSeparator: \.isWhitespace).map(String.init))
}

@Test func whatIsSeenIsAskedOnceAndWhatIsThrownGoesThrough() async throws {
    struct Broken: Error {}
    let classifier = try Classifier(model())
    let (talk, told) = (try Conversation(classifier), try Conversation(classifier))
    try await talk.add(Turn("Ann", "We won!"), clip: "clip.mp4") { clip in "Ann jumps in \(clip)." }
    try await told.add(Turn("Ann", "We won!", visual: "Ann jumps in clip.mp4."))
    #expect(try await talk.ask() == told.ask())
    await #expect(throws: Broken.self) { try await talk.add(Turn("Bo", "Why?"), clip: "") { _ in throw Broken() } }
    #expect(await talk.turns == 1)
}

@Test func dataAreCountedJudgedAndCompared() throws {
    let set = try Dataset(parsing: data)
    #expect(try set.stats().contains("\"turns\":3"))
    let lines = try set.jsonLines()
    #expect(try Dataset(parsing: lines, labels: ["joy", "anger", "surprise"]).jsonLines() == lines)
    #expect(throws: DialoguellmError.self) { try Dataset(parsing: lines, labels: ["joy"]) }
    #expect(try set.baseline(judging: set).contains("\"accuracy\":1.0"))
    #expect(try pairedBootstrap(labels: 2, gold: [0, 1, 1], [0, 0, 0], [0, 1, 1], dialogueTurns: [2, 1], resamples: 100).contains("\"not_better\":0.0"))
}

@Test func aFailureIsThrownWithStatusAndSentence() throws {
    do {
        _ = try Model("no/such/folder")
        Issue.record("a folder that is not there was opened")
    } catch let error as DialoguellmError {
        #expect(error.status == .notFound && error.description.contains("no/such/folder"))
    }
}

@Test func textIsStreamed() async throws {
    var pieces: [String] = []
    for try await piece in try model().generate("Ann: We", .init(maxTokens: 8)) { pieces.append(piece) }
    #expect(!pieces.joined().isEmpty)
    var beams = GenerateOptions(maxTokens: 8)
    beams.beams = 3
    pieces = []
    for try await piece in try model().generate("Ann: We", beams) { pieces.append(piece) }
    #expect(pieces.count == 1)
}

@Test func aChatHasASystemMessage() async throws {
    func whole(_ prompt: String, _ options: GenerateOptions) async throws -> String {
        var whole = ""
        for try await piece in try model().generate(prompt, options) { whole += piece }
        return whole
    }
    let plain = "System: Be kind.\nUser: We won!\nAssistant:"  // as the tiny model's template has it
    let chat = try await whole("We won!", .init(maxTokens: 8, chat: true, system: "Be kind."))
    #expect(try await whole(plain, .init(maxTokens: 8)) == chat)
    await #expect(throws: DialoguellmError.self) { try await whole("We won!", .init(system: "Be kind.")) }
}

@Test func tokensHaveLogitsAndContinuationsScores() async throws {
    let model = try model()
    let ids = try model.tokenize("We won!")
    #expect(try model.detokenize(ids) == "We won!" && model.tokenize("").isEmpty)
    let logits = try await model.logits(after: ids)
    #expect(logits.count == model.vocabularySize)
    #expect(try model.info().contains("vocab"))
    let scores = try await model.score("We won!", continuations: [" Yes", " No"])
    let next = try model.tokenize("We won! Yes").dropFirst(ids.count)
    let sum = logits.map { exp(Double($0)) }.reduce(0, +)
    #expect(next.count > 1 || abs(scores[0] - (Double(logits[Int(next.first!)]) - log(sum))) < 1e-3)
}

@Test func anAdapterIsTakenSavedAndOpened() async throws {
    let (model, set, dir, labels) = (try model(), try Dataset(parsing: data), try folder() + "/adapter", ["joy", "anger", "surprise"])
    let trainer = try Trainer(model, set, recipe: recipe)
    _ = try await trainer.step()
    let adapter = try await trainer.adapter()
    #expect(adapter.parameters > 1000)
    try adapter.save(dir)
    func with(_ adapter: Adapter) throws -> Classifier {
        try Classifier(model, labels: labels, words: ["glad", "angry", "oh"], window: 2, adapter: adapter)
    }
    let own = try with(adapter)
    let (rows, again) = try await (own.predictAll(set), with(Adapter(model, dir)).predictAll(set))
    #expect(rows == again)
    let said = [Turn("Ann", "We won!"), Turn("Bo", "I see")]
    for (method, want) in [(Method.turns, "\"words\":[]"), (.words, "\"won!\""), (.gradients, "\"integral\"")] {
        #expect(try await own.why(said, method, label: own.labels[0]).contains(want))
    }
    await #expect(throws: DialoguellmError.self) { try await own.why(said, label: "envy") }
    #expect(try await own.evaluate(set).contains("weighted_f1"))
    let calibrated = try await own.calibrated(on: set)
    #expect(own.temperature == 1 && calibrated.temperature != 1)
    try calibrated.save(dir)
    let opened = try Classifier(model, dir)
    #expect(opened.temperature == calibrated.temperature && opened.labels == labels)
    let talk = try Conversation(calibrated, within: 64)
    _ = try await talk.say("Ann", "We won!")
    #expect(await talk.tokens > 0)
}

@Test func trainingIsALoopAndResumesToTheSameBits() async throws {
    let (model, set, work) = (try model(), try Dataset(parsing: data), try folder())
    #expect(set.dialogues == 2 && set.turns == 3 && set.turns(of: 0) == 2)
    let whole = try Trainer(model, set, dev: set, recipe: recipe)
    var (steps, devs) = (0, 0)
    for try await event in whole.events { if event.isDev { devs += 1 } else { steps += 1 } }
    #expect(steps == 4 && devs == 2)
    try await whole.finish(work + "/whole")
    let first = try Trainer(model, set, dev: set, recipe: recipe)
    _ = try await first.step()
    try await first.save(work + "/stopped")
    let second = try Trainer(model, set, dev: set, recipe: recipe, resume: work + "/stopped")
    for try await _ in second.events {}
    try await second.finish(work + "/resumed")
    let rows = try await [Classifier(model, work + "/whole").predictAll(set), Classifier(model, work + "/resumed").predictAll(set)]
    #expect(rows[0] == rows[1])
    let tiny = ProcessInfo.processInfo.environment["DLLM_TINY"] ?? "../../examples/tiny/model"
    try await merge(model: tiny, adapter: work + "/whole", to: work + "/merged")
    try await quantize(model: work + "/merged", to: work + "/small", bits: 4) { done, all in all == 28 && done <= all }
    let small = try Classifier(Model(work + "/small"), work + "/small")
    #expect(try small.labels == Classifier(model, work + "/whole").labels)
    await #expect(throws: DialoguellmError.self) { try await quantize(model: work + "/merged", to: work + "/none") { _, _ in false } }
    await #expect(throws: DialoguellmError.self) { try await importGGUF("no/such/file", to: work + "/none") }
    #expect(try estimate(tiny, precision: .int8).weights < estimate(tiny).weights)
    _ = try Model(tiny, precision: .int8)
}

@Test func aCancelledTaskEndsTheCall() async throws {
    let trainer = try Trainer(model(), Dataset(parsing: data), recipe: "[train]\nepochs = 1000000\n")
    let task = Task { while true { _ = try await trainer.step() } }
    try await Task.sleep(for: .milliseconds(50))
    task.cancel()
    await #expect(throws: CancellationError.self) { try await task.value }
    _ = try await trainer.step()  // it goes on
}
