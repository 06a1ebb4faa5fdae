#!/usr/bin/env python3
"""What a client feels of others: the gaps between tokens of one stream, alone and beside clients that ask for much.

    bench/server/fairness.py --model FILE.gguf [--deepinfer PATH] [--seconds 15]

megabyte: a client sends prompts of 1 MB, one after another (they are read, tokenized and refused: the context is smaller).
context: a client sends prompts of the whole context, one after another, so that prefill chunks share steps with the stream.
hundred: a client holds 100 streams; then the share of the tokens that a second client with one stream gets.
The others are a process of their own, and one for idle time: on this machine they take the CPUs that the server leaves, as clients
on other machines would take none.
Prints a table on standard error and JSON on standard output.
"""
import argparse
import asyncio
import json
import multiprocessing
import os
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from load import percentile, prompts, stream  # noqa: E402
from peers import DeepInfer, Server, say  # noqa: E402
from soak import whole  # noqa: E402

CONTEXT = 4096


class Crowd:
    """`other(port, stop)` in a process of its own, until the end of the block; then `sent` is what it returned."""

    def __init__(self, other, port):
        context = multiprocessing.get_context("spawn")
        self.stop, self.sent = context.Event(), 0
        self.result, there = context.Pipe(duplex=False)
        self.process = context.Process(target=self.run, args=(other, port, self.stop, there), daemon=True)

    @staticmethod
    def run(other, port, stop, result):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        result.send(asyncio.run(other(port, stop)))

    def __enter__(self):
        self.process.start()
        time.sleep(1)
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.process.join()
        if self.process.exitcode != 0:
            raise RuntimeError(f"the crowd ended with {self.process.exitcode}")
        self.sent = self.result.recv()


async def gaps_of_one(port, seconds):
    """The gaps of a stream that asks again and again."""
    gaps, tokens, start = [], 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        seen = await stream(port, f"{tokens} A story of a lighthouse:", 200, until=start + seconds)
        gaps += seen.gaps
        tokens += len(seen.gaps) + 1
    rate = tokens / (time.perf_counter() - start)
    return {"itl_p50 ms": 1e3 * percentile(gaps, 50), "itl_p99 ms": 1e3 * percentile(gaps, 99),
            "itl_max ms": 1e3 * max(gaps), "tokens a second": rate}


def measure(port, seconds, other):
    """The same beside `other`; None: alone."""
    asyncio.run(stream(port, "A warm-up", 8))
    if other is None:
        return asyncio.run(gaps_of_one(port, seconds))
    with Crowd(other, port) as crowd:
        row = asyncio.run(gaps_of_one(port, seconds))
    return row | {"requests of others": crowd.sent}


async def megabytes(port, stop):
    count, text = 0, "The quick brown fox jumps over the lazy dog, again. " * (1 << 15)
    while not stop.is_set():
        status, _ = await whole(port, "/v1/completions", {"prompt": f"{count} {text}"[:1 << 20], "max_tokens": 1})
        if status != 400:
            raise RuntimeError(f"a prompt of 1 MB got {status}")
        count += 1
    return count


async def contexts(port, stop):
    count = 0
    while not stop.is_set():
        prompt = prompts(count + 1, CONTEXT * 5 // 4)[count][:2 * CONTEXT]
        status, answer = await whole(port, "/v1/completions", {"prompt": prompt, "max_tokens": 1,
                                                              "truncate_prompt_tokens": CONTEXT - 8})
        if status != 200:
            raise RuntimeError(f"a prompt of the whole context got {status}: {answer}")
        count += 1
    return count


async def hundred(port, stop):
    async def one(i):
        count = 0
        while not stop.is_set():
            await stream(port, f"{i} {count} One of a hundred:", 100)
            count += 1
        return count

    return sum(await asyncio.gather(*(one(i) for i in range(100))))


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--model", required=True)
    p.add_argument("--deepinfer", default="build/release/src/cli/deepinfer")
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--seconds", type=float, default=15)
    p.add_argument("--only", default="megabyte,context,hundred")
    args = p.parse_args()
    table, kinds = {}, {"megabyte": megabytes, "context": contexts, "hundred": hundred}
    for name in ["alone"] + args.only.split(","):
        with Server(DeepInfer(args), 128, CONTEXT) as server:
            table[name] = measure(server.port, args.seconds, kinds.get(name))
        say(f"{name:10}" + "  ".join(f"{k} {v:.1f}" for k, v in table[name].items()))
    for name in args.only.split(","):
        table[name]["itl_p99 ratio to alone"] = table[name]["itl_p99 ms"] / table["alone"]["itl_p99 ms"]
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
