"""The default model against transformers: golden data of tools/golden/smollm2.py."""
import json
import os
import pathlib
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
