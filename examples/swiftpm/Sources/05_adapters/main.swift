// 05: several adapters on one model, whose weights are there once. Usage: 05_adapters MODEL ADAPTER..
import Dialoguellm
import Foundation

let model = try Model(CommandLine.arguments[1])
for (i, adapter) in CommandLine.arguments.dropFirst(2).enumerated() {
    let turn = Turn("Ann", "They're turning it down! We keep it!")
    let (label, p) = try await Classifier(model, adapter).predict([turn])[0].best
    print("adapter \(i + 1): \(label) \(String(format: "%.4f", p))")
}
