"""Profiles of a live server: what a trace holds, when it can be had, and how it is started."""
import json
import os
import re
import subprocess

import httpx
import pytest

MODEL = {"embed", "rope", "qkv", "attention", "project", "gate_up", "head", "sample"}
ENGINE = {"engine loop", "schedule", "forward", "sampling", "commit", "deliver", "step"}


def complete(server, **body):
    body = {"prompt": "Once upon a time", "max_tokens": 6, "temperature": 0, "ignore_eos": True} | body
    reply = httpx.post(server.url + "/v1/completions", json=body, timeout=120)
    assert reply.status_code == 200, reply.text


def spans_of(path):
    return [e for e in json.loads(path.read_text())["traceEvents"] if e["ph"] == "X"]


def traces(folder):
    assert not list(folder.glob("*.partial"))
    return sorted(folder.glob("*.trace.json"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("profiles") / "made by the server"


@pytest.fixture(scope="module")
def profiled(launch, tiny_model, folder):
    with launch("--profile-dir", folder, "--max-model-len", 1024, "--api-key", "key-of-the-test",
                "--served-model-name", "tiny", model=tiny_model) as server:
        yield server
        assert server.stop() == 0


def post(server, route, key="key-of-the-test"):
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.post(server.url + route, headers=headers, timeout=60)


def ask(server, **body):
    body = {"prompt": "abc", "max_tokens": 6, "temperature": 0, "ignore_eos": True} | body
    reply = httpx.post(server.url + "/v1/completions", json=body, timeout=120,
                       headers={"Authorization": "Bearer key-of-the-test"})
    assert reply.status_code == 200, reply.text


def test_a_profile_holds_the_phases_of_each_step(profiled, folder):
    ask(profiled)
    before = len(traces(folder))
    started = post(profiled, "/start_profile")
    assert started.status_code == 200 and started.json() == {"status": "recording"}
    ask(profiled)
    ask(profiled, prompt=["abc", "abcd"])
    stopped = post(profiled, "/stop_profile")
    assert stopped.status_code == 200, stopped.text
    report = stopped.json()
    assert len(traces(folder)) == before + 1 and report["file"] == str(traces(folder)[-1])
    spans = spans_of(traces(folder)[-1])
    names = {s["name"] for s in spans}
    assert MODEL | ENGINE | {"tokenize", "detokenize"} <= names
    # Six tokens are six steps: the prompt's chunk gives the first. Two prompts at once share theirs, or not.
    steps = [s for s in spans if s["name"] == "step"]
    assert 12 <= len(steps) <= 18
    assert report["summary"]["steps"] == len(steps)
    assert {s["args"]["rows"] for s in steps} <= {1, 2}
    assert report["summary"]["tokens"] == sum(s["args"]["tokens"] for s in steps)
    layers = sum(s["name"] == "attention" for s in spans) / sum(s["name"] == "forward" for s in spans)
    assert layers == int(layers) >= 1
    # Each operation stands inside of a forward or a sampling of its thread.
    outer = [(s["tid"], s["ts"], s["ts"] + s["dur"]) for s in spans if s["name"] in ("forward", "sampling")]
    for s in spans:
        if s["name"] in MODEL:
            assert any(t == s["tid"] and a - .002 <= s["ts"] and s["ts"] + s["dur"] <= b + .002 for t, a, b in outer)
    shares = report["summary"]["shares"]
    assert sum(share["percent"] for share in shares) == pytest.approx(100, abs=.01)
    assert {share["name"] for share in shares} >= {"attention", "matrix products", "sampling", "idle", "host"}
    assert report["summary"]["advice"] and "what to change" in report["text"]
    assert report["dropped"] == 0 and report["events"] >= len(spans)
    profiled._wait_for(f"what to change(?s:.*)the profile is in ({re.escape(report['file'])})", profiled.err)


def test_prompts_are_not_in_a_trace(profiled, folder):
    assert post(profiled, "/start_profile").status_code == 200
    ask(profiled, prompt="a secret of the user")
    assert post(profiled, "/stop_profile").status_code == 200
    assert "secret" not in traces(folder)[-1].read_text()


def test_start_twice_and_stop_twice_are_conflicts(profiled):
    assert post(profiled, "/start_profile").status_code == 200
    again = post(profiled, "/start_profile")
    assert again.status_code == 409 and again.json()["error"]["code"] == "profile_running"
    assert post(profiled, "/stop_profile").status_code == 200
    again = post(profiled, "/stop_profile")
    assert again.status_code == 409 and again.json()["error"]["code"] == "no_profile"


def test_profiles_want_the_key(profiled):
    for route in ("/start_profile", "/stop_profile"):
        assert post(profiled, route, key=None).status_code == 401
        assert post(profiled, route, key="wrong").status_code == 401
    assert post(profiled, "/stop_profile").status_code == 409  # nothing was started


def test_a_trace_that_cannot_be_written_is_an_error(launch, tiny_model, tmp_path):
    folder = tmp_path / "profiles"
    with launch("--profile-dir", folder, "--served-model-name", "tiny", model=tiny_model) as server:
        assert httpx.post(server.url + "/start_profile").status_code == 200
        folder.rmdir()
        folder.write_text("a file is in the way")
        stopped = httpx.post(server.url + "/stop_profile")
        assert stopped.status_code == 500 and stopped.json()["error"]["code"] == "profile_not_written"
        assert str(folder) not in stopped.text
        server._wait_for(f"cannot be written to ({re.escape(str(folder))})", server.err)
        complete(server, prompt="abc")
        assert server.stop() == 0


def test_off_by_default(launch, tiny_model):
    with launch("--served-model-name", "tiny", model=tiny_model) as server:
        for route in ("/start_profile", "/stop_profile"):
            reply = httpx.post(server.url + route)
            assert reply.status_code == 404 and reply.json()["error"]["code"] == "profiling_off"
            assert "--profile-dir" in reply.json()["error"]["message"]
        assert server.stop() == 0
        assert "profile" not in "".join(server.err)


def test_enable_profiler_records_until_the_end(launch, tiny_model, tmp_path):
    """As the guide starts it; the log names the file."""
    with launch("--served-model-name", "tiny", model=tiny_model,
                env={"ENABLE_PROFILER": "1", "DEEPINFER_PROFILE_DIR": str(tmp_path)}) as server:
        server._wait_for("(a profile is being recorded)", server.err)
        complete(server, prompt="abc")
        assert not traces(tmp_path)
        assert server.stop() == 0
        [trace] = traces(tmp_path)
        assert re.search(r"the profile is in (\S+)", "".join(server.err))[1] == str(trace)
        assert MODEL <= {s["name"] for s in spans_of(trace)}


def test_a_folder_that_cannot_be_written_is_said_at_the_start(deepinfer, tiny_model, tmp_path):
    (tmp_path / "file").write_text("")
    done = subprocess.run([deepinfer, "serve", "--port", "0", "--model", tiny_model, "--profile-dir",
                           tmp_path / "file" / "x"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "server.profile_dir" in done.stderr and str(tmp_path / "file") in done.stderr


def test_the_bound_holds_and_is_told(launch, tiny_model, tmp_path):
    with launch("--served-model-name", "tiny", "--profile-dir", tmp_path, "--profile-events", 1000,
                "--max-model-len", 1024, model=tiny_model) as server:
        assert httpx.post(server.url + "/start_profile").status_code == 200
        complete(server, prompt="abc", max_tokens=500)
        report = httpx.post(server.url + "/stop_profile").json()
        assert server.stop() == 0
    assert report["dropped"] > 0 and report["events"] <= 1024 + 128
    trace = json.loads(traces(tmp_path)[0].read_text())
    assert trace["otherData"]["dropped_events"] == report["dropped"]
    assert any(e["ph"] == "i" and "missing" in e["name"] for e in trace["traceEvents"])
    assert report["summary"]["steps"] == 500  # the summary is of all
    assert os.path.getsize(report["file"]) < 500_000
