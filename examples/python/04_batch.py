"""04: label every turn of a file of dialogues. Usage: 04_batch.py MODEL ADAPTER DIALOGUES.jsonl"""

import sys

import dialoguellm as dllm

_, model_dir, adapter, file = sys.argv
data = dllm.Dataset(f"jsonl:{file}", "test")
rows = iter(dllm.Model(model_dir).classifier(adapter).predict_all(data))
for dialogue in range(len(data)):
    turns = (next(rows) for _ in range(data.n_turns(dialogue)))
    labels = [max(p, key=p.get) for p in turns]
    print(f"{dialogue}: {' '.join(labels)}")
