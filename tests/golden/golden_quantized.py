"""Models quantised by the PyPI package compressed-tensors, and the logits that transformers gives them, in f32.

Scales are those of the largest weight, so that every whole number occurs; nothing else of the package's choices is ours.
"""

import json

import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStatus,
    apply_quantization_config,
)

import golden_common as common

SHAPE = {
    "vocab_size": 61, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-3, "tie_word_embeddings": False,
}
# name: bits, columns that share a scale, the package's format
MODELS = {
    "int8": (8, None, "int-quantized"),
    "int8_groups": (8, 16, "int-quantized"),
    "int4": (4, 32, "pack-quantized"),
    "int4_channels": (4, None, "pack-quantized"),
}


def scheme(bits: int, group: int | None, kind: str) -> QuantizationConfig:
    strategy = "channel" if group is None else "group"
    weights = QuantizationArgs(num_bits=bits, type="int", symmetric=True, strategy=strategy, group_size=group)
    groups = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights, format=kind)}
    status = QuantizationStatus.FROZEN
    return QuantizationConfig(config_groups=groups, ignore=["lm_head"], quantization_status=status, format=kind)


def calibrate(model: torch.nn.Module, bits: int, group: int | None) -> None:
    """Each scale takes its largest weight to the largest whole number."""
    for module in model.modules():
        if hasattr(module, "weight_scale"):
            w = module.weight.data
            largest = w.reshape(w.shape[0], -1, group or w.shape[1]).abs().amax(-1)
            module.weight_scale.data = (largest / (2 ** (bits - 1) - 1)).reshape(module.weight_scale.shape)
            if hasattr(module, "weight_zero_point"):
                module.weight_zero_point.data.zero_()


def make_quantized() -> None:
    for number, (name, (bits, group, kind)) in enumerate(MODELS.items()):
        g = common.seed(500 + number)
        path = common.fresh(name)
        model = common.build(SHAPE, g)
        whole = model.state_dict()
        apply_quantization_config(model, scheme(bits, group, kind))
        calibrate(model, bits, group)
        compressor = ModelCompressor.from_pretrained_model(model, quantization_format=kind)
        compressor.compress_model(model)
        model.save_pretrained(str(path))
        compressor.update_config(str(path))
        (path / "generation_config.json").unlink(missing_ok=True)
        config = json.loads((path / "config.json").read_text())
        assert config["quantization_config"]["format"] == kind, config
        common.write_json(path / "config.json", config)
        ids = torch.randint(3, SHAPE["vocab_size"], (2, 24), generator=g)
        with torch.no_grad():
            logits = common.load(str(path))(input_ids=ids).logits
            plain = common.build(SHAPE, common.seed(0))
            plain.load_state_dict({k: v for k, v in whole.items() if k in plain.state_dict()})
            moved = (plain(input_ids=ids).logits - logits).abs().max() / logits.abs().max()
        assert 2e-3 < moved < 1, f"{name}: quantisation moved the logits by {moved}"
        common.save(path / "golden.safetensors", {"input_ids": ids, "logits": logits})
        print(f"{name:15} quantisation moved the logits by {moved:.2f} of the largest")
