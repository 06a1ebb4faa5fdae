"""mypy over the package and over a program that uses it."""
import os
import pathlib
import subprocess
import sys

import deepinfer

GOOD = """
from deepinfer import Config, InferenceEngine, LLM, RequestOutput, SamplingParams, StreamPiece
from deepinfer.gpu_utils import GPUDetector, GPUInfo

def whole(engine: InferenceEngine) -> list[RequestOutput]:
    return engine.generate(["a", "b"], SamplingParams(max_tokens=3), use_tqdm=False)

def pieces(engine: LLM) -> list[StreamPiece]:
    return list(engine.stream([{"role": "user", "content": "Hi"}]))

async def later(engine: InferenceEngine) -> str:
    async for piece in engine.astream("a"):
        print(piece.text)
    return (await engine.agenerate("a")).text

def card() -> GPUInfo:
    return GPUDetector().get_gpu_info(0)

def settings() -> Config:
    config = Config.from_yaml("a.yaml")
    config.gpu.max_num_seqs = 4
    return config
"""
BAD = """
from deepinfer import LLM, memory_summary

engine = LLM(model="a")
a: int = engine.encode("x")
b: str = engine.generate(prompts=3)
c: int = memory_summary()
"""


def mypy(tmp_path, *args):
    package = pathlib.Path(deepinfer.__file__).parent
    environment = dict(os.environ)
    if os.environ.get("DEEPINFER_PYTHON") != "installed":
        environment["MYPYPATH"] = str(package.parent)
    environment.pop("PYTHONPATH", None)
    return subprocess.run([sys.executable, "-m", "mypy", "--strict", "--config-file", os.devnull, "--cache-dir", str(tmp_path / "cache"),
                           *args], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)


def test_the_package_and_its_stub(tmp_path):
    package = pathlib.Path(deepinfer.__file__).parent
    assert (package / "py.typed").exists()
    stub = (package / "_core.pyi").read_text()
    assert "class EngineCore" in stub and "def submit" in stub
    done = mypy(tmp_path, "-p", "deepinfer")
    assert done.returncode == 0, done.stdout + done.stderr


def test_programs_that_use_it(tmp_path):
    (tmp_path / "good.py").write_text(GOOD)
    (tmp_path / "bad.py").write_text(BAD)
    good = mypy(tmp_path, "good.py")
    assert good.returncode == 0, good.stdout + good.stderr
    bad = mypy(tmp_path, "bad.py")
    assert bad.returncode == 1 and bad.stdout.count(": error:") == 4, bad.stdout  # b: argument and result
