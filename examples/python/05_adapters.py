"""05: several adapters on one model, whose weights are there once. Usage: 05_adapters.py MODEL ADAPTER.."""

import sys

import dialoguellm as dllm

model = dllm.Model(sys.argv[1])
for i, adapter in enumerate(sys.argv[2:], 1):
    p = model.classifier(adapter).predict([("Ann", "They're turning it down! We keep it!")])[0]
    label = max(p, key=p.get)
    print(f"adapter {i}: {label} {p[label]:.4f}")
