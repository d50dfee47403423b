// 01: label a conversation. Usage: 01_label MODEL
import Dialoguellm
import Foundation

let classifier = try Classifier(Model(CommandLine.arguments[1]))  // MELD's seven labels
let turns = [Turn("Ann", "We won! What a lovely day!"), Turn("Bo", "You won? I had no idea."), Turn("Ann", "You forgot. Again.")]
for (turn, emotions) in zip(turns, try await classifier.predict(turns)) {
    let (label, p) = emotions.best
    print("\(turn.speaker): \(label) \(String(format: "%.4f", p))")
}
