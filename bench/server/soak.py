#!/usr/bin/env python3
"""Random clients against a server for some time, then what must be as before: blocks, files, threads, memory, answers.

    bench/server/soak.py --model FILE.gguf [--deepinfer PATH] [--seconds 600] [--clients 24] [--seed N]

The KV pool is filled first, so that memory that grows with use has grown. Prints what was sent and what is left, and
ends with 1 when something is not as it was: each accepted request answered exactly once, all blocks free, as many
files and threads, and resident memory at most 2% above. tests/server/test_soak.py runs a short one.
"""
import argparse
import asyncio
import collections
import contextlib
import json
import os
import pathlib
import random
import re
import sys
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from peers import DeepInfer, Server  # noqa: E402

HEAD = "POST {} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"


class Wrong(Exception):
    """Something that a client must never see."""


async def send(port, path, body, method="POST"):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    writer.write(HEAD.format(path, len(data)).replace("POST", method, 1).encode() + data)
    return reader, writer


async def whole(port, path, body, method="POST"):
    """The status and the JSON of an answer."""
    reader, writer = await send(port, path, body, method)
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(re.search(r"content-length: (\d+)", head, re.IGNORECASE)[1])
        return int(head.split()[1]), json.loads(await reader.readexactly(length) or b"null")
    finally:
        writer.close()


def request(rng, **fields):
    body = {"max_tokens": rng.choice([1, 4, 16, 60]), "temperature": rng.choice([0, 1]), "n": rng.choice([1, 1, 1, 3])}
    if rng.random() < 0.3:
        body["logprobs"] = 2
    if rng.random() < 0.2:
        body["stop"] = [" the", "\n\n"]
    words = rng.choice([3, 20, 150])
    prompt = " ".join(str(rng.randrange(10000)) for _ in range(words))
    if rng.random() < 0.3:
        prompt = "Once upon a time there was a machine. " * 6 + prompt  # a prefix to share
    return body | {"prompt": prompt} | fields


class Clients:
    def __init__(self, port, rng):
        self.port, self.rng = port, rng
        self.count, self.ids = collections.Counter(), set()

    def accept(self, answer_id):
        if answer_id in self.ids:
            raise Wrong(f"two answers have the id {answer_id}")
        self.ids.add(answer_id)

    async def complete(self):
        body = request(self.rng)
        status, answer = await whole(self.port, "/v1/completions", body)
        if status == 429:
            return "refused"
        if status != 200:
            raise Wrong(f"{status} for {body}: {answer}")
        self.accept(answer["id"])
        reasons = [c["finish_reason"] for c in answer["choices"]]
        if len(reasons) != body["n"] or not set(reasons) <= {"stop", "length"}:
            raise Wrong(f"finish reasons {reasons} for {body}")
        return "whole"

    async def stream(self, leave=False):
        body = request(self.rng, stream=True)
        reader, writer = await send(self.port, "/v1/completions", body)
        chunks, finishes, ids, done = self.rng.randrange(1, 8), collections.Counter(), set(), 0
        with contextlib.closing(writer):
            status = int((await reader.readuntil(b"\r\n\r\n")).split()[1])
            if status == 429:
                return "refused"
            if status != 200:
                raise Wrong(f"{status} for {body}")
            async for line in reader:
                if not line.startswith(b"data: "):
                    continue
                if line.startswith(b"data: [DONE]"):
                    done += 1
                    break
                event = json.loads(line[6:])
                if "error" in event:
                    raise Wrong(f"an error in a stream: {event}")
                ids.add(event["id"])
                finishes.update(c["index"] for c in event["choices"] if c["finish_reason"])
                chunks -= 1
                if leave and chunks == 0:
                    return "left"
        if done != 1 or len(ids) != 1 or finishes != dict.fromkeys(range(body["n"]), 1):
            raise Wrong(f"a stream with {done} ends, ids {ids}, finishes {finishes}")
        self.accept(ids.pop())
        return "stream"

    async def leave_early(self):
        _, writer = await send(self.port, "/v1/completions", request(self.rng, max_tokens=60))
        await asyncio.sleep(self.rng.random() * 0.2)
        writer.close()
        return "left"

    async def bad(self):
        path, body, want = self.rng.choice([
            ("/v1/completions", b"{", 400), ("/v1/completions", {"prompt": ""}, 400),
            ("/v1/completions", {"prompt": "a", "temperature": -1}, 400), ("/v1/nothing", {}, 404),
            ("/v1/completions", {"prompt": "a", "model": "no-such-model"}, 404),
            ("/v1/chat/completions", {"messages": []}, 400), ("/v1/models", {}, 405)])
        status, answer = await whole(self.port, path, body)
        if status != want or "error" not in answer:
            raise Wrong(f"{status} for {path} {body}, expected {want}: {answer}")
        return "bad"

    async def half(self):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(HEAD.format("/v1/completions", 100).encode()[:self.rng.randrange(1, 60)])
        await asyncio.sleep(self.rng.random() * 0.1)
        writer.close()
        return "half"

    async def run(self, until):
        kinds = [self.complete, self.complete, self.stream, self.stream, lambda: self.stream(leave=True),
                 self.leave_early, self.bad, self.half]
        while asyncio.get_running_loop().time() < until:
            self.count[await self.rng.choice(kinds)()] += 1


def metrics(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {name: float(value) for name, value in re.findall(r"^deepinfer:(\w+)\{[^}]*\} (\S+)$", text, re.MULTILINE)}


def state(pid):
    with open(f"/proc/{pid}/status") as f:
        status = f.read()
    return {"files": len(os.listdir(f"/proc/{pid}/fd")), "threads": int(re.search(r"Threads:\s+(\d+)", status)[1]),
            "rss_kb": int(re.search(r"VmRSS:\s+(\d+)", status)[1])}


async def settle(port):
    """Waits until nothing runs; returns the share of the KV cache that is in use then."""
    for _ in range(200):
        m = metrics(port)
        if m["num_requests_running"] == m["num_requests_waiting"] == 0:
            return m["kv_cache_usage_perc"]
        await asyncio.sleep(0.1)
    raise Wrong(f"requests are left: {m}")


async def fill(port, rng):
    """Distinct prompts until every block has been touched, and every kind of client for some seconds."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        info = re.search(r"^deepinfer:cache_config_info{(.*)} 1", answer.read().decode(), re.MULTILINE)[1]
    left = int(re.search(r'num_gpu_blocks="(\d+)"', info)[1]) * int(re.search(r'block_size="(\d+)"', info)[1])
    while left > 0:
        prompts = [" ".join(str(rng.randrange(10000)) for _ in range(150)) for _ in range(24)]
        answers = await asyncio.gather(
            *(whole(port, "/v1/completions", {"prompt": p, "max_tokens": 1}) for p in prompts))
        left -= sum(answer["usage"]["prompt_tokens"] for status, answer in answers if status == 200)
    clients = Clients(port, rng)
    end = asyncio.get_running_loop().time() + 5
    await asyncio.gather(*(clients.run(end) for _ in range(24)))


async def soak(pid, port, seconds, clients, seed, say=print):
    """Returns what is wrong, as a list of lines."""
    rng = random.Random(seed)
    await fill(port, rng)
    await settle(port)
    await asyncio.sleep(1.5)  # connections that linger
    before = state(pid)
    crowd = Clients(port, rng)
    end = asyncio.get_running_loop().time() + seconds
    try:
        await asyncio.gather(*(crowd.run(end) for _ in range(clients)))
        used = await settle(port)
    except Wrong as wrong:
        return [str(wrong)]
    await asyncio.sleep(2.5)
    after = state(pid)
    say(f"seed {seed}, {seconds} s: {dict(crowd.count)}")
    say(f"before {before}, after {after}, KV in use {used:.1%}")
    wrong = [f"{what}: {before[what]} before, {after[what]} after" for what in ("files", "threads")
             if after[what] != before[what]]
    if used != 0:
        wrong.append(f"{used:.2%} of the KV cache is in use though nothing runs")
    if after["rss_kb"] > 1.02 * before["rss_kb"]:
        wrong.append(f"resident memory: {before['rss_kb']} kB before, {after['rss_kb']} after")
    return wrong


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--model", required=True)
    p.add_argument("--deepinfer", default="build/release/src/cli/deepinfer")
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--seconds", type=float, default=600)
    p.add_argument("--clients", type=int, default=24)
    p.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    args = p.parse_args()
    os.environ |= {"DEEPINFER_MAX_NUM_SEQS": "16", "DEEPINFER_KV_CACHE_MEMORY_BYTES": str(48 << 20)}
    with Server(DeepInfer(args), 16, 1024) as server:
        wrong = asyncio.run(soak(server.process.pid, server.port, args.seconds, args.clients, args.seed))
    print("\n".join(wrong) or "all as before")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
