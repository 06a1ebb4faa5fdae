"""The program as a person calls it: commands, exit codes, messages, the chat at a terminal."""
import json
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import termios
import time

import pytest


def call(deepinfer, *args, env=None, stdin="", timeout=120):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DEEPINFER_")} | (env or {})
    return subprocess.run([deepinfer, *map(str, args)], capture_output=True, text=True, input=stdin, env=environment,
                          timeout=timeout)


def test_version_and_help(deepinfer):
    assert re.fullmatch(r"deepinfer \d+\.\d+\.\d+\n", call(deepinfer, "--version").stdout)
    text = call(deepinfer, "--help").stdout
    for command in ("serve", "run", "batch", "bench", "tune", "estimate", "config", "doctor", "gpu-info"):
        assert command in text
    assert "--max-num-seqs" in call(deepinfer, "serve", "--help").stdout


@pytest.mark.parametrize("args, parts", [
    (["frob"], ["frob"]),
    (["serve", "--max-num-seq", "3"], ["--max-num-seq", "--max-num-seqs"]),
    (["serve", "--max-num-seqs", "-3"], ["max_num_seqs", "-3", "1 to"]),
    (["serve", "--max-num-seqs", "many"], ["max_num_seqs", "many"]),
    (["config", "--config", "/nowhere.yaml"], ["/nowhere.yaml"]),
    (["run", "--pipeline-parallel-size", "0", "hi"], ["pipeline_parallel_size", "0", "1 to 64"]),
])
def test_wrong_usage_is_2(deepinfer, args, parts):
    done = call(deepinfer, *args)
    assert done.returncode == 2, done
    for part in parts:
        assert part in done.stderr
    assert "terminate" not in done.stderr


def test_no_default_model_names_the_command_that_fetches_it(deepinfer, tmp_path):
    done = call(deepinfer, "run", "hi", env={"DEEPINFER_CACHE_DIR": str(tmp_path)})
    assert done.returncode == 3
    assert "fetch_default_model.sh" in done.stderr and str(tmp_path) in done.stderr


def gguf_string(text):
    return struct.pack("<Q", len(text)) + text.encode()


@pytest.mark.parametrize("name, content, words", [
    ("missing.gguf", None, ["missing.gguf", "no such file"]),
    ("empty.gguf", b"", ["empty"]),
    ("text.gguf", b"<html>404</html>" * 10, ["text.gguf", "GGUF"]),
    ("cut.gguf", b"GGUF" + struct.pack("<IQQ", 3, 300, 30), ["cut.gguf"]),
    ("huge.gguf", b"GGUF" + struct.pack("<IQQ", 3, 2**63, 2**63) + b"\0" * 64, ["huge.gguf"]),
    ("arch.gguf", b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + gguf_string("general.architecture") + struct.pack("<I", 8) +
     gguf_string("mamba"), ["mamba", "llama"]),
])
def test_a_model_that_is_none_is_3(deepinfer, tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    done = call(deepinfer, "run", "--model", tmp_path / name, "hi")
    assert done.returncode == 3, done
    for word in words:
        assert word in done.stderr


def test_a_folder_without_config_is_3(deepinfer, tmp_path):
    done = call(deepinfer, "serve", "--model", tmp_path)
    assert done.returncode == 3
    assert "config.json" in done.stderr


def test_a_truncated_model_is_3(deepinfer, default_model, tmp_path):
    cut = tmp_path / "cut.gguf"
    with open(default_model, "rb") as f:
        cut.write_bytes(f.read(50_000_000))
    done = call(deepinfer, "run", "--model", cut, "hi")
    assert done.returncode == 3
    assert str(cut) in done.stderr and "truncated" in done.stderr and "blk." in done.stderr


def test_kv_cache_that_does_not_fit_is_4(deepinfer, default_model):
    done = call(deepinfer, "run", "--model", default_model, "--kv-cache-memory-bytes", 2**49, "hi")
    assert done.returncode == 4, done
    assert "kv_cache_memory_bytes" in done.stderr
    done = call(deepinfer, "run", "--model", default_model, "--kv-cache-memory-bytes", 10_000_000, "--max-model-len",
                8192, "hi")
    assert done.returncode == 4
    assert "max_model_len" in done.stderr


def test_run_answers(deepinfer, default_model):
    done = call(deepinfer, "run", "--model", default_model, "--temperature", 0, "--max-tokens", 20,
                "What color is the sky?")
    assert done.returncode == 0, done.stderr
    assert "blue" in done.stdout
    assert "<|im_end|>" not in done.stdout
    raw = call(deepinfer, "run", "--model", default_model, "--raw", "--temperature", 0, "--max-tokens", 8,
               stdin="The capital of France is")
    assert raw.returncode == 0 and raw.stdout.startswith(" Paris"), raw


def test_bench_prints_json(deepinfer, default_model):
    done = call(deepinfer, "bench", "--model", default_model, "--prefill", 64, "--decode", 8, "--batch", 2,
                "--batch-prompt", 8, "--repeat", 1)
    assert done.returncode == 0, done.stderr
    results = {r["test"]: r["tokens_per_second"] for r in json.loads(done.stdout)["results"]}
    assert set(results) == {"prefill_64", "decode_8", "batch_2"}
    assert all(speed > 0 for speed in results.values())


def test_bench_profiles_its_tests(deepinfer, default_model, tmp_path):
    tests = ["--model", default_model, "--prefill", 16, "--decode", 4, "--batch", 2, "--batch-prompt", 8, "--repeat", 1]
    file = tmp_path / "folder" / "bench.json"
    done = call(deepinfer, "bench", *tests, "--profile", file)
    assert done.returncode == 0, done.stderr
    profile = json.loads(done.stdout)["profile"]
    assert profile["file"] == str(file) and profile["dropped"] == 0
    assert sum(share["percent"] for share in profile["shares"]) == pytest.approx(100, abs=.01)
    assert "what to change:" in done.stderr and str(file) in done.stderr
    spans = [e for e in json.loads(file.read_text())["traceEvents"] if e["ph"] == "X"]
    assert {"step", "qkv", "attention", "project", "gate_up", "head", "sample", "commit"} <= {s["name"] for s in spans}
    assert sum(s["name"] == "step" for s in spans) == profile["steps"]
    named = call(deepinfer, "bench", *tests, "--profile", "--profile-dir", tmp_path / "others")
    assert named.returncode == 0, named.stderr
    assert [str(p) for p in (tmp_path / "others").iterdir()] == [json.loads(named.stdout)["profile"]["file"]]
    plain = call(deepinfer, "bench", *tests)
    assert "profile" not in json.loads(plain.stdout) and "what to change" not in plain.stderr


def test_bench_says_why_there_is_no_profile(deepinfer, default_model, tmp_path):
    (tmp_path / "file").write_text("")
    done = call(deepinfer, "bench", "--model", default_model, "--prefill", 16, "--decode", 0, "--batch", 0, "--repeat", 1,
                "--profile", tmp_path / "file" / "x.json")
    assert done.returncode == 2, done.stderr
    assert "what to change:" in done.stderr and "x.json" in done.stderr  # the summary is there all the same


def test_bench_of_random_weights_against_the_floor(deepinfer, tmp_path):
    tests = ["--prefill", 64, 32, "--decode", 8, "--batch", 3, "--batch-prompt", 40, "--repeat", 1]
    done = call(deepinfer, "bench", "--random-weights", "tiny", "--save", tmp_path / "tiny", "--copy-rate", 10,
                "--matmul-rate", 0.1, *tests)
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout)
    results = {r["test"]: r for r in out["results"]}
    assert list(results) == ["prefill_64", "prefill_32", "decode_8", "batch_3"]
    # tiny: hidden 128, 4 heads and 2 KV heads of 32, ffn 320, 2 layers, 512 tokens, bf16; KV cache of 2 bytes
    head, layers = 512 * 128, 2 * (2 * 128 * 128 + 2 * 64 * 128 + 3 * 320 * 128)
    decode = max((head + layers) * 2 / 10e9, 3 * 2 * (head + layers) / 0.1e12)
    batch = results["batch_3"]
    context = 40 + batch["generated_tokens"] / 2
    assert batch["floor_milliseconds"] == pytest.approx(1e3 * (decode + 3 * context * 2 * 2 * 2 * 32 * 2 / 10e9))
    assert batch["fraction_of_floor"] == pytest.approx(batch["floor_milliseconds"] / batch["milliseconds"])
    assert batch["milliseconds"] == pytest.approx(3e3 / batch["tokens_per_second"])
    prefill = (64 * 2 * layers + 2 * head + 4 * 2 * 4 * 32 * 64 * 64 / 2) / 0.1e12
    assert results["prefill_64"]["floor_milliseconds"] == pytest.approx(1e3 * prefill)
    assert 0 < out["load_seconds"] <= out["first_token_seconds"] < 60
    again = call(deepinfer, "bench", "--model", tmp_path / "tiny", *tests)
    assert again.returncode == 0, again.stderr
    assert all("floor_milliseconds" not in r for r in json.loads(again.stdout)["results"])


def test_ranks_of_threads_share_a_model(deepinfer):
    args = ["bench", "--random-weights", "tiny", "--device", "cpu", "--prefill", 32, "--decode", 8, "--batch", 2,
            "--batch-prompt", 20, "--repeat", 1, "--threads", 3]
    done = call(deepinfer, *args, "--tensor-parallel-size", 4)
    assert done.returncode == 0, done.stderr
    assert "gpu.tensor_parallel_size 4: there are 3 threads" in done.stderr  # one for each all the same
    done = call(deepinfer, *args, "--tensor-parallel-size", 5)
    assert done.returncode == 2, done.stderr
    assert "gpu.tensor_parallel_size: got 5, expected at most 4: the model has 4 query heads" in done.stderr


def test_stages_of_threads_share_a_model(deepinfer):
    args = ["bench", "--random-weights", "tiny", "--device", "cpu", "--prefill", 32, "--decode", 8, "--batch", 3,
            "--batch-prompt", 20, "--repeat", 1, "--threads", 3, "--pipeline-parallel-size"]
    done = call(deepinfer, *args, 2, "--tensor-parallel-size", 2)
    assert done.returncode == 0, done.stderr
    assert "gpu.pipeline_parallel_size 2 of gpu.tensor_parallel_size 2: there are 3 threads" in done.stderr
    done = call(deepinfer, *args, 3)
    assert done.returncode == 2, done.stderr
    assert "gpu.pipeline_parallel_size: got 3, expected at most 2: the model has 2 layers" in done.stderr


@pytest.mark.parametrize("args, words", [
    (["--random-weights", "llama-9"], ["llama-9", "llama-3.1-8b", "tiny"]),
    (["--save", "/nowhere"], ["--random-weights"]),
    (["--random-weights", "tiny", "--prefill", "5000"], ["5001", "4096"]),
    (["--copy-rate", "-1"], ["--copy-rate"]),
])
def test_bench_refuses(deepinfer, args, words):
    done = call(deepinfer, "bench", *args)
    assert done.returncode == 2, done
    for word in words:
        assert word in done.stderr


def test_config_shows_values_with_their_origin(deepinfer, tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("gpu:\n  max_num_seqs: 7\nserver:\n  api_key: very-secret\n")
    done = call(deepinfer, "config", "--config", file, "--port", 9001, env={"DEEPINFER_GPU__MAX_NUM_BATCHED_TOKENS": "99"})
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()

    def line(key):
        return next(l for l in lines if l.strip().startswith(key + ":"))

    assert "7" in line("max_num_seqs") and "my.yaml:2" in line("max_num_seqs")
    assert "9001" in line("port") and "--port" in line("port")
    assert "99" in line("max_num_batched_tokens") and "DEEPINFER_GPU__MAX_NUM_BATCHED_TOKENS" in line("max_num_batched_tokens")
    assert "very-secret" not in done.stdout


def fake_gpus(build_dir, machine):
    return {"DEEPINFER_CUDA_LIB_DIR": str(build_dir / "tests/support/fake_nvml"), "FAKE_NVML": machine}


def test_gpu_info_without_a_gpu(deepinfer, build_dir):
    env = fake_gpus(build_dir, "init=9")
    done = call(deepinfer, "gpu-info", env=env)
    assert done.returncode == 0 and done.stdout.startswith("No GPU: the NVIDIA driver is not loaded"), done
    done = call(deepinfer, "gpu-info", "--json", env=env)
    answer = json.loads(done.stdout)
    assert done.returncode == 0 and answer["gpu_count"] == 0 and "not loaded" in answer["message"]


def test_gpu_info_prints_a_table(deepinfer, build_dir):
    env = fake_gpus(build_dir, "driver=580.82.07;cuda=13000;"
                    f"gpu=NVIDIA GeForce RTX 4090|GPU-1|24564|20000|8.9|3|40|20000|450000|{os.getpid()}:512")
    done = call(deepinfer, "gpu-info", env=env)
    assert done.returncode == 0, done
    for part in ("580.82.07", "RTX 4090", "19.5 of 24.0 GiB", "8.9", "0.92 of memory, 384 sequences",
                 f"(pid {os.getpid()}) 0.5 GiB"):
        assert part in done.stdout, done.stdout
    gpu = json.loads(call(deepinfer, "gpu-info", "--json", env=env).stdout)["gpus"][0]
    assert gpu["is_nvidia_4090"] and gpu["processes"][0]["pid"] == os.getpid() and gpu["problem"] is None
    done = call(deepinfer, "gpu-info", env=env | {"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0 and "CUDA_VISIBLE_DEVICES is set and empty" in done.stdout


GOOD_DRIVER = "driver=580.82.07;cuda=13000;"
RTX_4090 = "gpu=NVIDIA GeForce RTX 4090|GPU-1|24564|20000|8.9|3|40|20000|450000|"
V100 = "gpu=Tesla V100-SXM2-16GB|GPU-2|16384|16000|7.0|0|30|40000|300000|"


@pytest.fixture(scope="module")
def has_cuda(deepinfer, build_dir):
    """Whether the program was built with the CUDA backend."""
    done = call(deepinfer, "run", "--device", "cuda:9", "hi", env=fake_gpus(build_dir, GOOD_DRIVER + RTX_4090))
    assert done.returncode == 4, done
    return "no CUDA backend" not in done.stderr


@pytest.mark.parametrize("machine, visible, device, parts", [
    ("init=9", None, "cuda", ["got cuda, but the NVIDIA driver is not loaded", "gpu.device: cpu"]),
    ("driver=535.104.05;cuda=12020;" + RTX_4090, None, "cuda", ["535.104.05", "CUDA 12.2", "580"]),
    (GOOD_DRIVER + V100, None, "cuda", ["Tesla V100", "compute capability 7.0", "8.0"]),
    (GOOD_DRIVER + V100 + ";" + RTX_4090, None, "cuda:0", ["Tesla V100", "compute capability 7.0"]),
    (GOOD_DRIVER + RTX_4090, None, "cuda:3", ["got cuda:3", "1 GPU ", "cuda:0 (NVIDIA GeForce RTX 4090)"]),
    (GOOD_DRIVER + RTX_4090, "", "cuda", ["CUDA_VISIBLE_DEVICES is set and empty"]),
    (GOOD_DRIVER + RTX_4090, "1", "cuda:0", ["CUDA_VISIBLE_DEVICES=1", "names none"]),
])
def test_a_gpu_that_cannot_be_used_is_4(deepinfer, default_model, build_dir, has_cuda, machine, visible, device, parts):
    env = fake_gpus(build_dir, machine) | ({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    done = call(deepinfer, "run", "--model", default_model, "--device", device, "hi", env=env)
    assert done.returncode == 4, done
    for part in parts if has_cuda else [f"got {device}", "no CUDA backend"]:
        assert part in done.stderr, done.stderr


@pytest.mark.parametrize("machine, reason", [
    ("init=9", "the NVIDIA driver is not loaded"),
    ("driver=535.104.05;cuda=12020;" + RTX_4090, "too old"),
    (GOOD_DRIVER + V100, "compute capability 7.0"),
])
def test_auto_takes_the_cpu_and_says_why(deepinfer, default_model, build_dir, has_cuda, machine, reason):
    done = call(deepinfer, "run", "--model", default_model, "--max-tokens", 2, "--log-level", "info", "hi",
                env=fake_gpus(build_dir, machine))
    assert done.returncode == 0, done
    line = next(line for line in done.stderr.splitlines() if "running on the CPU: " in line)
    assert (reason if has_cuda else "no CUDA backend") in line


def test_the_settings_of_a_5090_do_nothing_on_the_cpu(deepinfer, default_model):
    done = call(deepinfer, "run", "--model", default_model, "--device", "cpu", "--nvidia-5090-optimizations",
                "--max-tokens", 2, "hi")
    assert done.returncode == 0, done
    assert "nvidia_5090_optimizations: does nothing on the CPU" in done.stderr


def test_settings_of_the_device_that_was_found(deepinfer, build_dir, has_cuda):
    env = fake_gpus(build_dir, GOOD_DRIVER + RTX_4090)

    def setting(*args):
        done = call(deepinfer, "config", *args, env=env)
        assert done.returncode == 0, done
        return next(line for line in done.stdout.splitlines() if "max_num_seqs:" in line)

    found = setting()
    assert ("384" in found and "this device (NVIDIA GeForce RTX 4090)" in found) if has_cuda else "(CPU)" in found
    assert "128" in setting("--device", "cpu")
    assert "max_num_seqs: 7" in setting("--max-num-seqs", 7)


class Terminal:
    """The program in a terminal of its own."""

    def __init__(self, command, env):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(command[0], command, env)
        self.text = ""

    def wait_for(self, pattern, timeout=60):
        end = time.monotonic() + timeout
        while not (found := re.search(pattern, self.text, re.S)):
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.fd], [], [], left)[0]:
                raise AssertionError(f"{pattern!r} did not come: {self.text!r}")
            try:
                self.text += os.read(self.fd, 65536).decode(errors="replace")
            except OSError:
                raise AssertionError(f"ended before {pattern!r}: {self.text!r}") from None
        self.text = self.text[found.end():]
        return found

    def wait_for_prompt(self, timeout=60):
        """libedit prints the prompt first and sets the terminal after: a key that comes between is lost."""
        self.wait_for(">>> ", timeout)
        end = time.monotonic() + timeout
        while termios.tcgetattr(self.fd)[3] & termios.ICANON:
            assert time.monotonic() < end, "the terminal was not set for editing"
            time.sleep(0.01)

    def type(self, text):
        os.write(self.fd, text.encode())

    def exit_code(self):
        try:
            while os.read(self.fd, 65536):  # the program waits until its output is read
                pass
        except OSError:
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_chat_at_the_terminal(deepinfer, default_model, tmp_path):
    env = {**os.environ, "DEEPINFER_CACHE_DIR": str(tmp_path), "TERM": "xterm"}
    command = [str(deepinfer), "run", "--model", str(default_model), "--temperature", "0"]
    t = Terminal(command, env)
    t.wait_for_prompt()
    t.type("What is 2+2?\n")
    t.wait_for("is 4")
    t.wait_for_prompt()
    t.type("Write a long story about a dog.\n")
    t.wait_for("dog.*dog")
    t.type("\x03")  # stops the answer, not the program
    t.wait_for_prompt(timeout=5)
    t.type("/reset\n")
    t.wait_for_prompt()
    t.type("\x03")  # gives up an empty line
    t.wait_for_prompt()
    t.type("/exit\n")
    assert t.exit_code() == 0
    assert "2+2" in (tmp_path / "history").read_text().replace("\\040", " ")


def test_ctrl_d_ends_the_chat(deepinfer, default_model, tmp_path):
    t = Terminal([str(deepinfer), "run", "--model", str(default_model)],
                 {**os.environ, "DEEPINFER_CACHE_DIR": str(tmp_path), "TERM": "xterm"})
    t.wait_for_prompt()
    t.type("\x04")
    assert t.exit_code() == 0


def test_a_folder_that_cannot_be_written_changes_nothing(deepinfer, default_model):
    done = call(deepinfer, "run", "--model", default_model, "--max-tokens", 2, "hi",
                env={"DEEPINFER_CACHE_DIR": "/proc/nowhere"})
    assert done.returncode == 0, done.stderr


def test_a_program_in_another_folder_finds_its_files(deepinfer, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "share/deepinfer/configs").mkdir(parents=True)
    shutil.copy(deepinfer, tmp_path / "bin/deepinfer")
    (tmp_path / "share/deepinfer/configs/x.yaml").write_text("gpu:\n  max_num_seqs: 9\n")
    done = subprocess.run([tmp_path / "bin/deepinfer", "config", "--config", "configs/x.yaml"], capture_output=True,
                          text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "9" in next(l for l in done.stdout.splitlines() if "max_num_seqs:" in l)
