#!/usr/bin/env python3
"""What guessing tokens by the text before (num_speculative_tokens) gives and costs on the CPU.

    bench/cpu/speculation.py --model FILE [--deepinfer PATH] [--rounds 5] [--tokens 8] [--streams 1,8]

One server; the same requests in turn with guesses and without: those whose answers repeat their prompt (a text that is
copied, code that is edited), and those that repeat nothing (sampled stories). The answers must be the same. Prints tokens a
second as medians, their ratio, and how many guesses were right on standard error, JSON on standard output.
"""
import argparse
import asyncio
import json
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from peers import DeepInfer, Server, alternate, say  # noqa: E402

NEWS = """The harbour of Ostrava Bay was closed on Tuesday after a crane fell across two piers. Nobody was hurt, said the
harbour master, Lena Brandt, but nineteen ships had to wait at sea. The crane, built in 1968, was to be taken down next
year. Repairs will cost about four million crowns and take three weeks, in which ferries leave from the old quay. """
CODE = """def total_price(items, discount):
    total = 0
    for item in items:
        total += item.price * item.count
    if discount is not None:
        total -= total * discount / 100
    return round(total, 2)


def total_weight(items, packaging):
    total = 0
    for item in items:
        total += item.weight * item.count
    if packaging is not None:
        total += packaging.weight
    return round(total, 3)
"""
CASES = {
    "copied text": [dict(prompt=f"{NEWS}\n\nThe same text again, {i + 1}:\n\n{NEWS[:60]}", temperature=0) for i in range(8)],
    "edited code": [dict(prompt=f"{CODE}\n\n# The same functions again, version {i + 2}:\n\n{CODE[:34]}", temperature=0)
                    for i in range(8)],
    "stories": [dict(prompt=f"A story about {thing}. Once upon a time", temperature=1.0, seed=i) for i, thing in enumerate(
        ["a fox", "the sea", "two brothers", "a lost key", "the night train", "an old clock", "a garden", "winter"])],
}
TOKENS = 160


async def answer(port, body):
    """The body of an answer; a connection of its own, so that a server is asked by many at once."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    data = json.dumps(body).encode()
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
                 b"Content-Length: %d\r\n\r\n" % len(data) + data)
    head, _, text = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    assert b" 200 " in head.split(b"\r\n")[0], text
    return json.loads(text)


async def run(port, requests, guesses, streams):
    """Tokens a second of these requests, `streams` at a time, and their texts."""
    waiting, texts = list(enumerate(requests)), {}

    async def client():
        while waiting:
            i, request = waiting.pop(0)
            body = dict(request, max_tokens=TOKENS, ignore_eos=True, num_speculative_tokens=guesses)
            texts[i] = (await answer(port, body))["choices"][0]["text"]

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(streams)))
    return len(requests) * TOKENS / (time.perf_counter() - start), texts


async def counters(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    lines = (await reader.read()).decode().splitlines()
    writer.close()
    return {name: sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"vllm:spec_decode_num_{name}_total"))
            for name in ("draft_tokens", "accepted_tokens")}


def measure(port, args):
    results = []
    for streams in args.streams:
        for case, requests in CASES.items():
            rates, before = {0: [], args.tokens: []}, asyncio.run(counters(port))
            asyncio.run(run(port, requests, 0, streams))  # prompts are in the cache from here on
            for _ in range(args.rounds):
                texts = {}
                for guesses in rates:
                    rate, texts[guesses] = asyncio.run(run(port, requests, guesses, streams))
                    rates[guesses].append(rate)
                assert texts[0] == texts[args.tokens], f"{case}: the answers differ"
            after = asyncio.run(counters(port))
            drafted, right = (after[k] - before[k] for k in before)
            off, on = (statistics.median(r) for r in rates.values())
            ratio = statistics.median(b / a for a, b in zip(*rates.values()))
            say(f"{case}, {streams} streams: {off:.0f} tok/s without, {on:.0f} with: {ratio:.3f}x; "
                f"{right:.0f} of {drafted:.0f} guesses right")
            results.append(dict(case=case, streams=streams, off=rates[0], on=rates[args.tokens], ratio=ratio,
                                drafted=drafted, accepted=right))
    return results


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--model", required=True)
    p.add_argument("--deepinfer", default="build/release/src/cli/deepinfer")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--tokens", type=int, default=8)
    p.add_argument("--streams", type=lambda s: [int(n) for n in s.split(",")], default=[1, 8])
    args = p.parse_args()
    for peer in alternate([DeepInfer(args)], 1, "speculation"):
        with Server(peer, max(args.streams)) as server:
            print(json.dumps(dict(model=pathlib.Path(args.model).name, guesses=args.tokens, tokens=TOKENS,
                                  results=measure(server.port, args)), indent=1))


if __name__ == "__main__":
    main()
