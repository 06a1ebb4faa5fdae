"""A stream that two servers made is the stream of one, wherever the first one broke off and however they cut it."""
import json
import pathlib
import random
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "deploy/ray"))
from replay import Broken, Replay, is_repeatable  # noqa: E402

TEXT = "Grüße, 世界: a bridge\n\nspans 🌉 the bay.\""


def event(name, chat, text=None, role=None, finish=None):
    choice = {"index": 0, "finish_reason": finish}
    if chat:
        choice["delta"] = ({"role": role} if role else {}) | ({"content": text} if text is not None else {})
    else:
        choice["text"] = text or ""
    return b"data: " + json.dumps({"id": name, "created": len(name), "choices": [choice]}).encode() + b"\n\n"


def stream(name, chat, random_numbers):
    """The events of a whole answer, cut at random places."""
    cuts = sorted(random_numbers.sample(range(1, len(TEXT)), random_numbers.randrange(0, 9)))
    pieces = [TEXT[a:b] for a, b in zip([0, *cuts], [*cuts, len(TEXT)])]
    begin = [event(name, chat, "", role="assistant")] if chat else []
    usage = b"data: " + json.dumps({"id": name, "created": len(name), "choices": [], "usage": {"total_tokens": 9}}).encode()
    return [*begin, *(event(name, chat, piece) for piece in pieces), b": ping\n\n", event(name, chat, finish="stop"),
            usage + b"\n\n", b"data: [DONE]\n\n"]


def parsed(data):
    assert data.endswith(b"\n\n")
    events = [line for line in data.decode().split("\n\n") if line and not line.startswith(":")]
    assert events[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in events[:-1]]


def text_of(events, chat):
    choices = [e["choices"][0] for e in events if e["choices"]]
    return "".join((c["delta"].get("content") or "") if chat else c["text"] for c in choices)


@pytest.mark.parametrize("chat", [True, False], ids=["chat", "completion"])
def test_wherever_it_breaks_off(chat):
    for seed in range(400):
        numbers = random.Random(seed)
        replay, out = Replay(), b""
        tries = numbers.randrange(1, 4)
        for number in range(tries + 1):
            replay.begin()
            data = b"".join(stream("x" * (number + 1), chat, numbers))
            if number < tries:  # its very end may be what the client has already
                data = data[:numbers.randrange(len(data) + 1)]
            while data:  # the network cuts too, inside of characters
                size = numbers.randrange(1, 60)
                out += replay.events(data[:size])
                data = data[size:]
        events = parsed(out)
        assert text_of(events, chat) == TEXT, f"seed {seed}"
        assert len({(e["id"], e["created"]) for e in events}) == 1, f"seed {seed}"
        ends = [e["choices"][0]["finish_reason"] for e in events if e["choices"]]
        assert ends.count("stop") == 1 and ends[-1] == "stop", f"seed {seed}"
        assert sum(not e["choices"] for e in events) == 1, f"seed {seed}: usage"
        roles = [e for e in events if e["choices"] and "role" in e["choices"][0].get("delta", {})]
        assert len(roles) == (1 if chat else 0), f"seed {seed}"


def test_an_undisturbed_stream_is_passed_on_as_it_is():
    for chat in (True, False):
        data = b"".join(stream("id", chat, random.Random(1)))
        replay = Replay()
        replay.begin()
        assert replay.events(data) == data


@pytest.mark.parametrize("fields, repeatable", [
    ({}, False),
    ({"temperature": 0}, True),
    ({"temperature": 1, "seed": 0}, True),
    ({"temperature": 0, "n": 1}, True),
    ({"temperature": 0, "n": 2}, False),
    ({"temperature": 0, "logprobs": True}, False),
    ({"temperature": 0, "prompt": ["a", "b"]}, False),
    ({"temperature": 0.7}, False),
])
def test_what_can_be_asked_twice(fields, repeatable):
    assert is_repeatable(json.dumps({"prompt": "a"} | fields).encode()) == repeatable


@pytest.mark.parametrize("body", [b"", b"[1]", b"{", b"\xff"])
def test_what_is_no_request_is_not_repeatable(body):
    assert not is_repeatable(body)


@pytest.mark.parametrize("code, elsewhere", [("stalled", True), ("device_lost", True), ("draining", True),
                                             ("timeout", False), (None, False)])
def test_an_error_that_another_server_would_not_make(code, elsewhere):
    replay = Replay()
    replay.begin()
    data = b"data: " + json.dumps({"error": {"message": "m", "code": code}}).encode() + b"\n\ndata: [DONE]\n\n"
    first = event("id", True, "abc")
    out = replay.events(first + data)
    if elsewhere:
        assert out == first and isinstance(replay.broken, Broken) and not replay.done
        replay.begin()
        assert replay.broken is None and b'"de"' in replay.events(event("id", True, "abcde"))
    else:
        assert out == first + data and replay.done and replay.broken is None


def test_nothing_follows_the_end():
    replay = Replay()
    for name in ("a", "b"):
        replay.begin()
        out = replay.events(b"".join(stream(name, True, random.Random(2))))
        assert bool(out) == (name == "a") and replay.done
