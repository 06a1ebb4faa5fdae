#!/usr/bin/env python3
"""Compares the server with llama-server and vLLM's CPU build under load: one machine, one interleaved run, medians, ratios.

    bench/server/compare.py --model FILE.gguf [--llama FOLDER] [--vllm VENV --vllm-model FOLDER] [--deepinfer PATH]
                            [--rounds 3] [--streams 1 8 32 128] [--only closed,shared,open] [--tokens 64]

closed: so many streams at a time; shared: the same with prompts that begin the same; open: requests that arrive at random,
at 70% of the rate that the closed loop of 8 streams of our own server reached. Prints a table on standard error and JSON on standard output. A ratio
above 1 means that deepinfer is better.
"""
import argparse
import asyncio
import json
import os
import pathlib
import random
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from load import closed_loop, open_loop, percentile, prompts  # noqa: E402
from peers import DeepInfer, LlamaCpp, Server, Table, Vllm, alternate  # noqa: E402

PROMPT_TOKENS = 100


def note(table, what, peer, tokens, seconds, seen):
    table.add(f"{what} output tok/s", peer.name, len(seen) * tokens / seconds)
    gaps = [g for s in seen for g in s.gaps]
    for name, values in (("ttft", [s.ttft for s in seen]), ("itl", gaps)):
        for p in (50, 99):
            table.add(f"{name}_p{p} {what} ms", peer.name, 1e3 * percentile(values, p))


def loops(table, peers, args, what, shared):
    for streams in args.streams:
        number = max(4, 2 * streams)
        for peer in alternate(peers, args.rounds, f"{what}, {streams} streams"):
            with Server(peer, streams) as s:
                asyncio.run(closed_loop(s.port, 1, prompts(1, PROMPT_TOKENS, shared), 4))
                seconds, seen = asyncio.run(
                    closed_loop(s.port, streams, prompts(number, PROMPT_TOKENS, shared), args.tokens))
            note(table, f"{what}_{streams}", peer, args.tokens, seconds, seen)


def arrivals(table, peers, args):
    with Server(peers[0], 8) as s:
        seconds, seen = asyncio.run(closed_loop(s.port, 8, prompts(24, PROMPT_TOKENS), args.tokens))
    rate = 0.7 * len(seen) / seconds
    for peer in alternate(peers, args.rounds, f"open, {rate:.1f} requests a second"):
        with Server(peer, 32) as s:
            asyncio.run(closed_loop(s.port, 1, prompts(1, PROMPT_TOKENS), 4))
            seconds, seen = asyncio.run(
                open_loop(s.port, rate, prompts(40, PROMPT_TOKENS), args.tokens, random.Random(5)))
        note(table, "open", peer, args.tokens, seconds, seen)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--model", required=True)
    p.add_argument("--llama", help="folder of llama.cpp's programs")
    p.add_argument("--vllm", help="virtual environment with vLLM's CPU build")
    p.add_argument("--vllm-model", help="the same model as a folder")
    p.add_argument("--deepinfer", default="build/release/src/cli/deepinfer")
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32, 128])
    p.add_argument("--tokens", type=int, default=64)
    p.add_argument("--only", default="closed,shared,open")
    args = p.parse_args()
    if not args.llama and not args.vllm:
        p.error("--llama or --vllm: with whom to compare?")
    peers = [DeepInfer(args)] + ([LlamaCpp(args)] if args.llama else []) + ([Vllm(args)] if args.vllm else [])
    table = Table([q.name for q in peers])
    parts = {"closed": lambda: loops(table, peers, args, "closed", False),
             "shared": lambda: loops(table, peers, args, "shared", True),
             "open": lambda: arrivals(table, peers, args)}
    try:
        for part in args.only.split(","):
            parts[part]()
    finally:
        Server.stop_kept()
    print(json.dumps(table.print(), indent=1))


if __name__ == "__main__":
    main()
