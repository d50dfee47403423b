"""Small GGUF files of one tiny LLaMA, written as llama.cpp's converter writes them, with what an importer must make of them.

For each NAME.gguf there are NAME.safetensors (the tensors in Hugging Face names and layout, dequantised where quantised,
in the file's own type where not) and an entry in expected.json (config, tokenizer, the tensors' GGUF types).
"""

import json
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from gguf import LlamaFileType, TokenType

import golden_common as common
import golden_tokenizer as vocabularies

HEADS, KV_HEADS, LAYERS = 4, 2, 1
CONFIG = dict(vocab_size=vocabularies.SIZE, hidden_size=64, intermediate_size=32, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
              num_key_value_heads=KV_HEADS, max_position_embeddings=128, rms_norm_eps=1e-5,
              rope_parameters={"rope_type": "default", "rope_theta": 50000.0})
NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
PARTS = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
         "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}


@dataclass
class File:
    """One fixture: type of the matrices, type of output.weight (None: tied), vocabulary, and optional metadata."""

    kind: Type
    output: Type | None
    vocabulary: str
    file_type: LlamaFileType
    key_length: bool = False  # newer converters write attention.key_length
    linear_scaling: float | None = None


FILES = {
    "bpe_f32_tied": File(Type.F32, None, "smollm", LlamaFileType.ALL_F32),
    "bpe_f16": File(Type.F16, Type.F16, "gpt-2", LlamaFileType.MOSTLY_F16, key_length=True),
    "llama_bf16": File(Type.BF16, Type.BF16, "llama", LlamaFileType.MOSTLY_BF16, linear_scaling=2.0),
    "llama_q8_0": File(Type.Q8_0, Type.F16, "llama", LlamaFileType.MOSTLY_Q8_0),
    "bpe_q4_0_tied": File(Type.Q4_0, None, "smollm", LlamaFileType.MOSTLY_Q4_0, key_length=True),
    "llama_q4_1_tied": File(Type.Q4_1, None, "llama", LlamaFileType.MOSTLY_Q4_1),
}


def gguf_name(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in NAMES:
        return f"{NAMES[stem]}.{kind}"
    layer, _, part = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{PARTS[part]}.{kind}"


def interleave(w: np.ndarray, heads: int) -> np.ndarray:
    """Hugging Face rotates row i of a head with row i + d/2, llama.cpp rows 2i and 2i + 1: rows change places."""
    halves = w.reshape(heads, 2, w.shape[0] // heads // 2, w.shape[1])
    return halves.swapaxes(1, 2).reshape(w.shape)


def separate(w: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of `interleave`, which is what an importer does."""
    pairs = w.reshape(heads, w.shape[0] // heads // 2, 2, w.shape[1])
    return pairs.swapaxes(1, 2).reshape(w.shape)


def heads_of(name: str) -> int | None:
    return HEADS if "q_proj" in name else KV_HEADS if "k_proj" in name else None


def type_of(name: str, f: File) -> Type:
    return Type.F32 if "norm" in name else f.output if name == "lm_head.weight" else f.kind


def stored(name: str, w: np.ndarray, f: File) -> tuple:
    """The bytes as they go into the file, and the tensor as it should come out again, in Hugging Face layout."""
    kind, heads = type_of(name, f), heads_of(name)
    data = gguf.quants.quantize(interleave(w, heads) if heads else w, kind)
    back = gguf.quants.dequantize(data, kind).reshape(w.shape)
    back = torch.from_numpy(np.ascontiguousarray(separate(back, heads) if heads else back))
    exact = {Type.F16: torch.float16, Type.BF16: torch.bfloat16}.get(kind, torch.float32)
    assert torch.equal(back.to(exact).float(), back), f"{name}: {kind.name} did not survive as {exact}"
    return data, back.to(exact)


def add_config(w: gguf.GGUFWriter, f: File) -> None:
    w.add_name("Golden tiny")
    w.add_file_type(f.file_type)
    w.add_quantization_version(gguf.GGML_QUANT_VERSION)
    w.add_vocab_size(CONFIG["vocab_size"])
    w.add_context_length(CONFIG["max_position_embeddings"])
    w.add_embedding_length(CONFIG["hidden_size"])
    w.add_block_count(LAYERS)
    w.add_feed_forward_length(CONFIG["intermediate_size"])
    w.add_head_count(HEADS)
    w.add_head_count_kv(KV_HEADS)
    w.add_layer_norm_rms_eps(CONFIG["rms_norm_eps"])
    w.add_rope_dimension_count(CONFIG["hidden_size"] // HEADS)
    w.add_rope_freq_base(CONFIG["rope_parameters"]["rope_theta"])
    if f.key_length:
        w.add_key_length(CONFIG["hidden_size"] // HEADS)
        w.add_value_length(CONFIG["hidden_size"] // HEADS)
    if f.linear_scaling:
        w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        w.add_rope_scaling_factor(f.linear_scaling)


def add_byte_level(w: gguf.GGUFWriter, kind: str) -> None:
    tokenizer = vocabularies.byte_level(kind)
    tokens = [tokenizer.id_to_token(i) for i in range(vocabularies.SIZE)]
    special = {**dict.fromkeys(vocabularies.CONTROL, TokenType.CONTROL), vocabularies.USER_DEFINED: TokenType.USER_DEFINED}
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre(kind)
    w.add_token_list(tokens)
    w.add_token_types([special.get(t, TokenType.NORMAL) for t in tokens])
    w.add_token_merges([" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]])
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_pad_token_id(2)
    if kind == "smollm":
        w.add_add_bos_token(False)
        w.add_add_space_prefix(False)


def add_pieces(w: gguf.GGUFWriter) -> None:
    listed = vocabularies.pieces(vocabularies.piece_model())
    types = {1: TokenType.NORMAL, 2: TokenType.UNKNOWN, 3: TokenType.CONTROL, 4: TokenType.USER_DEFINED, 5: TokenType.UNUSED, 6: TokenType.BYTE}
    w.add_tokenizer_model("llama")
    w.add_tokenizer_pre("default")
    w.add_token_list([p.piece for p in listed])
    w.add_token_scores([p.score for p in listed])
    w.add_token_types([types[p.type] for p in listed])
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_unk_token_id(0)
    w.add_add_bos_token(True)
    w.add_add_eos_token(False)
    w.add_add_space_prefix(True)


def write_file(path: Path, f: File, weights: dict) -> dict:
    """Writes the GGUF file and returns the tensors expected from it."""
    w = gguf.GGUFWriter(path, "llama")
    add_config(w, f)
    if f.vocabulary == "llama":
        add_pieces(w)
    else:
        add_byte_level(w, f.vocabulary)
    expected = {}
    for name in sorted(weights):
        if name == "lm_head.weight" and f.output is None:
            continue
        data, expected[name] = stored(name, weights[name], f)
        w.add_tensor(gguf_name(name), data, raw_dtype=type_of(name, f))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return expected


def check_by_transformers(path: Path, expected: dict) -> None:
    """transformers reads GGUF itself: it must arrive at the same tensors."""
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).state_dict()
    for name, tensor in expected.items():
        assert torch.equal(theirs[name].float(), tensor.float()), f"{path.name}: transformers reads another {name}"


def entry(f: File, expected: dict) -> dict:
    scaling = {"rope_type": "linear", "factor": f.linear_scaling} if f.linear_scaling else None
    config = {k: v for k, v in CONFIG.items() if k != "rope_parameters"}
    config |= {"head_dim": 16, "rope_theta": 50000.0, "rope_scaling": scaling, "tie_word_embeddings": f.output is None, "bos_token_id": 1, "eos_token_id": 2}
    return {"config": config, "tokenizer": f"tokenizer_{f.vocabulary}.json", "types": {n: type_of(n, f).name for n in expected}}


def make_gguf() -> None:
    path = common.fresh("gguf")
    weights = {n: p.detach().numpy() for n, p in common.build(CONFIG, common.seed(3000)).named_parameters()}
    entries = {}
    for name, f in FILES.items():
        expected = write_file(path / f"{name}.gguf", f, weights)
        check_by_transformers(path / f"{name}.gguf", expected)
        common.save(path / f"{name}.safetensors", expected)
        entries[name] = entry(f, expected)
        print(f"gguf/{name:16} {(path / f'{name}.gguf').stat().st_size:7} bytes, {len(expected)} tensors, transformers reads the same")
    common.write_json(path / "expected.json", entries)
    for kind in ("smollm", "gpt-2"):
        common.write_json(path / f"tokenizer_{kind}.json", vocabularies.byte_level_expectations(vocabularies.byte_level(kind)))
    common.write_json(path / "tokenizer_llama.json", vocabularies.piece_expectations(vocabularies.piece_model()))
