"""02: a live chat, a turn a line as `Name: text`; Ctrl-C ends it after the turn. Usage: 02_live.py MODEL"""

import signal
import sys

import dialoguellm as dllm

cancel = dllm.Cancel()
signal.signal(signal.SIGINT, lambda *_: cancel.set())
with dllm.Model(sys.argv[1], cancel=cancel) as model, model.classifier().conversation(cancel=cancel) as talk:
    for line in sys.stdin:
        speaker, colon, text = line.rstrip("\n").partition(": ")
        if not colon:
            continue
        p = talk.say(speaker, text)  # costs this turn's tokens alone
        label = max(p, key=p.get)
        print(f"{label} {p[label]:.4f}", flush=True)
        if cancel.is_set:
            break
    print(f"{talk.n_turns} turns")
