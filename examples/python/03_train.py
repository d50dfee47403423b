"""03: train with progress, stop half-way, save, resume. Usage: 03_train.py MODEL TRAIN.jsonl OUT"""

import sys

import dialoguellm as dllm

RECIPE = "[lora]\nrank = 4\n[train]\nepochs = 1\nbatch = 25\nlearning_rate = 2e-3\n"
_, model_dir, train, out = sys.argv
model, data = dllm.Model(model_dir), dllm.Dataset(f"jsonl:{train}")

with model.trainer(data, recipe=RECIPE) as trainer:
    for event in trainer:
        print(f"step {event.step} of {event.steps}: loss {event.loss:.4f}")
        if event.step >= event.steps // 2:
            break
    trainer.save(out)  # a kill leaves the old checkpoint or the new one

with model.trainer(data, recipe=RECIPE, resume=out) as trainer:
    for event in trainer:
        print(f"step {event.step} of {event.steps}: loss {event.loss:.4f}")
    trainer.finish(out)
