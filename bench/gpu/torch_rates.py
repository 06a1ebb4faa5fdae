#!/usr/bin/env python3
"""What PyTorch reaches on this card: torch_rates.py OUT.json

The copy bandwidth and the rate of matrix products (for the floors), the matrices of a Llama-3.1-8B layer by number of
tokens, and attention. Everything in bf16, in CUDA graphs, weights rotated so that they come from memory.
"""
import json
import sys
import time

import torch
import torch.nn.functional as F

LAYERS = 32
MATRICES = {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336)}
HEAD = (128256, 4096)
HEADS, KV_HEADS, DIM = 32, 8, 128
DEADLINE = time.monotonic() + 100


def seconds(calls, repeats=5):
    """The best time of one of `calls`, run one after the other in a graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    best = float("inf")
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        best = min(best, start.elapsed_time(end) / 1e3 / len(calls))
    return best


def random(*shape):
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16) * 0.02


def copy_rate():
    a = torch.empty(2 << 30, device="cuda", dtype=torch.uint8)
    b = torch.empty_like(a)
    return 2 * a.numel() / seconds([lambda: b.copy_(a)] * 4) / 1e9


def matmul_rate(n=8192):
    a, b, out = random(n, n), random(n, n), random(n, n)
    return 2 * n ** 3 / seconds([lambda: torch.mm(a, b, out=out)] * 10) / 1e12


def linear(rows, cols, tokens):
    copies = max(1, min(16, (512 << 20) // (rows * cols * 2)))
    weights = [random(rows, cols) for _ in range(copies)]
    x, out = random(tokens, cols), random(tokens, rows)
    calls = [lambda w=w: torch.mm(x, w.t(), out=out) for w in weights]
    while len(calls) < 8:
        calls += calls
    return seconds(calls)


def attention(batch, queries, context):
    sets = max(1, min(8, (1 << 30) // max(1, batch * context * KV_HEADS * DIM * 4)))
    q = random(batch, HEADS, queries, DIM)
    kv = [(random(batch, KV_HEADS, context, DIM), random(batch, KV_HEADS, context, DIM)) for _ in range(sets)]
    calls = [lambda k=k, v=v: F.scaled_dot_product_attention(q, k, v, is_causal=queries > 1, enable_gqa=True)
             for k, v in kv]
    return seconds(calls * (1 if len(calls) >= 4 else 4))


def main():
    torch.manual_seed(0)
    properties = torch.cuda.get_device_properties(0)
    out = {"gpu": properties.name, "capability": f"{properties.major}.{properties.minor}",
           "multiprocessors": properties.multi_processor_count, "memory_bytes": properties.total_memory,
           "torch": torch.__version__, "copy_gb_per_second": copy_rate(), "matmul_tflop_per_second": matmul_rate(),
           "linear": [], "attention": [], "step": []}

    def save():
        with open(sys.argv[1], "w") as file:
            json.dump(out, file, indent=1)

    save()
    times = {}
    for tokens in (1, 64, 1024, 8192, 16, 256):
        for name, (rows, cols) in {**MATRICES, "head": HEAD}.items():
            if time.monotonic() > DEADLINE or (name == "head" and tokens > 256):
                continue
            t = times[name, tokens] = linear(rows, cols, tokens)
            out["linear"].append({"matrix": name, "tokens": tokens, "microseconds": t * 1e6,
                                  "gb_per_second": 2 * rows * cols / t / 1e9,
                                  "tflop_per_second": 2 * rows * cols * tokens / t / 1e12})
        save()
    for batch, queries, context in ((1, 1, 1024), (64, 1, 1024), (1, 1024, 1024), (1, 8192, 8192), (256, 1, 1024)):
        if time.monotonic() > DEADLINE:
            break
        t = times["attention", batch, queries, context] = attention(batch, queries, context)
        out["attention"].append({"batch": batch, "queries": queries, "context": context, "microseconds": t * 1e6})
        save()
    # A step of these kernels alone: the matrices and attention, nothing between them.
    for name, tokens, at, head in (("decode_1", 1, (1, 1, 1024), 1), ("decode_64", 64, (64, 1, 1024), 64),
                                   ("prefill_1024", 1024, (1, 1024, 1024), 1),
                                   ("prefill_8192", 8192, (1, 8192, 8192), 1)):
        parts = [times.get((m, tokens)) for m in MATRICES] + [times.get(("attention", *at))]
        if all(parts) and times.get(("head", head)):
            out["step"].append({"test": name, "milliseconds": 1e3 * (LAYERS * sum(parts) + times["head", head])})
    save()


main()
