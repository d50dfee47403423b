#!/usr/bin/env python3
"""A model folder of random weights in LLaMA-2-7B's shape, for measuring speed and memory: what it says means nothing.

    python random_model.py --tokenizer DIR --out DIR [--layers 32]

Linear maps are whole numbers of 8 bits with a scale a row, as `dialoguellm quantize` writes them; the rest is bf16.
The tokenizer is that of the folder --tokenizer (byte pairs), cut to LLaMA-2's 32,000 tokens. Needs numpy; 7 GB of disk.
"""
import argparse
import json
import struct
from pathlib import Path

import numpy as np

VOCABULARY, WIDTH, INNER, HEADS = 32_000, 4096, 11_008, 32


def tensors(layers: int):
    """Name, type in the file, shape."""
    yield "model.embed_tokens.weight", "BF16", (VOCABULARY, WIDTH)
    for i in range(layers):
        at = f"model.layers.{i}."
        shapes = {f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in "qkvo"}
        shapes |= {"mlp.gate_proj": (INNER, WIDTH), "mlp.up_proj": (INNER, WIDTH), "mlp.down_proj": (WIDTH, INNER)}
        for name, shape in shapes.items():
            yield f"{at}{name}.weight", "I8", shape
            yield f"{at}{name}.weight_scale", "BF16", (shape[0], 1)
        yield f"{at}input_layernorm.weight", "BF16", (WIDTH,)
        yield f"{at}post_attention_layernorm.weight", "BF16", (WIDTH,)
    yield "model.norm.weight", "BF16", (WIDTH,)
    yield "lm_head.weight", "BF16", (VOCABULARY, WIDTH)


def bf16(values: np.ndarray) -> bytes:
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()


def content(random: np.random.Generator, name: str, dtype: str, shape: tuple) -> bytes:
    if dtype == "I8":
        return random.integers(-127, 128, shape, dtype=np.int8).tobytes()
    if name.endswith("norm.weight"):
        return bf16(np.ones(shape))
    if name.endswith("weight_scale"):  # uniform whole numbers have a deviation of 73
        return bf16(np.full(shape, 0.02 / 73))
    return bf16(0.02 * random.standard_normal(shape, dtype=np.float32))


def write_weights(path: Path, layers: int) -> None:
    header, end = {}, 0
    for name, dtype, shape in tensors(layers):
        size = int(np.prod(shape)) * (1 if dtype == "I8" else 2)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, dtype, shape in tensors(layers):
            file.write(content(random, name, dtype, shape))


def cut_tokenizer(source: dict) -> dict:
    """The first tokens, and the merges that need no other."""
    model = source["model"]
    vocabulary = {token: i for token, i in model["vocab"].items() if i < VOCABULARY}

    def kept(merge) -> bool:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        return left in vocabulary and right in vocabulary and left + right in vocabulary

    merges = [merge for merge in model["merges"] if kept(merge)]
    return source | {"model": model | {"vocab": vocabulary, "merges": merges}}


def config(layers: int) -> dict:
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": False, "strategy": "channel"}
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": WIDTH,
        "intermediate_size": INNER, "num_hidden_layers": layers, "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS, "hidden_act": "silu", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
        "torch_dtype": "bfloat16",
        "quantization_config": {
            "quant_method": "compressed-tensors", "format": "int-quantized", "quantization_status": "compressed",
            "ignore": ["lm_head"],
            "config_groups": {"group_0": {"targets": ["Linear"], "format": "int-quantized", "weights": weights}},
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=32)
    args = parser.parse_args()
    args.out.mkdir(parents=True)
    (args.out / "config.json").write_text(json.dumps(config(args.layers), indent=1))
    tokenizer = cut_tokenizer(json.loads((args.tokenizer / "tokenizer.json").read_text()))
    (args.out / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
    (args.out / "tokenizer_config.json").write_text((args.tokenizer / "tokenizer_config.json").read_text())
    write_weights(args.out / "model.safetensors", args.layers)


if __name__ == "__main__":
    main()
