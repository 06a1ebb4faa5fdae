"""--model ORG/NAME, list, rm, and the cache shared with huggingface_hub."""
import json
import os
import pathlib
import pty
import re
import shutil
import subprocess
import sys
import time
import urllib.request

import pytest

from hub_stand_in import Fault
from hub_support import noise
from test_hub_pull import MODEL, WANTED, check, etag, files, sharded

QUIET = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1",
         "HF_HUB_DISABLE_UPDATE_CHECK": "1"}


def python(hub, code, **env):
    """A program with huggingface_hub in this environment's Python: its last line as JSON."""
    done = subprocess.run([sys.executable, "-c", "import json\nfrom huggingface_hub import *\n" + code],
                          env=hub.environment | QUIET | env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done
    return json.loads(done.stdout.splitlines()[-1])


def test_what_huggingface_hub_fetched_is_used(hub):
    commit = hub.add(MODEL, files())
    path = python(hub, f"print(json.dumps([hf_hub_download('{MODEL}', f) for f in {sorted(WANTED)}][0]))")
    assert path.startswith(str(hub.repo(MODEL) / "snapshots" / commit))
    hub.forget()
    done = hub.call("pull", MODEL)
    assert done.returncode == 0 and "up to date" in done.stderr, done
    assert hub.requests() == []
    check(hub, WANTED)


def test_huggingface_hub_uses_what_was_pulled(hub):
    commit = hub.add(MODEL, sharded())
    assert hub.call("pull", MODEL).returncode == 0
    hub.forget()
    snapshot = str(hub.repo(MODEL) / "snapshots" / commit)
    name = "model-00001-of-00002.safetensors"
    assert python(hub, f"print(json.dumps(hf_hub_download('{MODEL}', '{name}')))") == f"{snapshot}/{name}"
    assert python(hub, f"print(json.dumps(hf_hub_download('{MODEL}', '{name}')))",
                  HF_HUB_OFFLINE="1") == f"{snapshot}/{name}"
    assert hub.requests() == [], "it asked for the file's hash alone"
    scan = python(hub, "s = scan_cache_dir()\n"
                       "print(json.dumps([len(s.warnings), [r.repo_id for r in s.repos], "
                       "[sorted(v.refs) for r in s.repos for v in r.revisions]]))")
    assert scan == [0, [MODEL], [["main"]]]


def test_both_write_the_same_layout(hub):
    hub.add(MODEL, files())
    assert hub.call("pull", MODEL).returncode == 0
    ours = hub.layout(MODEL)
    shutil.rmtree(hub.cache)
    python(hub, f"print(json.dumps([hf_hub_download('{MODEL}', f) for f in {sorted(WANTED)}]))")
    theirs = {path: what for path, what in hub.layout(MODEL).items()
              if path.split("/")[0] in ("blobs", "refs", "snapshots")}
    assert ours == theirs


@pytest.fixture
def smol(hub, default_model):
    hub.add("acme/smol", {"smol-Q4_1.gguf": default_model.read_bytes(), "smol-Q8_0.gguf": b"never asked for"})
    return "acme/smol:Q4_1"


def test_run_pulls_what_is_missing_and_then_needs_no_network(hub, smol):
    args = ["run", "--model", smol, "--temperature", "0", "--max-tokens", "12", "What color is the sky?"]
    first = hub.call(*args)
    assert first.returncode == 0 and "blue" in first.stdout, first
    assert "not in the cache" in first.stderr
    hub.seen.clear()
    second = hub.call(*args)
    assert second.returncode == 0 and second.stdout == first.stdout and "cache" not in second.stderr
    third = hub.call(*args, env={"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"})
    assert third.returncode == 0 and third.stdout == first.stdout
    assert hub.seen == []


def test_serve_names_the_model_as_it_was_asked_for(hub, smol):
    with hub.start("serve", "--model", smol, "--port", "0") as process:
        try:
            lines = iter(process.stdout.readline, "")  # what it chose stands before
            url = next(found[1] for found in (re.search(r"at (http://\S+)", line) for line in lines) if found)
            with urllib.request.urlopen(f"{url}/v1/models", timeout=10) as answer:
                ids = [m["id"] for m in json.load(answer)["data"]]
            assert ids[0] == smol and "acme/smol" in ids
        finally:
            process.terminate()
            process.communicate(timeout=30)


def test_a_path_that_exists_wins(hub, default_model, tmp_path):
    folder = tmp_path / "work"
    (folder / "acme").mkdir(parents=True)
    (folder / "acme/smol").symlink_to(default_model)
    done = hub.call("run", "--model", "acme/smol", "--temperature", "0", "--max-tokens", "4", "hi", cwd=folder)
    assert done.returncode == 0, done
    assert hub.seen == []


@pytest.mark.parametrize("name, words", [
    ("acme/nothing", ["no such file or folder", "no such model at"]),
    ("nothing.gguf", ["no such file or folder", "no name of a model on a hub", "ORG/NAME"]),
    ("./acme/x", ["no such file or folder", "ORG/NAME"]),
])
def test_what_is_neither(hub, name, words):
    for command in ("run", "serve", "bench"):
        done = hub.call(command, "--model", name)
        assert done.returncode == 3, done
        for word in words:
            assert word in done.stderr


def test_offline_and_not_there(hub):
    hub.add(MODEL, files())
    done = hub.call("run", "--model", MODEL, "hi", env={"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 3 and "HF_HUB_OFFLINE" in done.stderr and hub.seen == []


def test_a_part_of_a_model_is_completed(hub):
    hub.add(MODEL, sharded())
    python(hub, f"print(json.dumps(hf_hub_download('{MODEL}', 'config.json')))")
    done = hub.call("run", "--model", MODEL, "hi")
    assert done.returncode == 3 and "acme" in done.stderr  # these weights are noise
    check(hub, WANTED - {"model.safetensors"} | {n for n in sharded() if n.startswith("model")})


def test_model_revision(hub):
    old = hub.add(MODEL, {"a-Q8_0.gguf": b"GGUF of old"}, "v1")
    hub.add(MODEL, {"a-Q8_0.gguf": b"GGUF of new"})
    done = hub.call("run", "--model", MODEL, "--revision", "v1", "hi")
    assert done.returncode == 3 and old in done.stderr
    assert (hub.repo(MODEL) / "refs/v1").read_text() == old


def rows(hub, **env):
    done = hub.call("list", env=env)
    assert done.returncode == 0, done
    lines = done.stdout.splitlines()
    return [re.split(r"\s{2,}", line.strip()) for line in lines]


def test_list(hub, default_model):
    assert "deepinfer pull" in hub.call("list").stdout
    commit = hub.add(MODEL, files())
    hub.add("acme/gguf", {"m-Q4_0.gguf": noise(1500), "m-Q8_0.gguf": noise(2500)})
    hub.call("pull", MODEL)
    hub.call("pull", "acme/gguf:q8_0")
    own = pathlib.Path(hub.environment["DEEPINFER_CACHE_DIR"]) / "models"
    own.mkdir(parents=True)
    (own / default_model.name).symlink_to(default_model)
    header, gguf, tiny, default = rows(hub)
    assert header == ["MODEL", "FILE", "SIZE", "LAST USED", "WHERE"]
    assert gguf[:4] == ["acme/gguf", "Q8_0", "2.5 kB", "just now"] and gguf[4].endswith("/m-Q8_0.gguf")
    assert tiny[:2] == [MODEL, "safetensors bfloat16"]
    assert tiny[4] == str(hub.repo(MODEL) / "snapshots" / commit)
    assert default[:3] == ["smollm2-135m-instruct", "Q4_1", "98.4 MB"]


def test_list_of_what_is_not_complete(hub):
    hub.add(MODEL, files())
    hub.fault = lambda seen: None if seen.file != "tokenizer.json" else Fault(cut_after=700)
    assert hub.call("pull", MODEL).returncode == 3
    text = hub.call("list").stdout
    assert "not complete" in text and MODEL in text


def test_an_update_is_listed_with_its_commit(hub):
    old = hub.add(MODEL, {"a-Q8_0.gguf": noise(500, 1)})
    hub.call("pull", MODEL)
    hub.add(MODEL, {"a-Q8_0.gguf": noise(600, 2)})
    hub.call("pull", MODEL)
    _, new_row, old_row = rows(hub)
    assert new_row[:3] == [MODEL, "Q8_0", "600 B"]
    assert old_row[:3] == [f"{MODEL} @{old[:7]}", "Q8_0", "500 B"]


def test_rm(hub):
    hub.add(MODEL, files())
    hub.add("acme/other", {"a-Q8_0.gguf": noise(500)})
    hub.call("pull", MODEL)
    hub.call("pull", "acme/other")
    done = hub.call("rm", MODEL)
    assert done.returncode == 2 and "--yes" in done.stderr and hub.repo(MODEL).exists()
    done = hub.call("rm", MODEL, "--yes")
    assert done.returncode == 0 and "105" in done.stdout, done
    assert not hub.repo(MODEL).exists()
    check(hub, {"a-Q8_0.gguf"}, "acme/other")
    done = hub.call("rm", MODEL, "--yes")
    assert done.returncode == 3 and "not in the cache" in done.stderr


def test_rm_of_one_file_keeps_blobs_that_others_need(hub):
    same = noise(700)
    hub.add(MODEL, {"a-Q8_0.gguf": same, "b-Q4_0.gguf": noise(800), "c-F16.gguf": same})
    for choice in ("a-Q8_0.gguf", "Q4_0", "F16"):
        assert hub.call("pull", f"{MODEL}:{choice}").returncode == 0
    assert hub.call("rm", f"{MODEL}:Q8_0", "--yes").returncode == 0
    check(hub, {"b-Q4_0.gguf", "c-F16.gguf"})
    assert hub.call("rm", f"{MODEL}:q4_0", "--yes").returncode == 0
    check(hub, {"c-F16.gguf"})
    assert hub.call("rm", f"{MODEL}:F16", "--yes").returncode == 0
    assert not hub.repo(MODEL).exists()


def test_rm_asks_at_a_terminal(hub):
    hub.add(MODEL, {"a-Q8_0.gguf": noise(500)})
    hub.call("pull", MODEL)
    for answer, stays in ((b"n\n", True), (b"y\n", False)):
        leader, follower = pty.openpty()
        with subprocess.Popen([hub.program, "rm", MODEL], env=hub.environment, stdin=follower,
                              stdout=subprocess.PIPE) as process:
            os.write(leader, answer)
            out, _ = process.communicate(timeout=30)
        os.close(leader)
        os.close(follower)
        assert b"[y/N]" in out and str(hub.repo(MODEL)).encode() in out
        assert process.returncode == 0 and hub.repo(MODEL).exists() == stays


def test_rm_while_another_process_pulls(hub):
    hub.add(MODEL, {"a-Q8_0.gguf": noise(3_000_000)})
    hub.fault = lambda seen: Fault(bytes_per_second=1_000_000) if seen.host == "store" else None
    with hub.start("pull", MODEL) as process:
        end = time.monotonic() + 30
        while not hub.requests(host="store"):
            assert time.monotonic() < end
            time.sleep(0.02)
        done = hub.call("rm", MODEL, "--yes")
        assert done.returncode == 3 and "another process" in done.stderr
        assert process.wait(30) == 0
    check(hub, {"a-Q8_0.gguf"})
    assert etag(hub, "a-Q8_0.gguf") in hub.blobs(MODEL)
