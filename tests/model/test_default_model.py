"""The default model against transformers: golden data of tools/golden/smollm2.py."""
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/golden/smollm2"


@pytest.fixture(scope="session")
def twin(test_data, default_model):
    """The default model as a Hugging Face folder in bf16: the same content through the other loader."""
    folder = test_data / "twin"
    if not (folder / "complete").exists():
        subprocess.run([sys.executable, ROOT / "tools/make_twin.py", default_model, folder], check=True)
        (folder / "complete").touch()
    return folder


def test_greedy_of_the_bf16_twin_is_that_of_transformers(build_dir, twin):
    cases = json.loads((GOLDEN / "greedy.json").read_text())["cases"]
    assert len(cases) == 20
    lines = "".join(json.dumps({"prompt": c["prompt"], "max_tokens": len(c["output"])}) + "\n" for c in cases)
    done = subprocess.run([build_dir / "tests/tools/generate_tool", twin], input=lines, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    for case, answer in zip(cases, answers, strict=True):
        assert answer["tokens"] == case["output"], (case["text"], case["gap"], answer["error"])


@pytest.mark.parametrize("method", ["fp8", "int4"])
def test_quantizing_while_loading_takes_one_tensor_above_the_final_size(deepinfer, twin, method):
    process = subprocess.Popen([deepinfer, "serve", "--port", "0", "--model", twin, "--quantization", method,
                                "--max-model-len", "256", "--max-num-seqs", "2"],
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert any(line.startswith("curl ") for line in process.stdout), "it did not start"
        status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    finally:
        process.terminate()
        process.wait()
    kib = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+) kB$", status, re.M)}
    embedding = 49152 * 576 * 2 // 1024  # the largest tensor; a matrix's pages of the file are dropped when it is packed
    read_ahead = 40 << 10  # a page fault maps what the system has read around it
    assert kib["VmHWM"] <= kib["RssAnon"] + kib["RssFile"] + embedding + read_ahead, kib
    assert kib["RssFile"] < 100 << 10, f"pages of the file, which has 257 MiB, are kept: {kib}"
    assert kib["RssAnon"] < 200 << 10, f"more than the quantized model: {kib}"


def test_quality_of_the_quantized_kernels(build_dir, default_model):
    """Perplexity within 1% of the same weights in F32, divergence no worse than llama.cpp's on the same file."""
    want = json.loads((GOLDEN / "quality.json").read_text())
    done = subprocess.run([build_dir / "tests/tools/quality_tool", default_model, GOLDEN], capture_output=True, text=True,
                          env={**os.environ})
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert got["tokens_sha256"] == want["tokens_sha256"]
    assert got["positions"] == want["positions"] and want["tokens"] >= 20000
    assert abs(got["perplexity"] / want["perplexity"] - 1) < 0.01, got
    assert got["compared"] > 700 and got["kld"] <= 0.0031, got
    assert got["same_top"] > 0.95, got
