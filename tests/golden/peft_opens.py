#!/usr/bin/env python3
"""What PEFT makes of an adapter folder that the library wrote: tests/peft_opens.rs runs this and compares.

    VENV/bin/python peft_opens.py MODEL ADAPTER ID...

Prints one JSON object: "logits" of the last token, in f32 with eager attention, and PEFT's own view of the configuration.
"""

import json
import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM


def main(model: str, adapter: str, ids: list) -> None:
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
    peft = PeftModel.from_pretrained(base, adapter).eval()
    config = peft.peft_config["default"]
    with torch.no_grad():
        logits = peft(torch.tensor([ids])).logits[0, -1]
    print(json.dumps({"logits": logits.tolist(), "rank": config.r, "alpha": config.lora_alpha}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], [int(i) for i in sys.argv[3:]])
