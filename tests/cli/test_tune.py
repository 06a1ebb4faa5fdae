"""deepinfer tune with the default model: bounded, it writes what serve takes, and says what is wrong."""
import json
import os
import signal
import subprocess
import time
import xml.etree.ElementTree

import pytest

from test_commands import call


@pytest.fixture
def workload(tmp_path):
    file = tmp_path / "mine.jsonl"
    lines = [{"prompt_tokens": 20 + i, "max_tokens": 6} for i in range(4)]
    lines.append({"body": {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5}})
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_it_measures_and_writes_what_serve_takes(deepinfer, default_model, workload, tmp_path):
    out = tmp_path / "best.yaml"
    start = time.monotonic()
    done = call(deepinfer, "tune", "--model", default_model, "--device", "cpu", "--workload", workload, "--concurrency",
                2, "--minutes", 0.15, "--slo", "ttft=60,itl=60", "--out", out, "--json")
    taken = time.monotonic() - start
    assert done.returncode == 0, done
    assert taken < 0.15 * 60 + 10, "the budget, loading and what the last run's end takes"
    result = json.loads(done.stdout)
    assert result["slo_met"] and result["out"] == str(out)
    start_point = result["trials"][0]
    assert start_point["settings"]["gpu.max_num_seqs"] == 128, "it begins with the recommended settings"
    assert len(result["trials"]) > 1
    for trial in result["trials"]:
        if trial["complete"]:
            assert trial["tokens_per_second"] > 0 and 0 < trial["ttft_p50"] <= trial["ttft_p99"]
            assert trial["requests"] == result["requests"]
    fastest = max(t["tokens_per_second"] for t in result["trials"] if t["complete"])
    best = next(t for t in result["trials"] if t["settings"] == result["best"])
    assert best["tokens_per_second"] >= 0.97 * fastest
    assert "[0:" in done.stderr and "tok/s" in done.stderr, "progress"

    text = out.read_text()
    for part in ("SmolLM2-135M-Instruct", "Q4_1", "CPU", "mine.jsonl", "met", "tok/s"):
        assert part in text, text
    shown = call(deepinfer, "config", "--config", out)
    assert shown.returncode == 0, shown
    for key, value in result["best"].items():
        name = key.split(".")[1]
        line = next(l for l in shown.stdout.splitlines() if l.strip().startswith(name + ":"))
        assert f"{name}: {str(value).lower()}" in line and "best.yaml" in line
    # Only what was tuned.
    assert shown.stdout.count("best.yaml") == len(result["best"])
    plot = xml.etree.ElementTree.parse(tmp_path / "best.svg")
    assert plot.getroot().tag.endswith("svg")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.svg", "best.yaml", "mine.jsonl"]


def test_a_table_and_an_slo_that_nothing_meets(deepinfer, default_model, workload, tmp_path):
    done = call(deepinfer, "tune", "--model", default_model, "--device", "cpu", "--workload", workload, "--concurrency",
                2, "--minutes", 0.08, "--slo", "itl=0.0000001", "--out", tmp_path / "t.yaml")
    assert done.returncode == 1, done
    assert "no settings meet the SLO; the nearest" in done.stderr
    header, *rows = done.stdout.strip().splitlines()
    assert "max_num_seqs" in header and "tok/s" in header and "ITL p50/p99" in header
    assert sum("best" in row for row in rows) == 1 and "#" in done.stdout
    assert "NOT met" in (tmp_path / "t.yaml").read_text()


def stopped(deepinfer, default_model, workload, out, after):
    """tune, interrupted as soon as `after` stands on standard error."""
    with subprocess.Popen([deepinfer, "tune", "--model", default_model, "--device", "cpu", "--workload", workload,
                           "--minutes", "2", "--concurrency", "2", "--out", out], stderr=subprocess.PIPE, text=True,
                          stdout=subprocess.PIPE) as process:
        text = ""
        for line in process.stderr:
            text += line
            if after in line:
                process.send_signal(signal.SIGINT)
                break
        end = time.monotonic()
        rest = process.communicate(timeout=60)[1]
        assert time.monotonic() - end < 20
        return process.returncode, text + rest


def test_ctrl_c_writes_the_best_so_far(deepinfer, default_model, workload, tmp_path):
    out = tmp_path / "t.yaml"
    code, text = stopped(deepinfer, default_model, workload, out, "[0:")
    assert code == 130 and "the best so far is written" in text, text
    assert "interrupted" in out.read_text()
    assert call(deepinfer, "config", "--config", out).returncode == 0


def test_ctrl_c_before_anything_was_measured(deepinfer, default_model, workload, tmp_path):
    out = tmp_path / "t.yaml"
    code, text = stopped(deepinfer, default_model, workload, out, "mine.jsonl:")
    assert code == 130 and "nothing was written" in text, text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.jsonl"]


@pytest.mark.parametrize("args, words", [
    (["--workload", "chitchat"], ["chitchat", "chat, batch, long-context"]),
    (["--workload", "/nowhere/w.jsonl"], ["/nowhere/w.jsonl"]),
    (["--slo", "fast"], ["'fast'", "ttft=0.5,itl=0.05"]),
    (["--slo", "ttft=-1"], ["ttft=-1"]),
    (["--slo", "ttft=0.5,tpot=1"], ["tpot=1"]),
    (["--minutes", "0"], ["--minutes"]),
    (["--minutes", "soon"], ["--minutes"]),
    (["--concurrency", "-1"], ["--concurrency"]),
    (["--out", "/nowhere/t.yaml"], ["/nowhere/t.yaml", "cannot be written"]),
    (["--out", "/proc/t.yaml"], ["/proc/t.yaml", "cannot be written"]),
    (["--out", "/tmp"], ["/tmp is a folder"]),
    (["--out", "t.svg"], [".yaml"]),
    (["--max-num-seqs", "0"], ["max_num_seqs"]),
])
def test_what_is_wrong_is_said_at_once(deepinfer, default_model, tmp_path, args, words):
    out = [] if "--out" in args else ["--out", str(tmp_path / "t.yaml")]
    start = time.monotonic()
    done = call(deepinfer, "tune", "--model", default_model, "--device", "cpu", *out, *args)
    assert time.monotonic() - start < 20
    assert done.returncode == 2, done
    for word in words:
        assert word in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_broken_workload_names_the_line(deepinfer, default_model, tmp_path):
    file = tmp_path / "w.jsonl"
    file.write_text('{"prompt_tokens": 3, "max_tokens": 2}\n{"max_tokens": 2}\n')
    done = call(deepinfer, "tune", "--model", default_model, "--device", "cpu", "--workload", file, "--out",
                tmp_path / "t.yaml")
    assert done.returncode == 2 and f"{file}:2" in done.stderr, done


def test_a_model_that_is_none_is_3(deepinfer, tmp_path):
    done = call(deepinfer, "tune", "--model", tmp_path / "none.gguf", "--out", tmp_path / "t.yaml")
    assert done.returncode == 3, done
    assert os.listdir(tmp_path) == []
