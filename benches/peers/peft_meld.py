#!/usr/bin/env python3
"""The peer: PEFT fine-tunes a small LLaMA on MELD's linear prompts, one prompt for every utterance.

    python peft_meld.py --model DIR --out RUN.json                     train, then label dev and test; one run per seed
    python peft_meld.py --model DIR --out RUN.json --epochs 0          label with the base model
    python peft_meld.py --model DIR --project 60 --history all         time 60 batches spread over the lengths, project an epoch

A prompt is one instruction line, up to --history previous utterances and the target as "Speaker: text" lines (white space collapsed), then
`Emotion of SPEAKER in "TEXT":` (`Emotion of SPEAKER:` with --question short, `(` with --question one); the answer is " label", one token, and the loss is on it
alone. Logits are computed for that row only and batches hold prompts of like length where --order says so: the peer is given what makes it fast.

MELD is read from $DLLM_DATA/meld (default: ../shared/data beside the repository). RUN.json holds, per seed, the settings,
metrics, and for each utterance of dev and test the gold label, the prediction and seven log-probabilities (for a paired
bootstrap), but no text. Peak resident memory is that of the whole process.
"""

import argparse
import csv
import json
import math
import os
import random
import resource
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score
from transformers import AutoModelForCausalLM, AutoTokenizer, get_cosine_schedule_with_warmup

LABELS = ["neutral", "joy", "surprise", "anger", "sadness", "disgust", "fear"]
INSTRUCTION = "Classify the emotion of the last utterance as neutral, joy, surprise, anger, sadness, disgust or fear.\n"
QUESTIONS = {"repeat": 'Emotion of {speaker} in "{text}":', "short": "Emotion of {speaker}:", "one": "("}
TARGETS = {"qv": ["q_proj", "v_proj"], "qkvo": ["q_proj", "k_proj", "v_proj", "o_proj"], "all": "all-linear"}
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Example:
    """One utterance: its prompt's ids, its label's index, and where it stands in the released file."""

    ids: list
    label: int
    key: str


def read_dialogues(split: str) -> list:
    """Rows grouped by Dialogue_ID, in file order; Utterance_ID has gaps, so the row before is the utterance before."""
    folder = Path(os.environ.get("DLLM_DATA", ROOT.parent / "shared" / "data")) / "meld"
    dialogues, last = [], None
    with open(folder / f"{split}_sent_emo.csv", encoding="utf-8", newline="") as f:
        for row in csv.DictReader(f):
            if row["Dialogue_ID"] != last:
                dialogues.append([])
                last = row["Dialogue_ID"]
            row["Utterance"] = " ".join(row["Utterance"].split())  # the released text has double spaces
            dialogues[-1].append(row)
    return dialogues


def prompt(turns: list, i: int, history: int | None, question: str) -> str:
    first = 0 if history is None else max(0, i - history)
    lines = "".join(f"{t['Speaker']}: {t['Utterance']}\n" for t in turns[first : i + 1])
    return INSTRUCTION + lines + QUESTIONS[question].format(speaker=turns[i]["Speaker"], text=turns[i]["Utterance"])


def examples(split: str, tokenizer, history: int | None, question: str) -> list:
    out = []
    for turns in read_dialogues(split):
        for i, turn in enumerate(turns):
            ids = tokenizer(prompt(turns, i, history, question), add_special_tokens=False).input_ids
            out.append(Example(ids, LABELS.index(turn["Emotion"]), f"{turn['Dialogue_ID']}/{turn['Utterance_ID']}"))
    return out


def label_tokens(tokenizer) -> torch.Tensor:
    ids = [tokenizer(f" {label}", add_special_tokens=False).input_ids for label in LABELS]
    assert all(len(i) == 1 for i in ids), f"every label must be one token, got {ids}"
    return torch.tensor([i[0] for i in ids])


def ordered_batches(data: list, size: int, order: str, r: random.Random) -> list:
    """Batches of one epoch. `grouped`: shuffled, then sorted by length within 50 batches, as Trainer groups by length."""
    shuffled = r.sample(data, len(data))
    if order == "grouped":
        pools = [shuffled[i : i + 50 * size] for i in range(0, len(data), 50 * size)]
        shuffled = [e for pool in pools for e in sorted(pool, key=lambda e: -len(e.ids))]
    batches = [shuffled[i : i + size] for i in range(0, len(data), size)]
    return r.sample(batches, len(batches)) if order == "grouped" else batches


def sorted_batches(data: list, size: int) -> list:
    by_length = sorted(data, key=lambda e: len(e.ids))
    return [by_length[i : i + size] for i in range(0, len(data), size)]


def label_logits(model: torch.nn.Module, batch: list) -> torch.Tensor:
    """[B, V] logits of each prompt's last row; right padding, which causal attention does not see."""
    lengths = torch.tensor([len(e.ids) for e in batch])
    ids = torch.zeros(len(batch), int(lengths.max()), dtype=torch.long)
    for row, e in zip(ids, batch):
        row[: len(e.ids)] = torch.tensor(e.ids)
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = causal.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    return causal.lm_head(hidden[torch.arange(len(batch)), lengths - 1]).float()


def open_model(args, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(args.model, dtype=DTYPES[args.dtype])
    if args.epochs == 0 and not args.project:
        return base
    config = LoraConfig(task_type="CAUSAL_LM", r=args.rank, lora_alpha=args.alpha, lora_dropout=args.dropout, target_modules=TARGETS[args.targets])
    model = get_peft_model(base, config, autocast_adapter_dtype=False).train()
    for p in model.parameters():
        if p.requires_grad:
            p.data = p.data.to(DTYPES[args.adapter_dtype])
    if args.checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if args.compile:
        for layer in model.get_base_model().model.layers:  # one layer's code serves all: the whole stack takes minutes more
            layer.compile(dynamic=True)
    return model


class Optimiser:
    """AdamW without decay, cosine with warm-up, clipping: one call a step."""

    def __init__(self, model: torch.nn.Module, args, steps: int):
        self.params = [p for p in model.parameters() if p.requires_grad]
        self.adam = torch.optim.AdamW(self.params, lr=args.lr, weight_decay=0.0)
        self.schedule = get_cosine_schedule_with_warmup(self.adam, math.ceil(args.warmup * steps), steps)

    def step(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.params, 1.0)
        self.adam.step()
        self.schedule.step()
        self.adam.zero_grad()


def train_step(model, optimiser: Optimiser, batch: list, labels: torch.Tensor) -> float:
    loss = F.cross_entropy(label_logits(model, batch), labels[torch.tensor([e.label for e in batch])])
    loss.backward()
    optimiser.step()
    return loss.item()


def train(model, args, seed: int, data: list, labels: torch.Tensor) -> dict:
    r, start, tokens, step = random.Random(seed), time.perf_counter(), 0, 0
    steps = args.epochs * math.ceil(len(data) / args.batch)
    optimiser = Optimiser(model, args, steps)
    for _ in range(args.epochs):
        for batch in ordered_batches(data, args.batch, args.order, r):
            loss = train_step(model, optimiser, batch, labels)
            tokens, step = tokens + sum(len(e.ids) for e in batch), step + 1
            if step % args.report == 0 or step == args.max_steps:
                print(f"seed {seed} step {step}/{steps} loss {loss:.4f} {tokens / (time.perf_counter() - start):.0f} tokens/s", flush=True)
            if step == args.max_steps:
                return {"seconds": time.perf_counter() - start, "tokens": tokens, "steps": step}
    return {"seconds": time.perf_counter() - start, "tokens": tokens, "steps": step}


@torch.no_grad()
def label_all(model, data: list, labels: torch.Tensor, size: int) -> dict:
    """Log-probabilities among the seven labels for every example, in the order of the file."""
    model.eval()
    start, where = time.perf_counter(), {e.key: i for i, e in enumerate(data)}
    log_probs = torch.empty(len(data), len(LABELS))
    for batch in sorted_batches(data, size):
        log_probs[[where[e.key] for e in batch]] = torch.log_softmax(label_logits(model, batch)[:, labels], -1)
    return summary(data, log_probs) | {"seconds": time.perf_counter() - start}


def summary(data: list, log_probs: torch.Tensor) -> dict:
    gold, names = [e.label for e in data], list(range(len(LABELS)))
    predicted = log_probs.argmax(-1).tolist()
    f1 = {kind: f1_score(gold, predicted, labels=names, average=kind, zero_division=0) for kind in ("weighted", "macro", None)}
    return {
        "n": len(data), "accuracy": accuracy_score(gold, predicted), "weighted_f1": f1["weighted"], "macro_f1": f1["macro"],
        "per_label_f1": dict(zip(LABELS, f1[None].tolist())), "nll": F.nll_loss(log_probs, torch.tensor(gold)).item(),
        "confusion": confusion_matrix(gold, predicted, labels=names).tolist(),
        "utterances": [{"key": e.key, "gold": LABELS[e.label], "predicted": LABELS[p], "log_probs": [round(x, 5) for x in row]}
                       for e, p, row in zip(data, predicted, log_probs.tolist())],
    }


def project(args, data: list, labels: torch.Tensor) -> dict:
    """Times --project training batches at even steps through the batches sorted by length; their mean stands for all."""
    model, batches = open_model(args, args.seeds[0]), sorted_batches(data, args.batch)
    optimiser = Optimiser(model, args, len(batches))
    chosen = sorted({round((i + 0.5) * len(batches) / args.project - 0.5) for i in range(min(args.project, len(batches)))})
    for warm in chosen if args.compile else (chosen[0], chosen[-1]):  # the compiler meets every shape before the clock runs
        train_step(model, optimiser, batches[warm], labels)
    seconds = []
    for i in random.Random(0).sample(chosen, len(chosen)):  # mixed, so that a slow minute of the machine hits no one length
        start = time.perf_counter()
        train_step(model, optimiser, batches[i], labels)
        seconds.append(time.perf_counter() - start)
        print(f"batch {i:4} of {len(batches)}: {sum(len(e.ids) for e in batches[i]):6} tokens {seconds[-1]:.2f} s", flush=True)
    return projection(seconds, batches, chosen)


def projection(seconds: list, batches: list, chosen: list) -> dict:
    mean = sum(seconds) / len(seconds)
    deviation = math.sqrt(sum((s - mean) ** 2 for s in seconds) / max(len(seconds) - 1, 1))
    tokens = sum(len(e.ids) for b in batches for e in b)
    timed = sum(len(e.ids) for i in chosen for e in batches[i])
    return {"batches_timed": len(seconds), "batches": len(batches), "epoch_tokens": tokens, "timed_tokens": timed,
            "tokens_per_second": timed / sum(seconds), "epoch_seconds": mean * len(batches),
            "epoch_seconds_standard_error": deviation / math.sqrt(len(seconds)) * len(batches)}


def peak_rss_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def run_seed(args, seed: int, splits: dict, labels: torch.Tensor) -> dict:
    model = open_model(args, seed)
    result = {"seed": seed}
    if args.epochs:
        result["train"] = train(model, args, seed, splits["train"], labels)
        result["train"]["peak_rss_gib"] = peak_rss_gib()
    for split in ("dev", "test"):
        result[split] = label_all(model, splits[split], labels, args.eval_batch)
        print(f"seed {seed} {split}: weighted F1 {100 * result[split]['weighted_f1']:.2f} accuracy {100 * result[split]['accuracy']:.2f}", flush=True)
    return result


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True, help="Hugging Face folder")
    p.add_argument("--out", help="JSON file to write; required unless --project")
    p.add_argument("--history", default="5", help="previous utterances in the prompt: a number or all")
    p.add_argument("--question", choices=QUESTIONS, default="repeat", help="repeat and short name the speaker; one is the dialogue recipe's")
    p.add_argument("--rank", type=int, default=16)
    p.add_argument("--alpha", type=int, default=32)
    p.add_argument("--dropout", type=float, default=0.0)
    p.add_argument("--targets", choices=TARGETS, default="all")
    p.add_argument("--dtype", choices=DTYPES, default="bf16", help="of the base")
    p.add_argument("--adapter-dtype", choices=DTYPES, default="bf16")
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--eval-batch", type=int, default=32)
    p.add_argument("--epochs", type=int, default=1)
    p.add_argument("--lr", type=float, default=5e-4)
    p.add_argument("--warmup", type=float, default=0.06, help="ratio of the steps")
    p.add_argument("--order", choices=["shuffled", "grouped"], default="shuffled")
    p.add_argument("--seeds", type=int, nargs="+", default=[0])
    p.add_argument("--project", type=int, default=0, metavar="N", help="time N batches instead of training")
    p.add_argument("--compile", action="store_true", help="torch.compile the decoder layers")
    p.add_argument("--checkpointing", action="store_true", help="recompute activations: the least memory")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--report", type=int, default=25, help="steps between progress lines")
    p.add_argument("--max-steps", type=int, default=0, help="stop early (a smoke test)")
    p.add_argument("--limit-eval", type=int, default=0, help="label only the first N utterances (a smoke test)")
    args = p.parse_args()
    if not args.project and not args.out:
        p.error("--out is needed to keep the predictions")
    return args


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", category=FutureWarning)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    history = None if args.history == "all" else int(args.history)
    splits = {s: examples(s, tokenizer, history, args.question) for s in (["train"] if args.project else ["train", "dev", "test"])}
    labels = label_tokens(tokenizer)
    print(f"train: {len(splits['train'])} prompts, {sum(len(e.ids) + 1 for e in splits['train'])} tokens with the labels")
    settings = {k: v for k, v in vars(args).items() if k not in ("model", "out")}
    if args.project:
        report = {"settings": settings, "projection": project(args, splits["train"], labels), "peak_rss_gib": peak_rss_gib()}
        print(json.dumps(report["projection"] | {"peak_rss_gib": report["peak_rss_gib"]}, indent=2))
    else:
        for s in ("dev", "test"):
            splits[s] = splits[s][: args.limit_eval or None]
        report = {"settings": settings, "runs": [run_seed(args, seed, splits, labels) for seed in args.seeds], "peak_rss_gib": peak_rss_gib()}
        print(f"peak resident memory {report['peak_rss_gib']:.2f} GiB")
    if args.out:
        Path(args.out).write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main()
