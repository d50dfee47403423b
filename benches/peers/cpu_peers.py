#!/usr/bin/env python3
"""PyTorch, PEFT and llama.cpp on a CPU beside `dialoguellm bench`: prefill, decoding and the gradient of a LoRA step.

    python cpu_peers.py MODEL [--threads 2] [--rounds 5] [--compile] [--dtype float32] [--gguf FILE ...]

MODEL is a Hugging Face folder; the command is target/release/dialoguellm, or what DLLM_COMMAND names. Every round measures
each side once, in turns, with the same number of threads and tokens; the table has medians. The peer is given what makes it
fast: bf16 weights and adapters, no padding, logits for the last rows only. --compile measures torch.compile's too. Where no
instruction multiplies bf16, PyTorch is given --dtype float32: 32 prompts take its bf16 minutes there. GGUF files are measured
where llama-cpp-python is there (PyPI); what cannot be measured is said, not left out. Nothing is fetched.

All limited to AVX2: DLLM_ISA=avx2, ATEN_CPU_CAPABILITY=avx2, ONEDNN_MAX_CPU_ISA=AVX2, MKL_ENABLE_INSTRUCTIONS=AVX2 in the environment,
and llama-cpp-python built with CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON".

Prints the table of ../results/README.md, then how many times the fastest peer's each of our rates is.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time

TOKENS, PROMPTS, BATCH, DRAWS, RANK = 200, 32, 8, 32, 8
ONE, MANY = f"prefill 1 prompt of {TOKENS} tokens", f"prefill {PROMPTS} prompts of {TOKENS} tokens"
DECODE, TRAIN = f"decode {DRAWS} tokens behind {TOKENS}", f"train {BATCH} prompts of {TOKENS} tokens, rank {RANK}"
WORKS = [ONE, MANY, DECODE, TRAIN]


def ours(model: str, threads: int, precision: str):
    """One run of the command: rates by work."""
    root = pathlib.Path(__file__).parents[2]
    command = [os.environ.get("DLLM_COMMAND", str(root / "target/release/dialoguellm")), "bench", "--json", "--device", "cpu"]
    sizes = {"tokens": TOKENS, "prompts": PROMPTS, "batch": BATCH, "draws": DRAWS, "rank": RANK, "repeats": 1}
    more = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    arguments = ["--model", model, "--threads", str(threads), "--precision", precision]
    ran = subprocess.run(command + arguments + more, capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        sys.exit(f"{command[0]}: {ran.stderr.strip()}")
    return {rate["what"]: rate["rate"] for rate in json.loads(ran.stdout)["rates"]}


def rate(tokens: int, run) -> float:
    start = time.perf_counter()
    run()
    return tokens / (time.perf_counter() - start)


class PyTorch:
    """The model in bf16 or f32, and the same with LoRA on all linear layers."""

    def __init__(self, model: str, threads: int, dtype: str, compiled: bool):
        import peft
        import torch
        import transformers

        torch.set_num_threads(threads)
        torch.manual_seed(1)
        self.torch, self.compiled = torch, compiled
        load = lambda: transformers.AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))  # noqa: E731
        self.plain = load().eval()
        config = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
        self.lora = peft.get_peft_model(load(), config).to(getattr(torch, dtype)).train()
        if compiled:  # for fixed shapes: a cache that grows would be compiled anew for every token
            self.plain.forward = torch.compile(self.plain.forward, dynamic=False)
            self.lora.base_model.model.forward = torch.compile(self.lora.base_model.model.forward, dynamic=False)

    def ids(self, prompts: int):
        return self.torch.randint(0, self.plain.config.vocab_size, (prompts, TOKENS))

    def prefill(self, prompts: int) -> float:
        ids = self.ids(prompts)
        with self.torch.inference_mode():
            return rate(ids.numel(), lambda: self.plain(input_ids=ids, use_cache=False, logits_to_keep=1))

    def decode(self) -> float:
        ids = self.ids(1)
        with self.torch.inference_mode():
            first = self.plain(input_ids=ids, use_cache=True, logits_to_keep=1)
            past, token = first.past_key_values, first.logits[:, -1:].argmax(-1)

            def draw():
                nonlocal past, token
                for _ in range(DRAWS):
                    out = self.plain(input_ids=token, past_key_values=past, use_cache=True, logits_to_keep=1)
                    past, token = out.past_key_values, out.logits[:, -1:].argmax(-1)

            return rate(DRAWS, draw)

    def train(self) -> float:
        ids = self.ids(BATCH)

        def gradient():
            logits = self.lora(input_ids=ids, use_cache=False, logits_to_keep=2).logits
            loss = self.torch.nn.functional.cross_entropy(logits[:, 0].float(), ids[:, -1])
            loss.backward()
            self.lora.zero_grad()

        return rate(ids.numel(), gradient)

    def rates(self):
        decode = {} if self.compiled else {DECODE: self.decode()}
        return {ONE: self.prefill(1), MANY: self.prefill(PROMPTS), TRAIN: self.train(), **decode}


class LlamaCpp:
    """A GGUF file: one prompt, and tokens behind it."""

    def __init__(self, file: str, threads: int):
        import llama_cpp

        self.model = llama_cpp.Llama(
            file, n_ctx=2 * TOKENS + DRAWS, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False
        )

    def rates(self):
        ids = [1 + 7919 * i % (self.model.n_vocab() - 1) for i in range(TOKENS)]
        self.model.reset()
        prefill = rate(TOKENS, lambda: self.model.eval(ids))

        def draw():
            for _ in range(DRAWS):
                self.model.eval([self.model.sample(temp=0.0)])

        return {ONE: prefill, DECODE: rate(DRAWS, draw)}


def sides(arguments):
    """Every side by its name, and a call that measures it once."""
    model, threads = arguments.model, arguments.threads
    found = {f"dialoguellm {precision}": lambda p=precision: ours(model, threads, p) for precision in ("bf16", "int8", "int4")}
    try:
        for compiled in [False, True][: 1 + arguments.compile]:
            name = f"PyTorch {arguments.dtype}{' compiled' * compiled}"
            found[name] = PyTorch(model, threads, arguments.dtype, compiled).rates
    except ImportError as error:
        print(f"# not measured: PyTorch ({error})")
    for file in arguments.gguf:
        try:
            found[f"llama.cpp {pathlib.Path(file).stem}"] = LlamaCpp(file, threads).rates
        except ImportError as error:
            print(f"# not measured: llama.cpp ({error})")
    return found


def processor() -> str:
    """Its name, where the system tells it."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--gguf", nargs="*", default=[])
    arguments = parser.parse_args()
    print(f"# machine    {processor()}, {arguments.threads} threads, {platform.system()}")
    print(f"# command    {' '.join(sys.argv)}")
    found = sides(arguments)
    taken = {name: {} for name in found}
    for round_ in range(arguments.rounds + 1):
        for name, measure in found.items():
            for work, value in measure().items():
                if round_ > 0:  # the first warms up
                    taken[name].setdefault(work, []).append(value)
    print("what,size,threads,unit,median,min,max,n")
    for name, works in taken.items():
        for work in WORKS:
            if rates := works.get(work):
                numbers = f"{statistics.median(rates):.1f},{min(rates):.1f},{max(rates):.1f},{len(rates)}"
                print(f'{name},"{work}",{arguments.threads},tokens/s,{numbers}')
    peers = [name for name in taken if not name.startswith("dialoguellm")]
    for name in taken:
        for work in WORKS:
            others = {peer: statistics.median(taken[peer][work]) for peer in peers if work in taken[peer]}
            if name not in peers and others:
                best = max(others, key=others.get)
                times = statistics.median(taken[name][work]) / others[best]
                print(f"# {name}, {work}: {times:.2f} times {best}")


if __name__ == "__main__":
    main()
