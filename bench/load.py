"""A client that costs little: streams of /v1/completions over bare sockets, and what each saw. Used by bench/*/*.py."""
import asyncio
import dataclasses
import json
import time


@dataclasses.dataclass
class Stream:
    """Of one request: seconds to the first text, between later ones, and in all."""
    ttft: float
    gaps: list
    seconds: float


async def before(until, what):
    """What is awaited, or nothing when it is not there in time."""
    if until is None:
        return await what
    try:
        return await asyncio.wait_for(what, max(0.0, until - time.perf_counter()))
    except asyncio.TimeoutError:
        return b""


async def stream(port, prompt, tokens, until=None, **fields):
    """Streams one greedy completion of exactly `tokens` tokens; until: of time.perf_counter(), when it is left."""
    body = json.dumps({"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True,
                       "stream": True} | fields).encode()
    start = last = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                 b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    times, end, head = [], b"", b""
    while data := await before(until, reader.read(65536)):
        if not times:
            head = (head + data)[:200]
        if b'"text"' in data:
            times.append(time.perf_counter())
        end = (end + data)[-64:]
    writer.close()
    if until is not None and time.perf_counter() >= until:  # the gap that was not over counts as it is
        times = (times or [start]) + [time.perf_counter()]
    elif b"[DONE]" not in end:
        raise RuntimeError(f"the stream did not end: {head!r} ... {end!r}")
    last = times[-1]
    return Stream(times[0] - start, [b - a for a, b in zip(times, times[1:])], last - start)


def prompts(number, tokens, shared=False):
    """About `tokens` tokens each. Different beginnings, so that no prefix cache helps; or all begin the same but for
    their last tenth."""
    def numbers(i, count):
        return " ".join(f"{(i * 7919 + k * 104729) % 9973}" for k in range(count))

    count = tokens // 5
    if shared:
        begin = numbers(1, count - count // 10)
        return [f"{begin} {numbers(i + 2, count // 10)}" for i in range(number)]
    return [numbers(i + 2, count) for i in range(number)]


async def closed_loop(port, streams, inputs, tokens):
    """`streams` requests at a time. Returns seconds in all and what each saw."""
    todo, seen = iter(inputs), []

    async def worker():
        for prompt in todo:
            seen.append(await stream(port, prompt, tokens))

    start = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(streams)))
    return time.perf_counter() - start, seen


async def open_loop(port, rate, inputs, tokens, random):
    """Requests arrive at random, `rate` a second, whether or not others have ended."""
    async def later(at, prompt):
        await asyncio.sleep(at)
        return await stream(port, prompt, tokens)

    at, arrivals = 0.0, []
    for prompt in inputs:
        arrivals.append(later(at, prompt))
        at += random.expovariate(rate)
    start = time.perf_counter()
    seen = await asyncio.gather(*arrivals)
    return time.perf_counter() - start, seen


def percentile(values, p):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * p / 100))] if ordered else 0.0
