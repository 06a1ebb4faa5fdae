"""deepinfer batch: OpenAI's format in and out, the server's own answers, ends of every kind."""
import json
import os
import random
import signal
import subprocess
import time

import openai.types
import openai.types.chat
import pytest

from server_support import wait_for

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"


def command(deepinfer, model, folder, *args):
    return [deepinfer, "batch", "-i", folder / "in.jsonl", "-o", folder / "out.jsonl", "--model", model, *map(str, args)]


def environment():
    return {k: v for k, v in os.environ.items() if not k.startswith("DEEPINFER_")}


def batch(deepinfer, model, folder, *args):
    return subprocess.run(command(deepinfer, model, folder, *args), capture_output=True, text=True, timeout=300,
                          env=environment())


def write(folder, requests):
    """[(custom_id, url, body)]"""
    lines = [json.dumps({"custom_id": i, "method": "POST", "url": url, "body": body}) for i, url, body in requests]
    (folder / "in.jsonl").write_text("\n".join(lines) + "\n")


def results(path):
    lines = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
    found = {line["custom_id"]: line for line in lines}
    assert len(found) == len(lines), "a request was answered twice"
    return found


def user(text):
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def requests():
    """Of every kind whose answer a seed decides."""
    words = ["the sea", "a house", "winter", "my dog", "bread", "an old clock"]
    out = []
    for i, word in enumerate(words * 2):
        common = {"seed": i, "temperature": 0.9, "max_tokens": 12 + i}
        out.append((f"chat-{i}", CHAT, {"messages": user(f"Write about {word}."), "model": "smol", **common}))
        out.append((f"plain-{i}", PLAIN, {"prompt": f"Once there was {word}", **common}))
    out.append(("scores", CHAT, {"messages": user("Hi"), "logprobs": True, "top_logprobs": 3, "max_tokens": 8, "seed": 1}))
    out.append(("n", CHAT, {"messages": user("Hi"), "n": 3, "max_tokens": 8, "seed": 1, "stop": ["e"]}))
    out.append(("prompts", PLAIN, {"prompt": ["One", "Two"], "logprobs": 1, "max_tokens": 4, "seed": 2}))
    out.append(("nothing", PLAIN, {"prompt": "One", "echo": True, "max_tokens": 0}))
    return out


def test_answers_are_the_servers_bit_for_bit(deepinfer, model_path, client, requests, tmp_path):
    write(tmp_path, requests)
    done = batch(deepinfer, model_path, tmp_path, "--max-model-len", 1024, "--served-model-name", "smol")
    assert done.returncode == 0, done
    assert done.stdout == "" and f"{len(requests)} of {len(requests)} requests done, 0 of them before" in done.stderr
    assert not (tmp_path / "out.errors.jsonl").exists()
    found = results(tmp_path / "out.jsonl")
    assert set(found) == {i for i, _, _ in requests}
    for custom_id, url, body in requests:
        line = found[custom_id]
        assert set(line) == {"id", "custom_id", "response", "error"} and line["error"] is None
        assert line["response"]["status_code"] == 200 and line["response"]["request_id"]
        kind = openai.types.chat.ChatCompletion if url == CHAT else openai.types.Completion
        answer = kind.model_validate(line["response"]["body"], strict=True)
        asked = {"model": "smol"} | body
        api = client.chat.completions if url == CHAT else client.completions
        expected = api.create(**asked)
        for volatile in ("id", "created", "usage"):  # usage: what was cached differs
            setattr(answer, volatile, getattr(expected, volatile))
        assert answer == expected, custom_id


def test_a_second_run_does_nothing(deepinfer, tiny_model, tmp_path):
    write(tmp_path, [(str(i), PLAIN, {"prompt": "x", "max_tokens": 3}) for i in range(5)])
    assert batch(deepinfer, tiny_model, tmp_path).returncode == 0
    before = (tmp_path / "out.jsonl").read_bytes()
    again = batch(deepinfer, "/there/is/no/model", tmp_path)  # which is not needed
    assert again.returncode == 0 and "5 of 5 requests done, all of them before" in again.stderr, again
    assert (tmp_path / "out.jsonl").read_bytes() == before


def test_killed_at_any_moment(deepinfer, tiny_model, tmp_path):
    count, seed = 3000, 5
    moments = random.Random(seed)
    write(tmp_path, [(f"r{i}", PLAIN, {"prompt": f"{i}", "max_tokens": 40, "seed": i}) for i in range(count)])
    out = tmp_path / "out.jsonl"
    kept = {}
    for kill in range(6):
        process = subprocess.Popen(command(deepinfer, tiny_model, tmp_path), stderr=subprocess.PIPE, env=environment())
        before = out.stat().st_size if out.exists() else 0
        wait_for(lambda: process.poll() is not None or (out.exists() and out.stat().st_size > before), timeout=60)
        time.sleep(moments.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL if kill % 2 else signal.SIGINT)
        code = process.wait(60)
        process.stderr.close()
        assert code in ({-signal.SIGKILL, 0} if kill % 2 else {130, 0}), (code, seed)
        whole = out.read_bytes()
        lines = [json.loads(line) for line in whole[:whole.rfind(b"\n") + 1].splitlines()]
        now = {line["custom_id"]: line["response"]["body"]["choices"] for line in lines}
        assert len(now) == len(lines) and kept.items() <= now.items()
        kept = now
    done = batch(deepinfer, tiny_model, tmp_path)
    assert done.returncode == 0, done
    assert set(results(out)) == {f"r{i}" for i in range(count)}


def test_ctrl_c_says_how_to_go_on(deepinfer, model_path, tmp_path):
    write(tmp_path, [(str(i), PLAIN, {"prompt": "x", "max_tokens": 300, "ignore_eos": True}) for i in range(200)])
    process = subprocess.Popen(command(deepinfer, model_path, tmp_path, "--max-num-seqs", 4), stderr=subprocess.PIPE,
                               text=True, env=environment())
    out = tmp_path / "out.jsonl"
    wait_for(lambda: process.poll() is not None or (out.exists() and out.stat().st_size), timeout=120)
    process.send_signal(signal.SIGINT)
    start = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and time.monotonic() - start < 10
    assert "of 200 requests done" in err and "the same command goes on where it was" in err


def test_what_fails_is_told_and_run_again(deepinfer, tiny_model, tmp_path):
    good = [(str(i), PLAIN, {"prompt": "x", "max_tokens": 3}) for i in range(3)]
    write(tmp_path, [*good, ("hot", PLAIN, {"prompt": "x", "temperature": 7})])
    done = batch(deepinfer, tiny_model, tmp_path)
    assert done.returncode == 1, done
    assert "3 of 4 requests done" in done.stderr and "1 request failed, see" in done.stderr
    assert "line 4: temperature: got 7" in done.stderr
    failed = results(tmp_path / "out.errors.jsonl")["hot"]
    assert failed["response"]["status_code"] == 400
    assert failed["response"]["body"]["error"]["param"] == "temperature"
    write(tmp_path, [*good, ("hot", PLAIN, {"prompt": "x", "temperature": 1, "max_tokens": 3})])
    assert batch(deepinfer, tiny_model, tmp_path).returncode == 0
    assert set(results(tmp_path / "out.jsonl")) == {"0", "1", "2", "hot"}
    assert not (tmp_path / "out.errors.jsonl").exists()


def test_wrong_files_are_2(deepinfer, tiny_model, tmp_path):
    assert batch(deepinfer, tiny_model, tmp_path).returncode == 2
    write(tmp_path, [("same", PLAIN, {"prompt": "x"}), ("same", PLAIN, {"prompt": "y"})])
    done = batch(deepinfer, tiny_model, tmp_path)
    assert done.returncode == 2 and "lines have the same: 1 and 2" in done.stderr, done
    done = subprocess.run([deepinfer, "batch", "-i", "x"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "--output" in done.stderr


def test_memory_does_not_grow_with_the_file(deepinfer, tiny_model, tmp_path):
    def peak(count):
        write(tmp_path, [(f"{i}", PLAIN, {"prompt": "abc " * 500, "max_tokens": 1}) for i in range(count)])
        (tmp_path / "out.jsonl").unlink(missing_ok=True)
        process = subprocess.Popen(command(deepinfer, tiny_model, tmp_path, "--max-num-seqs", 8), stderr=subprocess.PIPE,
                                   env=environment())
        process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.stderr.close()
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        return usage.ru_maxrss * 1024

    small, large = peak(20), peak(2000)  # 4 MB of input
    assert large - small < 3_000_000, (small, large)
