"""Beam search: what transformers' generate(num_beams=..) finds on the model variants, every sequence with its score."""

import itertools
import json

import torch
from peft import PeftModel

import golden_common as common

# name of the variant, whether with its adapter, seed of the prompt
MODELS = [("gqa", False, 0), ("gqa", True, 1), ("untied", False, 2), ("vocab_padding", True, 3)]
# Each is what a wrong reading of one setting would miss; the last is what DialogueLLM's code decodes with.
SETTINGS = [
    dict(num_beams=1, max_new_tokens=12),
    dict(num_beams=4, max_new_tokens=12),
    dict(num_beams=3, max_new_tokens=16, repetition_penalty=1.3),
    dict(num_beams=4, max_new_tokens=16, length_penalty=0.0),
    dict(num_beams=4, max_new_tokens=16, length_penalty=2.0),
    dict(num_beams=4, max_new_tokens=16, length_penalty=-1.0),
    dict(num_beams=5, max_new_tokens=16, early_stopping=True),
    dict(num_beams=4, max_new_tokens=24, repetition_penalty=1.15),
]


def load(name: str, adapter: bool, dtype: torch.dtype) -> torch.nn.Module:
    model = common.load(name, dtype)
    return PeftModel.from_pretrained(model, f"{name}/adapter").to(dtype).eval() if adapter else model


def search(model: torch.nn.Module, prompt: list, settings: dict, ends: list) -> tuple[list, list]:
    """All beams that are returned, without what pads them, and their scores."""
    ids = torch.tensor([prompt])
    with torch.no_grad():
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, eos_token_id=ends or None, pad_token_id=0,
            num_return_sequences=settings["num_beams"], return_dict_in_generate=True, output_scores=True, **settings)
    sequences = [cut(row[len(prompt):].tolist(), ends) for row in out.sequences]
    if settings["num_beams"] == 1:  # transformers then draws greedily, and has no scores of sequences
        return sequences, None
    return sequences, [float(score) for score in out.sequences_scores]


def cut(tokens: list, ends: list) -> list:
    """Up to the first end token, which stays."""
    at = next((i for i, token in enumerate(tokens) if token in ends), len(tokens) - 1)
    return tokens[: at + 1]


def ends_of(model: torch.nn.Module, prompt: list) -> list:
    """Two tokens that likely continuations have, so that beams end at several lengths."""
    sequences, _ = search(model, prompt, dict(num_beams=6, max_new_tokens=8), [])
    seen = list(itertools.chain.from_iterable(sequence[2:] for sequence in sequences))
    return sorted(sorted(set(seen), key=lambda token: (-seen.count(token), token))[1:3])


def make_beams() -> None:
    cases = []
    for name, adapter, seed in MODELS:
        g = common.seed(6000 + seed)
        model, exact = load(name, adapter, torch.float32), load(name, adapter, torch.float64)
        prompt = torch.randint(3, 60, (7,), generator=g).tolist()
        for ends in ([], ends_of(model, prompt)):
            for settings in SETTINGS:
                sequences, scores = search(model, prompt, settings, ends)
                assert (sequences, True) == (search(exact, prompt, settings, ends)[0], True), f"{name}: rounding decides {settings}"
                cases.append({"variant": name, "adapter": adapter, "prompt": prompt, "ends": ends, **settings,
                              "sequences": sequences, "scores": scores})
    check(cases)
    common.fresh("beams")
    lines = ",\n".join(json.dumps(case) for case in cases)
    (common.HERE / "beams" / "cases.json").write_text(f"[\n{lines}\n]\n")
    print(f"beams           {len(cases)} searches")


def check(cases: list) -> None:
    """Every setting must change some answer, and beams must end both ways."""
    def answers(**wanted):
        return [(case["sequences"], case["scores"]) for case in cases if all(case.get(key) == value for key, value in wanted.items())]

    ended = [case for case in cases if case["ends"] and len({len(s) for s in case["sequences"]}) > 1]
    assert len(ended) > 8, "beams rarely end at different lengths"
    by_setting = [answers(**settings) for settings in SETTINGS]
    for one, other in itertools.combinations(range(len(SETTINGS)), 2):
        assert by_setting[one] != by_setting[other], f"{SETTINGS[one]} and {SETTINGS[other]} answer alike"
