#!/usr/bin/env python3
"""Writes the golden files of this folder: what transformers and PEFT compute in f32, for the engine to be compared with.

    python -m venv VENV && VENV/bin/pip install -r requirements.txt
    VENV/bin/python make_golden.py all            # or some of: variants train gguf tokenizer refused beams; --only NAME

Every part can be run again and gives the same files (same versions, same machine). README.md says what each file holds.
This file makes the model variants; golden_train.py, golden_gguf.py and golden_tokenizer.py make the rest.
"""

import argparse
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers

import golden_beams
import golden_common as common
import golden_gguf
import golden_quantized
import golden_tokenizer
import golden_train
from golden_common import IGNORE

QKVO = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]

# Every model is this one with a few fields changed. rms_norm_eps is large on purpose: a wrong one shows.
BASE = dict(
    vocab_size=61, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-3, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
)


def rope(kind: str, theta: float = 10000.0, **fields) -> dict:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **fields}}


@dataclass
class Variant:
    """One model folder: how its config differs from BASE, how its files are written, and its adapter."""

    config: dict
    lora: dict
    style: str = "v4"  # spelling of config.json: "v5" as saved, "v4" rope_theta and rope_scaling at the top level
    old_rope_key: str = "rope_type"  # the oldest files say "type"
    dtype: torch.dtype = torch.float32
    shard: str | None = None  # transformers' max_shard_size
    batch: int = 2
    length: int = 16
    short: int | None = None  # also a prompt of this length, logits only
    tokens: int | None = None  # size of the tokenizer's vocabulary where it is smaller than the model's
    drop: list = field(default_factory=list)  # config keys that old files lack


VARIANTS = {
    "mha": Variant(dict(num_key_value_heads=4), dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]),
                   drop=["num_key_value_heads", "head_dim", "attention_bias", "mlp_bias", "tie_word_embeddings"]),
    "gqa": Variant(dict(), dict(r=3, lora_alpha=6, target_modules=QKVO), style="v5"),
    "tied": Variant(dict(tie_word_embeddings=True), dict(r=2, lora_alpha=4, target_modules="all-linear"), style="v5"),
    "untied": Variant(dict(tie_word_embeddings=False), dict(r=5, lora_alpha=10, target_modules=MLP)),
    "attention_bias": Variant(dict(attention_bias=True), dict(r=4, lora_alpha=8, use_rslora=True, target_modules=QKVO)),
    "mlp_bias": Variant(dict(mlp_bias=True), dict(r=6, lora_alpha=3, target_modules=["down_proj"])),
    "head_dim": Variant(dict(head_dim=12), dict(
        r=4, lora_alpha=8, target_modules=[*QKVO, *MLP],
        rank_pattern={"q_proj": 6, "layers.1.mlp.down_proj": 2, r"model\.layers\.0\.mlp\.(gate|up)_proj": 5},
        alpha_pattern={"self_attn.q_proj": 3, r"layers\.\d+\.self_attn\.v_proj": 16})),
    "rope_theta": Variant(rope("default", 5e5), dict(
        r=3, lora_alpha=12, target_modules=r".*\.layers\.(0\.self_attn\.(q|v)_proj|1\.mlp\.up_proj)")),
    "rope_linear": Variant(dict(max_position_embeddings=32, **rope("linear", factor=4.0)),
                           dict(r=2, lora_alpha=2, target_modules=["q_proj", "v_proj"]), batch=1, length=64, old_rope_key="type"),
    "rope_dynamic": Variant(dict(max_position_embeddings=32, **rope("dynamic", factor=2.0)),
                            dict(r=4, lora_alpha=4, target_modules=["o_proj", "gate_proj"]), batch=1, length=64, short=24),
    "rope_llama3": Variant(
        dict(max_position_embeddings=256, num_attention_heads=2, num_key_value_heads=1,
             **rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)),
        dict(r=4, lora_alpha=6, target_modules=["k_proj", "v_proj"]), batch=1, length=64, drop=["head_dim"]),
    "vocab_padding": Variant(dict(vocab_size=83, hidden_size=40, intermediate_size=66, num_hidden_layers=3), dict(
        r=3, lora_alpha=9, layers_to_transform=[1], target_modules=["q_proj", "v_proj", "down_proj"]), tokens=77),
    "bf16": Variant(dict(), dict(r=2, lora_alpha=8, target_modules=[*QKVO, *MLP]), dtype=torch.bfloat16),
    "f16": Variant(dict(), dict(r=4, lora_alpha=4, use_rslora=True, rank_pattern={"up_proj": 2},
                                target_modules=["up_proj", "down_proj"]), dtype=torch.float16),
    "sharded": Variant(dict(), dict(r=4, lora_alpha=16, target_modules=["q_proj", "k_proj", "up_proj"]), shard="60KB"),
}


def write_model(name: str, v: Variant, path: Path, g: torch.Generator) -> None:
    model = common.build({**BASE, **v.config}, g).to(v.dtype)
    model.save_pretrained(str(path), **({"max_shard_size": v.shard} if v.shard else {}))
    (path / "generation_config.json").unlink()
    if v.style == "v4":
        (path / "config.json").rename(path / "config_v5.json")
        common.write_json(path / "config.json", old_spelling(json.loads((path / "config_v5.json").read_text()), v))
    if v.shard:
        assert len(list(path.glob("model-*.safetensors"))) == 2, f"{name}: wanted two shards"


def old_spelling(config: dict, v: Variant) -> dict:
    """config.json as transformers 4 wrote it: rope_theta and rope_scaling at the top level, torch_dtype."""
    old = {k: x for k, x in config.items() if k not in ("rope_parameters", "dtype", *v.drop)}
    scaling = dict(config["rope_parameters"])
    old["rope_theta"] = scaling.pop("rope_theta")
    kind = scaling.pop("rope_type")
    old["rope_scaling"] = None if kind == "default" else {v.old_rope_key: kind, **scaling}
    old["torch_dtype"] = str(v.dtype).removeprefix("torch.")
    old["transformers_version"] = "4.44.0"
    return dict(sorted(old.items()))


def inputs(v: Variant, g: torch.Generator) -> dict:
    """Token ids, and labels that are the ids with a masked prompt and a few masked tokens inside."""
    vocab = v.tokens or {**BASE, **v.config}["vocab_size"]
    ids = torch.randint(0, vocab, (v.batch, v.length), generator=g)
    labels = ids.clone()
    for row in range(v.batch):
        labels[row, : 4 + 3 * row] = IGNORE
        labels[row, torch.randint(8, v.length - 1, (2,), generator=g)] = IGNORE
    return {"input_ids": ids, "labels": labels}


def write_word_tokenizer(path: Path, size: int) -> None:
    """A tokenizer with fewer tokens than the model has rows, as in models padded for speed."""
    words = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>"] + [f"w{i}" for i in range(3, size)])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(path / "tokenizer.json"))


def base_values(name: str, v: Variant, given: dict, g: torch.Generator) -> dict:
    """Logits of the base model and the first sequence's residual stream after each layer."""
    out = {}
    if v.short:  # before the long prompt, and on its own model: dynamic RoPE keeps the largest base it has seen
        out["short.input_ids"] = torch.randint(0, BASE["vocab_size"], (1, v.short), generator=g)
        out["short.logits"] = forward(common.load(name), out["short.input_ids"]).logits
    model = common.load(name)
    for i, layer in enumerate(model.model.layers):
        layer.register_forward_hook(lambda _m, _a, y, i=i: out.__setitem__(f"hidden.{i}", (y[0] if isinstance(y, tuple) else y)[0]))
    out["logits"] = forward(model, given["input_ids"]).logits
    return out


@torch.no_grad()
def forward(model: torch.nn.Module, ids: torch.Tensor):
    return model(input_ids=ids, use_cache=False)


def adapter_values(name: str, v: Variant, path: Path, given: dict, g: torch.Generator) -> dict:
    """Logits, loss and LoRA gradients with the adapter, which is saved and read back first."""
    fresh = get_peft_model(common.load(name), LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, **v.lora))
    common.randomise_lora(fresh, g)
    common.save_adapter(fresh, path / "adapter")
    if v.lora["target_modules"] == "all-linear":
        write_shorthand(path)
    model = PeftModel.from_pretrained(common.load(name), f"{name}/adapter", is_trainable=True).eval()
    result = model(**given, use_cache=False)
    result.loss.backward()
    check_spread(name, result)
    grads = {f"grad.{n}": p.grad for n, p in common.lora_parameters(model).items()}
    return {"logits_adapter": result.logits, "loss": result.loss, **grads}


def write_shorthand(path: Path) -> None:
    """PEFT spells "all-linear" out when it saves; a config that kept the word must mean the same modules."""
    config = json.loads((path / "adapter" / "adapter_config.json").read_text())
    common.write_json(path / "adapter" / "adapter_config_shorthand.json", {**config, "target_modules": "all-linear"})


def check_spread(name: str, result) -> None:
    """Logits that hardly vary would agree with anything."""
    spread = result.logits.std().item()
    assert 0.3 < spread < 10 and math.isfinite(result.loss.item()), f"{name}: logits' deviation is {spread}"


def check_old_spelling(name: str, path: Path, given: dict, logits: torch.Tensor) -> None:
    """transformers must read the old spelling and its own as the same model."""
    old = (path / "config.json").read_text()
    (path / "config.json").write_text((path / "config_v5.json").read_text())
    same = torch.equal(forward(common.load(name), given["input_ids"]).logits, logits)
    (path / "config.json").write_text(old)
    assert same, f"{name}: the two spellings of config.json give different logits"


def wrong_configs(config: dict) -> dict:
    """The config with one number changed, for every number that only the arithmetic can notice."""
    rope_key = "rope_scaling" if "rope_theta" in config else "rope_parameters"
    fields = config.get(rope_key) or {}
    wrong = {"rms_norm_eps": {**config, "rms_norm_eps": 1e-5}}
    for key in [k for k, x in fields.items() if not isinstance(x, str)]:
        wrong[f"{rope_key}.{key}"] = {**config, rope_key: {**fields, key: fields[key] * 2}}
    if "rope_theta" in config:
        wrong["rope_theta"] = {**config, "rope_theta": config["rope_theta"] * 2}
    if "dynamic" in fields.values():
        wrong["max_position_embeddings"] = {**config, "max_position_embeddings": config["max_position_embeddings"] + 8}
    return wrong


def check_every_field_shows(name: str, path: Path, given: dict, logits: torch.Tensor) -> None:
    """A reader that ignores or mistakes one field must miss the logits by far more than the tolerance of 1e-4."""
    right = (path / "config.json").read_text()
    for field_name, config in wrong_configs(json.loads(right)).items():
        common.write_json(path / "config.json", config)
        moved = (forward(common.load(name), given["input_ids"]).logits - logits).abs().max() / logits.abs().max()
        assert moved > 2e-3, f"{name}: doubling {field_name} moves the logits by {moved:.1e} of the largest only"
    (path / "config.json").write_text(right)


def check_llama3_bands(path: Path) -> None:
    """All three bands of llama3 scaling must occur: kept, interpolated, divided."""
    from transformers import AutoConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = AutoConfig.from_pretrained(str(path))
    plain = LlamaRotaryEmbedding.compute_default_rope_parameters(config)[0]
    ratio = plain / LlamaRotaryEmbedding(config).inv_freq
    factor = config.rope_parameters["factor"]
    kept, divided = (ratio == 1).sum(), ((ratio / factor - 1).abs() < 1e-6).sum()
    assert kept > 0 and divided > 0 and kept + divided < len(ratio), f"bands: {ratio.tolist()}"


def make_variant(name: str, v: Variant, number: int) -> None:
    g = common.seed(1000 + number)
    path = common.fresh(name)
    write_model(name, v, path, g)
    if v.tokens:
        write_word_tokenizer(path, v.tokens)
    given = inputs(v, g)
    values = {**given, **base_values(name, v, given, g), **adapter_values(name, v, path, given, g)}
    assert not torch.allclose(values["logits"], values["logits_adapter"], atol=1e-2), f"{name}: the adapter does nothing"
    if v.style == "v4":
        check_old_spelling(name, path, given, values["logits"])
    check_every_field_shows(name, path, given, values["logits"])
    if name == "rope_llama3":
        check_llama3_bands(path)
    common.save(path / "golden.safetensors", values)
    print(f"{name:15} loss {values['loss'].item():.4f}  logits' deviation {values['logits'].std().item():.2f}")


def make_variants(only: str | None) -> None:
    for number, (name, v) in enumerate(VARIANTS.items()):
        if only in (None, name):
            make_variant(name, v, number)


REFUSED = {  # PEFT adapters that are not plain LoRA on the seven linear layers
    "dora": lambda: LoraConfig(r=1, use_dora=True, target_modules=["q_proj"]),
    "modules_to_save": lambda: LoraConfig(r=1, target_modules=["q_proj"], modules_to_save=["norm"]),
    "bias": lambda: LoraConfig(r=1, target_modules=["q_proj"], bias="lora_only"),
    "lora_bias": lambda: LoraConfig(r=1, target_modules=["q_proj"], lora_bias=True),
    "embedding": lambda: LoraConfig(r=1, target_modules=["embed_tokens", "q_proj"]),
    "ia3": lambda: IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
}


def make_refused() -> None:
    """Adapters as PEFT saves them that the engine must refuse by name; the base is `attention_bias`."""
    common.fresh("refused")
    for number, (name, config) in enumerate(REFUSED.items()):
        common.seed(4000 + number)
        common.save_adapter(get_peft_model(common.load("attention_bias"), config()), common.HERE / "refused" / name)
    print("refused         " + " ".join(REFUSED))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ["all", "variants", "train", "gguf", "tokenizer", "quantized", "refused", "beams"]
    parser.add_argument("parts", nargs="+", choices=parts)
    parser.add_argument("--only", help="one variant or training case by its folder's name")
    args = parser.parse_args()
    common.start()
    common.warn_of_other_versions()
    wanted = set(parts if "all" in args.parts else args.parts)
    if "variants" in wanted:
        make_variants(args.only)
    if "train" in wanted:
        golden_train.make_training(args.only)
    if "gguf" in wanted:
        golden_gguf.make_gguf()
    if "tokenizer" in wanted:
        golden_tokenizer.make_tokenizer()
    if "quantized" in wanted:
        golden_quantized.make_quantized()
    if "refused" in wanted:
        make_refused()
    if "beams" in wanted:
        golden_beams.make_beams()


if __name__ == "__main__":
    main()
