"""deepinfer doctor: what it says of this machine, of machines that the tests make up, and its exit code."""
import json
import os
import socket
import subprocess

import pytest


def call(deepinfer, *args, env=None):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("DEEPINFER_", "HF_"))} | (env or {})
    return subprocess.run([deepinfer, "doctor", *map(str, args)], capture_output=True, text=True, env=environment,
                          timeout=120)


def findings(done):
    return {f["topic"]: f for f in json.loads(done.stdout)["findings"]}


def fake_gpus(build_dir, machine):
    return {"DEEPINFER_CUDA_LIB_DIR": str(build_dir / "tests/support/fake_nvml"), "FAKE_NVML": machine}


NO_DRIVER = "init=9"
BAD_CARD = ("driver=580.82.07;cuda=13000;gpu=NVIDIA GeForce RTX 5090|GPU-1|32768|20000|12.0|7|85|300000|450000|"
            "4711:9000|36|1500|2900|575000|1|2|0|8|16")


def test_lines_and_json_say_the_same(deepinfer, build_dir, default_model):
    env = fake_gpus(build_dir, NO_DRIVER)
    args = ("--model", default_model, "--port", 0)
    lines, answer = call(deepinfer, *args, env=env), call(deepinfer, "--json", *args, env=env)
    assert lines.returncode == answer.returncode == 0, lines
    found = findings(answer)
    for topic in ("DeepInfer", "Settings", "CUDA", "NVIDIA driver", "Model", "CPU", "CPU threads", "CPU load", "CPU governor",
                  "Huge pages", "Memory", "Open files", "Locked memory", "Disk speed", "Cache", "Port", "Access"):
        assert topic in found and f"  {topic}  " in lines.stdout.replace(topic, topic + "  ", 1)
    assert "Hub" not in found  # nothing is asked over the network
    assert found["Model"]["level"] == "ok" and "30 layers" in found["Model"]["text"]
    assert all(f["level"] == "ok" or f["text"] for f in found.values())


@pytest.mark.parametrize("args, topic, words", [
    (["--max-num-seqs", "0"], "Settings", "max_num_seqs: got 0"),
    (["--config", "/nowhere.yaml"], "Settings", "/nowhere.yaml"),
    (["--model", "/nowhere.gguf"], "Model", "no such file"),
    (["--device", "cuda"], "NVIDIA driver", "not loaded"),
])
def test_a_problem_is_1(deepinfer, build_dir, args, topic, words):
    done = call(deepinfer, "--json", "--port", 0, *args, env=fake_gpus(build_dir, NO_DRIVER))
    assert done.returncode == 1, done
    found = findings(done)[topic]
    assert found["level"] == "problem" and words in found["text"], found


def test_a_port_that_is_taken(deepinfer, default_model):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        done = call(deepinfer, "--json", "--model", default_model, "--port", port)
    found = findings(done)["Port"]
    assert done.returncode == 1 and found["level"] == "problem" and f"(pid {os.getpid()})" in found["text"]
    assert f"ss -ltnp 'sport = :{port}'" in found["command"]


def test_a_card_in_trouble(deepinfer, build_dir, default_model):
    done = call(deepinfer, "--json", "--model", default_model, "--port", 0, env=fake_gpus(build_dir, BAD_CARD))
    found = findings(done)
    assert "held down by the power limit, the temperature" in found["GPU 0 clocks"]["text"]
    assert found["GPU 0 power"]["command"] == "sudo nvidia-smi -i 0 -pl 575"
    assert found["GPU 0 persistence"]["command"] == "sudo nvidia-smi -i 0 -pm 1"
    assert "8 of 16 lanes" in found["GPU 0 PCIe"]["text"]
    assert "2 errors" in found["GPU 0 ECC"]["text"]
    memory = found["GPU 0 memory"]
    assert "gpu.gpu_memory_utilization 0.61" in memory["text"] and memory["level"] != "ok"
    # A card that the build cannot use keeps nothing from running on the CPU.
    assert done.returncode == (0 if "no CUDA backend" in found["CUDA"]["text"] else 1), done


def test_the_hub_is_asked_only_on_demand(deepinfer, default_model):
    env = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}  # nobody listens there
    args = ("--json", "--model", default_model, "--port", 0)
    assert call(deepinfer, *args, env=env).returncode == 0
    done = call(deepinfer, "--hub", *args, env=env)
    assert done.returncode == 1 and "cannot be reached" in findings(done)["Hub"]["text"]
