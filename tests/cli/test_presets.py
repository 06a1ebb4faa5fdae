"""The presets of configs/: each loads, fits the cards it is for, and gives a reason for each value."""
import json
import pathlib
import re

import pytest
import yaml

from test_commands import call
from test_estimate import LLAMA_8B, folder

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
PRESETS = ["high_throughput", "low_latency", "long_context"]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("card", ["RTX 4090", "RTX 5090", "H200"])
def test_it_loads_and_an_8b_model_fits(deepinfer, tmp_path, preset, card):
    file = CONFIGS / f"{preset}.yaml"
    done = call(deepinfer, "estimate", "--json", "--model", folder(tmp_path / "8b", LLAMA_8B), "--gpu", card, "--config",
                file)
    assert done.returncode == 0, done
    e = json.loads(done.stdout)
    settings = yaml.safe_load(file.read_text())
    assert e["max_num_seqs"] == settings["gpu"]["max_num_seqs"]
    assert e["usable_bytes"] == pytest.approx(settings["gpu"]["gpu_memory_utilization"] * e["memory_bytes"])


@pytest.mark.parametrize("preset", PRESETS)
def test_each_value_has_its_reason(preset):
    above = ""
    values = 0
    for line in (CONFIGS / f"{preset}.yaml").read_text().splitlines():
        if re.match(r"  \w+: \S", line):
            values += 1
            assert "#" in line or above.strip().startswith("#"), f"{preset}: {line}"
        above = line
    assert values >= 6


def test_low_latency_keeps_cuda_graphs():
    assert yaml.safe_load((CONFIGS / "low_latency.yaml").read_text())["gpu"]["enforce_eager"] is False


@pytest.mark.parametrize("preset", PRESETS)
def test_it_serves_on_the_cpu(deepinfer, default_model, preset):
    done = call(deepinfer, "run", "--model", default_model, "--device", "cpu", "--config", CONFIGS / f"{preset}.yaml",
                "--max-tokens", 2, "hi")
    assert done.returncode == 0, done
