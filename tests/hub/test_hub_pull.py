"""deepinfer pull against the stand-in of a hub: a file is complete and right, or not there."""
import fcntl
import json
import os
import pty
import re
import resource
import select
import signal
import subprocess
import time

import pytest

from hub_support import SEED, noise
from hub_stand_in import Fault

MODEL = "acme/tiny"
PIECE = 8 << 20


def files():
    return {
        "config.json": json.dumps({"architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16"}).encode(),
        "generation_config.json": b"{}",
        "tokenizer.json": b'{"version": "1.0"}' + b" " * 5000,
        "tokenizer_config.json": b'{"model_max_length": 64}',
        "chat_template.jinja": b"{{ messages }}",
        "README.md": b"# tiny",
        "pytorch_model.bin": noise(3000),
        "onnx/model.onnx": noise(2000),
        "consolidated.safetensors": noise(2500),
        "model.safetensors": noise(100_000),
    }


WANTED = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
          "model.safetensors"}


def sharded():
    parts = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    out = {name: data for name, data in files().items() if name != "model.safetensors"}
    out["model.safetensors.index.json"] = json.dumps({"weight_map": {"a": parts[0], "b": parts[1]}}).encode()
    return out | {part: noise(50_000 + i) for i, part in enumerate(parts)}


def large(n=5 * PIECE + 12345):
    """A repository whose one file takes several pieces."""
    return {"big-Q4_K_M.gguf": noise(n)}


def etag(hub, name, model=MODEL):
    return hub.repos[model]["main"][1][name].etag


def check(hub, names, model=MODEL):
    """The snapshot has these files, each as the hub has it, and nothing is left of their way here."""
    commit, there = hub.repos[model]["main"]
    snapshot = hub.repo(model) / "snapshots" / commit
    assert {str(p.relative_to(snapshot)) for p in snapshot.rglob("*") if not p.is_dir()} == set(names)
    for name in names:
        assert (snapshot / name).read_bytes() == there[name].data, name
        target = os.readlink(snapshot / name)
        assert target == "../" * (2 + name.count("/")) + "blobs/" + there[name].etag
    assert hub.blobs(model) == {there[name].etag for name in names}
    assert (hub.repo(model) / "refs/main").read_text() == commit


def test_what_the_engine_needs_and_nothing_else(hub):
    commit = hub.add(MODEL, files())
    done = hub.call("pull", MODEL)
    assert done.returncode == 0, done
    assert done.stdout == f"{hub.repo(MODEL)}/snapshots/{commit}\n"
    check(hub, WANTED)
    assert {s.file for s in hub.requests(host="hub")} == WANTED
    hub.forget()
    again = hub.call("pull", MODEL)
    assert again.returncode == 0 and "up to date" in again.stderr
    assert hub.requests() == []


def test_shards_that_the_index_names(hub):
    hub.add(MODEL, sharded())
    assert hub.call("pull", MODEL).returncode == 0
    parts = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"}
    check(hub, WANTED - {"model.safetensors"} | parts)


def test_an_index_that_names_what_is_not_there(hub):
    broken = sharded()
    del broken["model-00002-of-00002.safetensors"]
    hub.add(MODEL, broken)
    done = hub.call("pull", MODEL)
    assert done.returncode == 3 and "model-00002-of-00002" in done.stderr
    assert not (hub.repo(MODEL) / "refs").exists()


def test_a_listing_without_hashes_asks_for_each_file(hub):
    hub.add(MODEL, files())
    hub.metadata = False
    assert hub.call("pull", MODEL).returncode == 0
    check(hub, WANTED)
    assert {s.file for s in hub.requests(method="HEAD")} == WANTED


def test_a_large_file_comes_in_pieces_over_several_connections(hub):
    print("seed", SEED)
    hub.add(MODEL, large())
    hub.fault = lambda seen: Fault(bytes_per_second=20_000_000) if seen.host == "store" else None
    done = hub.call("pull", MODEL, "--connections", 4)
    assert done.returncode == 0, done
    check(hub, large())
    ranges = sorted(s.range for s in hub.requests(host="store"))
    assert [r[0] for r in ranges] == [i * PIECE for i in range(6)]
    assert ranges[-1][1] == 5 * PIECE + 12344


@pytest.mark.parametrize("choice", ["q4_k_m", "Q4_K_M", "tiny-Q4_K_M.gguf", "TINY-q4_k_m.GGUF"])
def test_one_gguf_file_of_many(hub, choice):
    hub.add(MODEL, {f"tiny-{q}.gguf": noise(1000, q) for q in ("Q4_K_M", "Q4_K_S", "Q8_0", "f16")} |
            {"mmproj-f16.gguf": b"x"})
    done = hub.call("pull", f"{MODEL}:{choice}")
    assert done.returncode == 0, done
    assert done.stdout.endswith("/tiny-Q4_K_M.gguf\n")
    check(hub, {"tiny-Q4_K_M.gguf"})


@pytest.mark.parametrize("choice, words", [
    ("", ["2 files fit", "Q8_0", "Q4_0", "tiny-Q8_0.gguf", f"{MODEL}:Q"]),
    (":Q5_K_M", ["no quantization 'Q5_K_M'", "Q8_0", "Q4_0"]),
    (":../../secret", ["refused"]),
    (":", ["nothing after the colon"]),
])
def test_a_choice_that_is_none(hub, choice, words):
    hub.add(MODEL, {"tiny-Q8_0.gguf": noise(1000), "tiny-Q4_0.gguf": noise(2000)})
    done = hub.call("pull", MODEL + choice)
    assert done.returncode == 3
    for word in words:
        assert word in done.stderr
    assert not hub.repo(MODEL).exists()


@pytest.mark.parametrize("name", ["tiny", "a/b/c", "../x/y", "acme/ti ny", "acme/..", "-a/b", "acme/x.git", "a--b/c", ""])
def test_a_name_that_is_none(hub, name):
    done = hub.call("pull", "--", name)
    assert done.returncode == 3 and "ORG/NAME" in done.stderr
    assert hub.seen == []


def test_the_token_goes_to_the_hub_alone(hub):
    hub.add(MODEL, files())
    hub.token = "hf_secret"
    done = hub.call("pull", MODEL, env={"HF_TOKEN": "hf_secret"})
    assert done.returncode == 0, done
    check(hub, WANTED)
    assert hub.requests(host="store"), "the large file is behind a redirect"
    for seen in hub.seen:
        assert ("Authorization" in seen.headers) == (seen.host == "hub"), seen
    assert "hf_secret" not in done.stdout + done.stderr


def test_the_token_file_of_the_hub(hub):
    hub.add(MODEL, files())
    hub.token = "hf_file"
    hub.home.mkdir()
    (hub.home / "token").write_text("hf_file\n")
    assert hub.call("pull", MODEL).returncode == 0
    check(hub, WANTED)


@pytest.mark.parametrize("env, words", [
    ({}, ["401", "HF_TOKEN"]),
    ({"HF_TOKEN": "hf_wrong"}, ["401", "does not accept the token of HF_TOKEN"]),
])
def test_401(hub, env, words):
    hub.add(MODEL, files())
    hub.token = "hf_right"
    done = hub.call("pull", MODEL, env=env)
    assert done.returncode == 3
    for word in words:
        assert word in done.stderr
    assert "hf_wrong" not in done.stderr
    assert len(hub.seen) == 1, "no second try helps"


def test_a_token_with_a_line_break_is_refused(hub):
    done = hub.call("pull", MODEL, env={"HF_TOKEN": "a\r\nX-Evil: 1"})
    assert done.returncode == 2 and "HF_TOKEN" in done.stderr and hub.seen == []


def test_403_names_the_page(hub):
    hub.add(MODEL, files())
    hub.fault = lambda seen: Fault(status=403, headers={"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"})
    done = hub.call("pull", MODEL)
    assert done.returncode == 3
    assert f"{hub.url}/{MODEL}" in done.stderr and "conditions" in done.stderr and "HF_TOKEN" in done.stderr


@pytest.mark.parametrize("args, word", [
    (["acme/nothing"], "no such model"),
    ([MODEL, "--revision", "v9"], "no revision 'v9'"),
])
def test_404(hub, args, word):
    hub.add(MODEL, files())
    done = hub.call("pull", *args)
    assert done.returncode == 3 and word in done.stderr and hub.url in done.stderr


def test_revisions(hub):
    old = hub.add(MODEL, {"a-Q8_0.gguf": noise(500, 1)}, "refs/pr/1")
    new = hub.add(MODEL, {"a-Q8_0.gguf": noise(500, 2)})
    assert hub.call("pull", MODEL, "--revision", "refs/pr/1").stdout.endswith(f"{old}/a-Q8_0.gguf\n")
    assert hub.call("pull", MODEL, "--revision", new).stdout.endswith(f"{new}/a-Q8_0.gguf\n")
    assert (hub.repo(MODEL) / "refs/refs/pr/1").read_text() == old
    assert not (hub.repo(MODEL) / "refs/main").exists()
    assert hub.call("pull", MODEL).returncode == 0
    assert (hub.repo(MODEL) / "refs/main").read_text() == new


def test_offline(hub):
    hub.add(MODEL, files())
    done = hub.call("pull", MODEL, env={"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 3 and "HF_HUB_OFFLINE" in done.stderr and hub.seen == []


def test_nobody_listens(hub):
    done = hub.call("pull", MODEL, env={"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert done.returncode == 3 and "http://127.0.0.1:9 cannot be reached" in done.stderr


def test_cut_connections_are_taken_up_where_they_broke(hub):
    hub.add(MODEL, large())
    cuts = {}

    def fault(seen):
        if seen.host != "store":
            return None
        n = cuts[seen.range[1]] = cuts.get(seen.range[1], 0) + 1
        return Fault(cut_after=1_000_000 + n) if n <= 2 else None

    hub.fault = fault
    done = hub.call("pull", MODEL)
    assert done.returncode == 0, done
    check(hub, large())
    last = max(cuts)  # shorter than the cut
    assert len(cuts) == 6 and all(n == 3 for end, n in cuts.items() if end != last)
    began = [s.range[0] for s in hub.requests(host="store")]
    assert len(set(began)) == len(began), "no piece was fetched twice from its first byte"


def test_always_cut_gives_up_and_says_how_to_go_on(hub):
    hub.add(MODEL, large())
    hub.fault = lambda seen: Fault(cut_after=1000) if seen.host == "store" else None
    done = hub.call("pull", MODEL)
    assert done.returncode == 3
    assert "pull again" in done.stderr and "5 tries" in done.stderr
    assert hub.blobs(MODEL) <= {etag(hub, "big-Q4_K_M.gguf") + ".incomplete"}
    assert not (hub.repo(MODEL) / "refs").exists()
    hub.fault = lambda seen: None
    assert hub.call("pull", MODEL).returncode == 0
    check(hub, large())


def test_a_wrong_file_is_thrown_away(hub):
    hub.add(MODEL, large(2 * PIECE))
    wrong = bytearray(large(2 * PIECE)["big-Q4_K_M.gguf"])
    wrong[PIECE + 17] ^= 1
    hub.fault = lambda seen: Fault(body=bytes(wrong)) if seen.host == "store" else None
    done = hub.call("pull", MODEL)
    assert done.returncode == 3 and "hash" in done.stderr and etag(hub, "big-Q4_K_M.gguf") in done.stderr
    assert hub.blobs(MODEL) == set()
    assert not (hub.repo(MODEL) / "snapshots").exists()


def test_a_wrong_small_file_is_thrown_away(hub):
    hub.add(MODEL, files())
    hub.fault = lambda seen: Fault(body=b"[]") if seen.file == "generation_config.json" else None
    done = hub.call("pull", MODEL)
    assert done.returncode == 3 and "generation_config.json" in done.stderr
    assert etag(hub, "generation_config.json") not in hub.blobs(MODEL)
    assert not (hub.repo(MODEL) / "refs").exists()


@pytest.mark.parametrize("headers, word", [
    ({"X-Linked-Etag": '"' + "0" * 64 + '"'}, "hash"),
    ({"X-Linked-Size": "7"}, "size"),
    ({"X-Repo-Commit": "1" * 40}, "commit"),
])
def test_a_redirect_that_announces_another_file(hub, headers, word):
    hub.add(MODEL, large(1000))
    hub.fault = lambda seen: Fault(headers=headers, location=hub.address("store") + "/x") if seen.file else None
    done = hub.call("pull", MODEL)
    assert done.returncode == 3 and f"announces the {word}" in done.stderr
    assert not hub.requests(host="store")


def test_another_size_than_announced(hub):
    hub.add(MODEL, large(1000))
    hub.fault = lambda seen: Fault(body=b"x" * 999) if seen.host == "store" else None
    done = hub.call("pull", MODEL)
    assert done.returncode == 3 and "announces the size 999" in done.stderr


@pytest.mark.parametrize("location, word", [
    ("ftp://127.0.0.1/x", "redirect"), ("file:///etc/passwd", "redirect"), ("LOOP", "10 redirects")])
def test_redirects_that_are_not_followed(hub, location, word):
    hub.add(MODEL, large(1000))
    loop = f"{hub.url}/{MODEL}/resolve/main/big-Q4_K_M.gguf"
    hub.fault = lambda seen: Fault(location=loop if location == "LOOP" else location) if seen.file else None
    done = hub.call("pull", MODEL)
    assert done.returncode == 3 and word in done.stderr
    assert len(hub.requests()) <= 11


def test_a_server_without_ranges(hub):
    hub.add(MODEL, large())
    hub.fault = lambda seen: Fault(ignore_range=True) if seen.host == "store" else None
    done = hub.call("pull", MODEL)
    assert done.returncode == 0, done
    check(hub, large())


def test_a_server_without_ranges_and_a_beginning(hub):
    hub.add(MODEL, large())
    data = large()["big-Q4_K_M.gguf"]
    blobs = hub.repo(MODEL) / "blobs"
    blobs.mkdir(parents=True)
    (blobs / (etag(hub, "big-Q4_K_M.gguf") + ".incomplete")).write_bytes(data[:3 * PIECE])
    cuts = []

    def fault(seen):
        if seen.host != "store":
            return None
        cuts.append(seen.range)
        return Fault(ignore_range=True, cut_after=4 * PIECE if cuts.count(None) == 1 else -1)

    hub.fault = fault
    assert hub.call("pull", MODEL).returncode == 0
    check(hub, large())


def test_a_stalled_connection_is_given_up_and_tried_again(hub):
    hub.add(MODEL, large(1000))
    stalled = []

    def fault(seen):
        if seen.host != "store" or stalled:
            return None
        stalled.append(1)
        return Fault(stall=30)

    hub.fault = fault
    start = time.monotonic()
    done = hub.call("pull", MODEL)
    assert done.returncode == 0, done
    assert stalled and time.monotonic() - start < 20
    check(hub, large(1000))


def test_503_and_429_are_tried_again(hub):
    hub.add(MODEL, files())
    seen_before = {}

    def fault(seen):
        n = seen_before[seen.path] = seen_before.get(seen.path, 0) + 1
        return Fault(status=503 if n == 1 else 429, headers={"Retry-After": "0"}) if n <= 2 else None

    hub.fault = fault
    assert hub.call("pull", MODEL).returncode == 0
    check(hub, WANTED)


def test_an_address_of_the_store_that_expires(hub):
    hub.add(MODEL, large())
    count = []

    def fault(seen):
        if seen.host == "store":
            count.append(1)
            return Fault(status=403) if len(count) == 4 else None
        return None

    hub.fault = fault
    assert hub.call("pull", MODEL, "--connections", 1).returncode == 0
    check(hub, large())


def limited(size):
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_full_disk(hub):
    hub.add(MODEL, large())
    done = hub.call("pull", MODEL, preexec_fn=limited(3 * PIECE))
    assert done.returncode == 3, done
    assert "the disk is full" in done.stderr and "are missing" in done.stderr
    part = hub.repo(MODEL) / "blobs" / (etag(hub, "big-Q4_K_M.gguf") + ".incomplete")
    assert part.read_bytes() == large()["big-Q4_K_M.gguf"][:part.stat().st_size]
    assert part.stat().st_size == 3 * PIECE
    hub.forget()
    assert hub.call("pull", MODEL).returncode == 0
    check(hub, large())
    assert min(s.range[0] for s in hub.requests(host="store")) == 3 * PIECE


def test_a_disk_that_is_too_small_is_seen_before(hub):
    hub.add(MODEL, {"big-Q8_0.gguf": noise(100)})
    real = hub.repos[MODEL]["main"][1]["big-Q8_0.gguf"]

    class Vast(bytes):
        def __len__(self):
            return 1 << 45

    real.data = Vast(real.data)
    done = hub.call("pull", MODEL)
    assert done.returncode == 3 and "too full" in done.stderr and "35.2 TB more are needed" in done.stderr
    assert hub.requests() == []


def wait_for_bytes(hub, process, at_least):
    part = hub.repo(MODEL) / "blobs" / (etag(hub, "big-Q4_K_M.gguf") + ".incomplete")
    end = time.monotonic() + 60
    while not part.exists() or part.stat().st_size < at_least:
        assert time.monotonic() < end and process.poll() is None, process.communicate()
        time.sleep(0.02)
    return part


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_stopped_in_the_middle_and_resumed(hub, how):
    hub.add(MODEL, large())
    data = large()["big-Q4_K_M.gguf"]
    hub.fault = lambda seen: Fault(bytes_per_second=2_000_000) if seen.host == "store" else None
    with hub.start("pull", MODEL) as process:
        part = wait_for_bytes(hub, process, 500_000)
        process.send_signal(how)
        _, err = process.communicate(timeout=30)
        assert process.returncode == (130 if how == signal.SIGINT else -9)
        assert how == signal.SIGKILL or "goes on" in err
    there = part.stat().st_size
    assert part.read_bytes() == data[:there]
    assert hub.blobs(MODEL) == {part.name}
    hub.forget()
    hub.fault = lambda seen: None
    assert hub.call("pull", MODEL).returncode == 0
    check(hub, large())
    assert min(s.range[0] for s in hub.requests(host="store")) == there


def test_a_beginning_of_something_else(hub):
    """What is on disk under the right name may still be wrong: a crash of the machine."""
    hub.add(MODEL, large(2 * PIECE))
    blobs = hub.repo(MODEL) / "blobs"
    blobs.mkdir(parents=True)
    (blobs / (etag(hub, "big-Q4_K_M.gguf") + ".incomplete")).write_bytes(b"\0" * PIECE)
    done = hub.call("pull", MODEL)
    assert done.returncode == 0 and "anew" in done.stderr, done
    check(hub, large(2 * PIECE))


def test_two_pulls_at_once(hub):
    hub.add(MODEL, large() | files())
    hub.fault = lambda seen: Fault(bytes_per_second=8_000_000) if seen.host == "store" else None
    choice = f"{MODEL}:Q4_K_M"
    processes = [hub.start("pull", choice) for _ in range(3)]
    answers = [p.communicate(timeout=120) for p in processes]
    assert [p.returncode for p in processes] == [0, 0, 0], answers
    check(hub, large())
    began = [s.range[0] for s in hub.requests(host="store")]
    assert len(set(began)) == len(began) == 6, "each piece came once"


def test_the_lock_of_huggingface_hub_is_waited_for(hub):
    hub.add(MODEL, large(1000))
    lock = hub.cache / ".locks/models--acme--tiny" / (etag(hub, "big-Q4_K_M.gguf") + ".lock")
    lock.parent.mkdir(parents=True)
    with open(lock, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with hub.start("pull", MODEL) as process:
            line = process.stderr.readline()
            assert "another process" in line
            assert hub.requests() == []
            fcntl.flock(held, fcntl.LOCK_UN)
            assert process.wait(30) == 0
    check(hub, large(1000))


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "a\\b", "a\nb", "x//y", "./x", "n" * 300])
def test_names_that_leave_the_folder(hub, name, tmp_path):
    hub.add(MODEL, files() | {name: b"evil"})
    done = hub.call("pull", MODEL)
    assert done.returncode == 3 and "refused" in done.stderr
    assert not hub.repo(MODEL).exists() and not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("body", [
    b"", b"<html>", b"[]", b"{}", b'{"sha": "main", "siblings": []}', b'{"sha": "../../x", "siblings": []}',
    b'{"sha": "' + b"a" * 40 + b'", "siblings": 3}', b'{"sha": "' + b"a" * 40 + b'", "siblings": [3]}',
    b'{"a":' * 1000 + b"1" + b"}" * 1000, b"[" * 100000,
])
def test_a_listing_that_is_none(hub, body):
    hub.fault = lambda seen: Fault(status=200, body=body)
    done = hub.call("pull", MODEL)
    assert done.returncode == 3 and "listing" in done.stderr
    assert not hub.repo(MODEL).exists()


def test_headers_without_end(hub):
    hub.fault = lambda seen: Fault(status=200, headers={f"X-{i}": "x" * 1000 for i in range(90)}, body=b"{}")
    done = hub.call("pull", MODEL)
    assert done.returncode == 3 and "headers" in done.stderr


def test_a_bar_on_a_terminal_and_lines_elsewhere(hub):
    hub.add(MODEL, large(3 * PIECE))
    hub.fault = lambda seen: Fault(bytes_per_second=6_000_000) if seen.host == "store" else None
    leader, follower = pty.openpty()
    process = subprocess.Popen([hub.program, "pull", MODEL], env=hub.environment, stdout=subprocess.DEVNULL,
                               stderr=follower)
    os.close(follower)
    text = b""
    while select.select([leader], [], [], 60)[0]:
        try:
            chunk = os.read(leader, 1 << 16)
        except OSError:
            break
        text += chunk
    os.close(leader)
    assert process.wait(60) == 0
    assert re.search(rb"\racme/tiny: \[#+\.+\] \d+% of 25\.2 MB, [\d.]+ MB/s, 0:\d\d left", text), text
    assert b"big-Q4_K_M.gguf  25.2 MB" in text
