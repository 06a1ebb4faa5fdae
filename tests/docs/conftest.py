"""What the pages of the documentation find where they are run."""
import dataclasses
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(pathlib.Path(__file__).parent), str(ROOT / "tests/hub"), str(ROOT / "tests/server")]


@dataclasses.dataclass
class Place:
    """What all pages share."""
    program: pathlib.Path
    models: dict             # name in the page's folder: file or folder
    environment: dict
    fake_nvml: pathlib.Path


@pytest.fixture(scope="session")
def place(deepinfer, build_dir, default_model, tmp_path_factory):
    import llama_configs
    import tiny_checkpoint
    import tiny_model
    from hub_stand_in import StandIn
    folder = tmp_path_factory.mktemp("docs")
    tiny = tiny_checkpoint.write(folder / "tiny")
    cache = folder / "cache/models"
    cache.mkdir(parents=True)
    (cache / default_model.name).symlink_to(default_model.resolve())
    gguf = tiny_model.write(folder / "tiny.gguf").read_bytes()
    files = {path.name: path.read_bytes() for path in tiny.iterdir()}
    quantize = [deepinfer.resolve(), "quantize", "--model", tiny, "--method", "awq", "--samples", "8", "--sample-tokens", "32",
                "--out", folder / "awq"]
    done = subprocess.run(quantize, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done
    with StandIn() as hub:
        hub.add("ORG/NAME", files | {f"NAME-{kind}.gguf": gguf for kind in ("Q4_0", "Q4_K_M")})
        for size in llama_configs.SIZES:  # what `deepinfer estimate` reads; the weights are not fetched
            hub.add(f"meta-llama/Llama-3.1-{size}-Instruct",
                    {"config.json": llama_configs.config(size).encode(), "model.safetensors": b"nobody asks for them"})
        yield Place(
            program=deepinfer.resolve(),
            models={"model.gguf": default_model.resolve(), "my-model.gguf": default_model.resolve(), "my-model": tiny,
                    "my-model-awq": folder / "awq"},
            environment={
                "DEEPINFER_CACHE_DIR": str(folder / "cache"), "HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(folder / "hub"),
                # Answers of a page are short, so that it does not take long.
                "DEEPINFER_MAX_TOKENS": "24", "PYTHONPATH": str(build_dir.resolve() / "python"), "PYTHONUNBUFFERED": "1",
            },
            fake_nvml=build_dir.resolve() / "tests/support/fake_nvml")
