#!/usr/bin/env python3
"""What transformers computes with a real model, for comparison with the engine; the output is not committed.

    VENV/bin/python smollm2_parity.py --model DIR --out FILE.safetensors

DIR is a Hugging Face folder (SmolLM2-135M-Instruct in this project). FILE.safetensors receives, in f32 with eager attention:
    doc.NN.ids [T] i64, doc.NN.logprob [T-1] f32     log-probability of token t+1 after tokens 0..t, several documents
    mixed.text [bytes] u8, mixed.ids [n] i32         1 MB of mixed text and its ids, no special tokens added
    vocabulary.text, vocabulary.ids                  every token of the vocabulary, special ones too, in random order
and FILE.jsonl beside it 10,000 lines {"text", "ids"} of random Unicode. All text is in or made by golden_text.py.
"""

import argparse
import json
import os
import random
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer

import golden_common as common
import golden_text

LEAST_TOKENS = 5000


def documents() -> list:
    """Prose, talk of growing length (the last beyond 2,000 tokens), and mixed text full of rare tokens."""
    talks = [golden_text.dialogue(random.Random(i), turns) for i, turns in enumerate((3, 10, 20, 40, 120))]
    return golden_text.STORIES + talks + [golden_text.mixed_text(1200, 100 + i) for i in range(4)]


@torch.no_grad()
def log_probabilities(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=ids[None, :-1], use_cache=False).logits[0].float()
    return torch.log_softmax(logits, -1).gather(1, ids[1:, None])[:, 0]


class Encoder:
    """The folder's tokenizer as transformers opens it, held to what `tokenizers` makes of tokenizer.json itself."""

    def __init__(self, folder: str):
        self.outer = AutoTokenizer.from_pretrained(folder)
        self.inner = Tokenizer.from_file(f"{folder}/tokenizer.json")

    def ids(self, text: str) -> list:
        ids = self.outer(text, add_special_tokens=False).input_ids
        assert ids == self.inner.encode(text, add_special_tokens=False).ids, "transformers and tokenizers disagree"
        return ids

    def vocabulary_text(self) -> str:
        ids = list(range(self.inner.get_vocab_size()))
        random.Random(3).shuffle(ids)
        return self.inner.decode(ids, skip_special_tokens=False)


def document_tensors(folder: str, encoder: Encoder) -> dict:
    model, out, total = common.load(folder), {}, 0
    for i, text in enumerate(documents()):
        ids = torch.tensor(encoder.ids(text))
        out[f"doc.{i:02}.ids"], out[f"doc.{i:02}.logprob"] = ids, log_probabilities(model, ids)
        total += len(ids)
        print(f"document {i:2}: {len(ids):5} tokens, mean log-probability {out[f'doc.{i:02}.logprob'].mean():.3f}")
    assert total >= LEAST_TOKENS, f"only {total} tokens"
    print(f"{total} tokens in {i + 1} documents")
    return out


def text_tensors(name: str, text: str, encoder: Encoder) -> dict:
    ids, data = encoder.ids(text), text.encode()
    print(f"{name}: {len(data)} bytes, {len(ids)} tokens, {len(set(ids))} different ones")
    return {f"{name}.text": torch.frombuffer(bytearray(data), dtype=torch.uint8), f"{name}.ids": torch.tensor(ids, dtype=torch.int32)}


def write_random_strings(path: Path, encoder: Encoder) -> None:
    lines = [json.dumps({"text": t, "ids": encoder.ids(t)}) for t in golden_text.random_strings(10_000, 2)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines)} random strings in {path.name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hugging Face folder")
    parser.add_argument("--out", required=True, help="file to write, .safetensors; a .jsonl goes beside it")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    folder, out = os.path.abspath(args.model), Path(args.out).absolute()
    common.start(args.threads)
    encoder = Encoder(folder)
    texts = text_tensors("mixed", golden_text.mixed_text(1 << 20, 1), encoder)
    texts |= text_tensors("vocabulary", encoder.vocabulary_text(), encoder)
    save_file({**document_tensors(folder, encoder), **texts}, str(out))
    write_random_strings(out.with_suffix(".jsonl"), encoder)


if __name__ == "__main__":
    main()
