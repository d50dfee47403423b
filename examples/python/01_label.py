"""01: label a conversation. Usage: 01_label.py MODEL"""

import sys

import dialoguellm as dllm

turns = [("Ann", "We won! What a lovely day!"), ("Bo", "You won? I had no idea."), ("Ann", "You forgot. Again.")]
with dllm.Model(sys.argv[1]) as model, model.classifier() as classifier:  # MELD's seven labels
    for (speaker, _), p in zip(turns, classifier.predict(turns)):
        label = max(p, key=p.get)
        print(f"{speaker}: {label} {p[label]:.4f}")
