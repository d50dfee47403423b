// 03: train with progress, stop half-way, save, resume. Usage: 03_train MODEL TRAIN.jsonl OUT
import Dialoguellm
import Foundation

let recipe = "[lora]\nrank = 4\n[train]\nepochs = 1\nbatch = 25\nlearning_rate = 2e-3\n"
let arguments = CommandLine.arguments
let (model, data, out) = (try Model(arguments[1]), try Dataset("jsonl:" + arguments[2]), arguments[3])

func show(_ event: TrainingEvent) {
    print("step \(event.step) of \(event.steps): loss \(String(format: "%.4f", event.loss))")
}

let first = try Trainer(model, data, recipe: recipe)
for try await event in first.events {
    show(event)
    if event.step >= event.steps / 2 { break }
}
try await first.save(out)  // a kill leaves the old checkpoint or the new one

let second = try Trainer(model, data, recipe: recipe, resume: out)
for try await event in second.events { show(event) }
try await second.finish(out)
