#!/usr/bin/env python3
"""The peers on a GPU, at the sizes of kernels/benches/cuda.rs: what PyTorch's kernels and a PEFT step reach.

    python gpu_peers.py kernels             copies, torch.matmul (cuBLASLt), scaled_dot_product_attention (flash), both ways
    python gpu_peers.py lora                steps of PEFT on a random LLaMA of 7B's shape, prompts a second by batch size
    python gpu_peers.py lora --compile      the same under torch.compile, at --batch

Prints the table of ../results/README.md, as the benchmark of the own kernels does and under the same names. The peer is
given what makes it fast: no padding, adapters in bf16, logits for the answer's row only, a fused optimizer, the batch sizes
tried upward until memory or time is up. Nothing is fetched. --device cpu --tiny proves that all of it runs.
"""

import argparse
import gc
import os
import signal
import statistics
import sys
import time

import torch
import torch.nn.functional as F

ROWS, MODEL, INNER, VOCABULARY, HEADS, LAYERS = 16384, 4096, 11008, 32000, 32, 32
LENGTHS = [256, 512, 1024, 2048, 4096]
PROMPT, RANK = 250, 8
SAMPLES = 20
TARGETS = {"qv": ["q_proj", "v_proj"], "all": "all-linear"}


def seconds(run, device: str, times: int) -> float:
    """What `times` runs take, each."""
    if device == "cpu":
        start = time.perf_counter()
        for _ in range(times):
            run()
        return (time.perf_counter() - start) / times
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(times):
        run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / times


def sampled(run, device: str, samples: int) -> list:
    """Seconds of samples of about a millisecond, sorted, after a warm-up."""
    for _ in range(3):
        once = seconds(run, device, 1)
    times = max(1, min(200, round(1e-3 / once)))
    return sorted(seconds(run, device, times) for _ in range(samples))


def row(what: str, size: str, unit: str, scale: float, taken: list) -> None:
    """Rates of `scale` a run."""
    rates = [scale / taken_once for taken_once in (statistics.median(taken), taken[-1], taken[0])]
    print(f'{what},"{size}",1,{unit},{rates[0]:.2f},{rates[1]:.2f},{rates[2]:.2f},{len(taken)}', flush=True)


def head(args) -> None:
    name = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    print(f"# machine    {name}")
    print(f"# command    benches/peers/gpu_peers.py {' '.join(sys.argv[1:])}; torch {torch.__version__}")
    print("what,size,threads,unit,median,min,max,n", flush=True)


def random(args, *shape):
    return torch.randn(*shape, device=args.device, dtype=torch.bfloat16)


def products(args) -> None:
    x = random(args, args.rows, max(args.model, args.inner))
    for m in (max(args.rows // 64, 1), args.rows // 8, args.rows):
        for n, k in ((args.model, args.model), (args.inner, args.model), (args.model, args.inner)):
            a = x.flatten()[: m * k].view(m, k)
            for name, w in (("torch gemm", random(args, n, k).t()), ("torch gemm transposed", random(args, k, n))):
                taken = sampled(lambda a=a, w=w: torch.matmul(a, w), args.device, args.samples)
                row(name, f"T {m}; n {n}; k {k} + 0", "TFLOP/s", 2 * m * n * k / 1e12, taken)
    a = x.flatten()[: args.rows * args.model].view(args.rows, args.model)
    for rank in (8, 16):
        w, u = random(args, rank, args.model).t(), random(args, args.rows, rank)
        work = 2 * args.rows * args.model * rank / 1e12
        taken = sampled(lambda w=w: torch.matmul(a, w), args.device, args.samples)
        row("torch lora down", f"T {args.rows}; n {rank}; k {args.model}", "TFLOP/s", work, taken)
        taken = sampled(lambda u=u: torch.matmul(u.t(), a), args.device, args.samples)
        row("torch lora gradient", f"T {args.rows}; m {rank}; n {args.model}", "TFLOP/s", work, taken)


def attention(args) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    dim, backend = 128, SDPBackend.FLASH_ATTENTION
    for length in args.lengths:
        shape = (args.rows // length, args.heads, length, dim)
        q, k, v = (random(args, *shape).requires_grad_() for _ in range(3))
        d_o = random(args, *shape)
        pairs = args.rows * (length + 1) / 2 * args.heads * dim
        size = f"{shape[0]} x {length}; {args.heads} heads of {dim}"
        with sdpa_kernel(backend):

            def forward(q=q, k=k, v=v):
                with torch.no_grad():
                    return F.scaled_dot_product_attention(q, k, v, is_causal=True)

            row("torch attention forward", size, "TFLOP/s", 4 * pairs / 1e12, sampled(forward, args.device, args.samples))
            o = F.scaled_dot_product_attention(q, k, v, is_causal=True)

            def backward(o=o, q=q, k=k, v=v, d_o=d_o):
                return torch.autograd.grad(o, (q, k, v), d_o, retain_graph=True)

            row("torch attention backward", size, "TFLOP/s", 10 * pairs / 1e12, sampled(backward, args.device, args.samples))


def kernels(args) -> None:
    values = args.copied // 2
    x, y = random(args, values), random(args, values)
    row("torch copy", f"{args.copied >> 20} MiB", "GB/s", 2 * args.copied / 1e9, sampled(lambda: y.copy_(x), args.device, args.samples))
    del x, y
    products(args)
    attention(args)


def llama(args):
    """A random model of 7B's shape."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=args.model,
        intermediate_size=args.inner,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.heads,
        vocab_size=VOCABULARY,
        max_position_embeddings=4096,
        use_cache=False,
        attn_implementation="sdpa",
    )
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(args.device):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    return model


def step_of(model, optimizer, ids):
    """One step: the loss is on the last token."""

    def step():
        logits = model(input_ids=ids, logits_to_keep=2).logits
        F.cross_entropy(logits[:, 0].float(), ids[:, -1]).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def lora(args) -> None:
    from peft import LoraConfig, get_peft_model

    base = llama(args)
    for name in args.targets:
        config = LoraConfig(r=RANK, lora_alpha=16, lora_dropout=0.0, target_modules=TARGETS[name], task_type="CAUSAL_LM")
        model = get_peft_model(base, config, autocast_adapter_dtype=False)
        model.train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=args.device == "cuda")
        run = torch.compile(model) if args.compile else model
        started = time.perf_counter()
        for batch in [args.batch] if args.compile else args.batches:
            ids = torch.randint(3, VOCABULARY, (batch, PROMPT), device=args.device)
            try:
                step = step_of(run, optimizer, ids)
                for _ in range(2):
                    step()
                taken = sorted(seconds(step, args.device, 1) for _ in range(5))
            except torch.OutOfMemoryError:
                print(f"# note       {name}: no memory for a batch of {batch}", flush=True)
                break
            how = ", compiled" if args.compile else ""
            row("peft step", f"rank {RANK} on {name}; {batch} prompts of {PROMPT}{how}", "prompts/s", batch, taken)
            if time.perf_counter() - started > args.seconds:
                break
        optimizer.zero_grad(set_to_none=True)
        del run, optimizer, trained
        base = model.unload()
        del model
        gc.collect()
        if args.device == "cuda":
            torch.cuda.empty_cache()


def time_is_up(*_) -> None:
    print("# note       stopped: the time is up", flush=True)
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["kernels", "lora"])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="small sizes, to prove that it runs")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--batch", type=int, default=16, help="of a compiled step")
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--seconds", type=float, default=40, help="no larger batch is begun after so many, for each set of targets")
    parser.add_argument("--limit", type=int, default=140, help="the end, seconds from now")
    args = parser.parse_args()
    args.rows, args.model, args.inner, args.heads, args.layers = ROWS, MODEL, INNER, HEADS, LAYERS
    args.lengths, args.samples, args.copied, args.batches = LENGTHS, SAMPLES, 1 << 30, [1, 2, 4, 8, 16, 32, 64, 128]
    if args.tiny:
        args.rows, args.model, args.inner, args.heads, args.layers = 64, 64, 96, 2, 2
        args.lengths, args.samples, args.copied, args.batches = [32], 3, 1 << 16, [1, 2]
    signal.signal(signal.SIGALRM, time_is_up)
    signal.alarm(args.limit)
    head(args)
    kernels(args) if args.part == "kernels" else lora(args)


if __name__ == "__main__":
    main()
