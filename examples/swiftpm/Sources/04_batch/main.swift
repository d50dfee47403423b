// 04: label every turn of a file of dialogues. Usage: 04_batch MODEL ADAPTER DIALOGUES.jsonl
import Dialoguellm

let arguments = CommandLine.arguments
let classifier = try Classifier(Model(arguments[1]), arguments[2])
let data = try Dataset("jsonl:" + arguments[3], split: "test")
var rows = try await classifier.predictAll(data)[...]
for dialogue in 0..<data.dialogues {
    let turns = data.turns(of: dialogue)
    print("\(dialogue): " + rows.prefix(turns).map(\.best.label).joined(separator: " "))
    rows = rows.dropFirst(turns)
}
