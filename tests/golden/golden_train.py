"""Training runs of PEFT on the `gqa` model: twenty AdamW steps each, every number a trainer has to reproduce.

A hand-written loop makes the files; every case is then repeated by transformers' own Trainer and in f64. The first
shows that the loop does what Trainer does, the second how much of the allowed distance rounding alone takes.
"""

import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, get_scheduler

import golden_common as common
from golden_common import IGNORE

MODEL = "gqa"
VOCAB = 61
STEPS = 20


@dataclass
class Case:
    """The settings of one run, by transformers' names; all of it goes into case.json."""

    lora: dict
    learning_rate: float
    lr_scheduler_type: str
    warmup: float = 0  # below 1: a ratio of the steps, rounded up; else steps
    lr_scheduler_kwargs: dict = field(default_factory=dict)
    betas: tuple = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0  # 0: no clipping
    accumulation: int = 1
    micro_batches: int = STEPS  # in one epoch, always in file order
    epochs: int = 1


CASES = {
    "linear": Case(dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]), 2e-3, "linear", warmup=3),
    "cosine_min": Case(dict(r=3, lora_alpha=6, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]), 1e-3,
                       "cosine_with_min_lr", warmup=0.12, lr_scheduler_kwargs={"min_lr_rate": 0.1}),
    "constant": Case(dict(r=2, lora_alpha=4, target_modules=["gate_proj", "up_proj", "down_proj"]), 3e-3, "constant",
                     betas=(0.9, 0.999), max_grad_norm=0.0),
    "accumulate": Case(dict(r=3, lora_alpha=3, target_modules=["q_proj", "o_proj", "down_proj"]), 2e-3, "linear", warmup=2,
                       accumulation=3, micro_batches=10, epochs=5),
    "clip": Case(dict(r=4, lora_alpha=2, use_rslora=True,
                      target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]),
                 3e-3, "cosine", warmup=0.06, max_grad_norm=0.5),
}


def make_batches(case: Case, g: torch.Generator) -> list:
    """Micro-batches of 1 to 3 sequences, 5 to 20 tokens, with very different numbers of targets."""
    return [[make_sequence(g) for _ in range(pick(1, 4, g))] for _ in range(case.micro_batches)]


def make_sequence(g: torch.Generator) -> tuple:
    ids = torch.randint(0, VOCAB, (pick(5, 21, g),), generator=g)
    labels = ids.clone()
    labels[: pick(0, len(ids) - 1, g)] = IGNORE  # from the whole sequence down to one target
    return ids, labels


def pick(low: int, high: int, g: torch.Generator) -> int:
    return int(torch.randint(low, high, (1,), generator=g))


def pad(batch: list) -> dict:
    """Right padding without loss; causal attention makes it invisible to the real tokens."""
    length = max(len(ids) for ids, _ in batch)
    rows = [(F.pad(i, (0, length - len(i))), F.pad(y, (0, length - len(y)), value=IGNORE), len(i)) for i, y in batch]
    mask = torch.tensor([[int(t < n) for t in range(length)] for *_, n in rows])
    return {"input_ids": torch.stack([r[0] for r in rows]), "labels": torch.stack([r[1] for r in rows]), "attention_mask": mask}


def accumulated(case: Case, batches: list) -> list:
    """The micro-batches of every optimiser step; an epoch's last step takes what is left."""
    per_epoch = [batches[i : i + case.accumulation] for i in range(0, len(batches), case.accumulation)]
    return per_epoch * case.epochs


def targets(micro: dict) -> int:
    """A sequence's first label predicts nothing: only shifted labels count."""
    return int((micro["labels"][:, 1:] != IGNORE).sum())


def backward(model: torch.nn.Module, micro: dict, count: int) -> float:
    """Adds the gradient of (sum of cross entropies / all targets of the step)."""
    logits = model(input_ids=micro["input_ids"], attention_mask=micro["attention_mask"], use_cache=False).logits
    flat = logits[:, :-1].reshape(-1, logits.shape[-1])
    loss = F.cross_entropy(flat, micro["labels"][:, 1:].reshape(-1), ignore_index=IGNORE, reduction="sum") / count
    loss.backward()
    return loss.item()


def optimiser_of(case: Case, model: torch.nn.Module):
    params = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(params, lr=case.learning_rate, betas=case.betas, eps=case.eps,
                                  weight_decay=case.weight_decay, foreach=False, fused=False)
    schedule = get_scheduler(case.lr_scheduler_type, optimiser, num_warmup_steps=warmup_steps(case),
                             num_training_steps=STEPS, scheduler_specific_kwargs=case.lr_scheduler_kwargs)
    return params, optimiser, schedule


def warmup_steps(case: Case) -> int:
    return arguments(case, "unused").get_warmup_steps(STEPS)


def train(case: Case, model: torch.nn.Module, batches: list) -> dict:
    """The loop. Returns the rate, loss and unclipped gradient norm of each step."""
    params, optimiser, schedule = optimiser_of(case, model)
    log = {"lr": [], "loss": [], "grad_norm": []}
    for step in accumulated(case, [pad(b) for b in batches]):
        count = sum(targets(micro) for micro in step)
        log["loss"].append(sum(backward(model, micro, count) for micro in step))
        log["grad_norm"].append(torch.nn.utils.clip_grad_norm_(params, case.max_grad_norm or float("inf")).item())
        log["lr"].append(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in log.items()}


def arguments(case: Case, folder: str) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder, use_cpu=True, per_device_train_batch_size=1, num_train_epochs=case.epochs, optim="adamw_torch",
        gradient_accumulation_steps=case.accumulation, learning_rate=case.learning_rate, weight_decay=case.weight_decay,
        adam_beta1=case.betas[0], adam_beta2=case.betas[1], adam_epsilon=case.eps, max_grad_norm=case.max_grad_norm,
        lr_scheduler_type=case.lr_scheduler_type, lr_scheduler_kwargs=case.lr_scheduler_kwargs, warmup_steps=case.warmup,
        save_strategy="no", logging_strategy="no", report_to=[], disable_tqdm=True, remove_unused_columns=False)


class InOrder(Trainer):
    """Trainer without its shuffling: the golden runs fix the order."""

    def _get_train_sampler(self, *_args, **_kwargs):
        return torch.utils.data.SequentialSampler(self.train_dataset)


class Rates(TrainerCallback):
    """Notes the rate with which each step is taken."""

    def __init__(self):
        self.rates = []

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.rates.append(optimizer.param_groups[0]["lr"])


def check_against_trainer(name: str, case: Case, batches: list, log: dict, final: dict) -> float:
    """The real Trainer from the same start must arrive at the same adapter by the same rates."""
    model, rates = open_initial(name, torch.float32), Rates()
    start = snapshot(model)
    with tempfile.TemporaryDirectory() as folder:
        trainer = InOrder(model=model, args=arguments(case, folder), train_dataset=batches,
                          data_collator=lambda items: pad(items[0]), callbacks=[rates])
        trainer.remove_callback(PrinterCallback)
        result = trainer.train()
    assert rates.rates == log["lr"].tolist(), f"{name}: rates differ from Trainer's"
    assert abs(result.training_loss - log["loss"].mean().item()) < 1e-5, f"{name}: Trainer's mean loss is {result.training_loss}"
    return check_distance(name, "Trainer", start, final, snapshot(model), 1e-4)


def check_against_f64(name: str, case: Case, batches: list, final: dict) -> float:
    model = open_initial(name, torch.float64)
    start = snapshot(model)
    train(case, model, batches)
    return check_distance(name, "f64", start, snapshot(model), final, 1e-4)


def wrong_cases(case: Case) -> dict:
    """The case with one setting mistaken: each mistake must leave the golden adapter by more than the tolerance."""
    b1, b2 = case.betas
    wrong = {"no decay": replace(case, weight_decay=0.0), "another beta1": replace(case, betas=(b1 + 0.02, b2)),
             "another beta2": replace(case, betas=(b1, b2 - 0.02)), "rate 1 % off": replace(case, learning_rate=case.learning_rate * 1.01)}
    if case.max_grad_norm:
        wrong["no clipping"] = replace(case, max_grad_norm=0.0)
    if case.warmup:
        wrong["warm-up one step longer"] = replace(case, warmup=warmup_steps(case) + 1)
    if case.lr_scheduler_kwargs:
        wrong["another floor"] = replace(case, lr_scheduler_kwargs={"min_lr_rate": 0.0})
    return wrong


def check_settings_show(name: str, case: Case, batches: list, final: dict) -> float:
    """Returns the least distance a wrong setting causes; far above 1e-3, or the case proves nothing about it."""
    distances = {}
    for mistake, wrong in wrong_cases(case).items():
        model = open_initial(name, torch.float32)
        start = snapshot(model)
        train(wrong, model, batches)
        distances[mistake] = distance(start, final, snapshot(model))
    mistake = min(distances, key=distances.get)
    assert distances[mistake] > 4e-3, f"{name}: {mistake} moves the adapter by {distances[mistake]:.1e} only"
    return distances[mistake]


def distance(start: dict, a: dict, b: dict) -> float:
    """Largest over the tensors of |a - b| / |a - start|, the measure the engine is judged by with 1e-3."""
    return max(((a[k].double() - b[k].double()).norm() / (a[k].double() - start[k].double()).norm()).item() for k in a)


def check_distance(name: str, other: str, start: dict, a: dict, b: dict, limit: float) -> float:
    worst = distance(start, a, b)
    assert worst <= limit, f"{name}: {worst:.1e} of the distance moved lies between the loop and {other}"
    return worst


def snapshot(model: torch.nn.Module) -> dict:
    return {n: p.detach().clone() for n, p in common.lora_parameters(model).items()}


def open_initial(name: str, dtype: torch.dtype) -> torch.nn.Module:
    model = PeftModel.from_pretrained(common.load(MODEL, dtype), f"train_{name}/initial", is_trainable=True, autocast_adapter_dtype=False)
    return model.to(dtype)


def check_shape(name: str, case: Case, log: dict) -> None:
    """The run must show what it is for."""
    assert len(log["lr"]) == STEPS and log["lr"].max() >= 1e-3, f"{name}: {len(log['lr'])} steps"
    assert not case.warmup or log["lr"][0] == 0, f"{name}: the first warm-up step must have rate 0"
    clipped = (log["grad_norm"] > case.max_grad_norm).sum().item()
    assert name != "clip" or clipped >= 15, f"only {clipped} steps are clipped"
    assert name != "accumulate" or case.micro_batches % case.accumulation, "the last accumulation must be short"


def write_batches(path: Path, batches: list) -> None:
    tensors = {}
    for m, batch in enumerate(batches):
        for s, (ids, labels) in enumerate(batch):
            tensors[f"{m:02}.{s}.input_ids"], tensors[f"{m:02}.{s}.labels"] = ids, labels
    common.save(path, tensors)


def make_case(name: str, case: Case, number: int) -> None:
    g = common.seed(2000 + number)
    path, batches = common.fresh(f"train_{name}"), make_batches(case, g)
    first = get_peft_model(common.load(MODEL), LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, **case.lora))
    common.randomise_lora(first, g)
    common.save_adapter(first, path / "initial")
    model = open_initial(name, torch.float32)
    log = train(case, model, batches)
    check_shape(name, case, log)
    common.save_adapter(model, path / "final")
    write_batches(path / "batches.safetensors", batches)
    common.save(path / "golden.safetensors", log)
    proof = {"distance_to_trainer": check_against_trainer(name, case, batches, log, snapshot(model)),
             "distance_to_f64": check_against_f64(name, case, batches, snapshot(model)),
             "distance_of_a_wrong_setting": check_settings_show(name, case, batches, snapshot(model))}
    common.write_json(path / "case.json", describe(case, batches, proof))
    print(f"train_{name:12} loss {log['loss'][0]:.3f} -> {log['loss'][-1]:.3f}  norms {log['grad_norm'].min():.2f} .. "
          f"{log['grad_norm'].max():.2f}  Trainer {proof['distance_to_trainer']:.0e}  f64 {proof['distance_to_f64']:.0e}  "
          f"wrong setting {proof['distance_of_a_wrong_setting']:.0e}")


def describe(case: Case, batches: list, proof: dict) -> dict:
    sizes = [len(batch) for batch in batches]
    return {"model": MODEL, "optimiser": "torch.optim.AdamW", "dtype": "float32", "steps": STEPS, **asdict(case),
            "warmup_steps": warmup_steps(case), "sequences": sizes, **{k: float(f"{v:.1e}") for k, v in proof.items()}}


def make_training(only: str | None) -> None:
    for number, (name, case) in enumerate(CASES.items()):
        if only in (None, name, f"train_{name}"):
            make_case(name, case, number)
