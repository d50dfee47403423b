"""What every golden script shares: seeds, tiny models, safetensors and JSON writers that give the same bytes each run.

Knows torch and transformers, nothing of what is tested with the results.
"""

import json
import os
import random
import shutil
import warnings
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent
IGNORE = -100  # transformers' label for "no loss here"


def start(threads: int = 1) -> None:
    """One thread and no warnings from libraries: the same bits on every run of one machine."""
    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.chdir(HERE)  # PEFT stores the base model's path: relative ones name no machine


def warn_of_other_versions() -> None:
    for line in (HERE / "requirements.txt").read_text().splitlines():
        name, _, wanted = line.partition("==")
        if wanted and metadata.version(name) != wanted:
            print(f"warning: {name} is {metadata.version(name)}, the committed files were made with {wanted}")


def seed(n: int) -> torch.Generator:
    """Seeds every global generator and returns a private one."""
    random.seed(n)
    np.random.seed(n)
    torch.manual_seed(n)
    return torch.Generator().manual_seed(n)


def fresh(folder: str) -> Path:
    path = HERE / folder
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save(path: Path, tensors: dict) -> None:
    save_file({k: v.detach().contiguous().clone() for k, v in sorted(tensors.items())}, str(path))


def weight_std(name: str, shape: torch.Size) -> float:
    """1/sqrt(fan in) keeps every activation near 1; q and k larger, so that attention is far from uniform."""
    if name.endswith("bias"):
        return 0.3
    if "embed_tokens" in name:
        return 0.3  # mean square 0.09: rms_norm_eps then shows in the result
    gain = 1.6 if ("q_proj" in name or "k_proj" in name) else 1.0
    return gain / shape[-1] ** 0.5


def randomise(model: torch.nn.Module, g: torch.Generator) -> None:
    """Fills all parameters in name order; norm weights lie in 0.5 .. 1.5."""
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            if "norm" in name:
                p.copy_(torch.rand(p.shape, generator=g) + 0.5)
            else:
                p.copy_(torch.randn(p.shape, generator=g) * weight_std(name, p.shape))


def build(config: dict, g: torch.Generator) -> torch.nn.Module:
    cfg = transformers.LlamaConfig(**config, bos_token_id=1, eos_token_id=2, attn_implementation="eager")
    model = transformers.LlamaForCausalLM(cfg)
    randomise(model, g)
    return model.eval()


def load(folder: str, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """The folder as a user's program reads it, computed in `dtype`, plain (eager) attention."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    return model.eval()


def randomise_lora(model: torch.nn.Module, g: torch.Generator) -> None:
    """PEFT starts B at zero, which hides errors in A's gradient: both get values."""
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            if "lora_" in name:
                p.copy_(torch.randn(p.shape, generator=g) * (0.3 if "lora_B" in name else p.shape[-1] ** -0.5))


def save_adapter(model: torch.nn.Module, path: Path) -> None:
    """PEFT's own save; its model card goes, and its sets are sorted (their order changes from run to run)."""
    model.save_pretrained(str(path))
    (path / "README.md").unlink(missing_ok=True)
    file = path / "adapter_config.json"
    config = json.loads(file.read_text())
    for key in ("target_modules", "layers_to_transform"):
        if isinstance(config.get(key), list):
            config[key] = sorted(config[key])
    write_json(file, config)


def peft_name(parameter: str) -> str:
    """The name under which PEFT saves a parameter: without the adapter's name."""
    return parameter.replace(".default.", ".")


def lora_parameters(model: torch.nn.Module) -> dict:
    return {peft_name(n): p for n, p in model.named_parameters() if p.requires_grad}
