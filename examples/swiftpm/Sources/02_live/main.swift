// 02: a live chat, a turn a line as `Name: text`; a cancelled task ends the call it waits for. Usage: 02_live MODEL
import Dialoguellm
import Foundation

let talk = try Conversation(Classifier(Model(CommandLine.arguments[1])))
while let line = readLine() {
    guard let colon = line.range(of: ": ") else { continue }
    // costs this turn's tokens alone
    let (label, p) = try await talk.say(String(line[..<colon.lowerBound]), String(line[colon.upperBound...])).best
    print("\(label) \(String(format: "%.4f", p))")
}
print("\(await talk.turns) turns")
