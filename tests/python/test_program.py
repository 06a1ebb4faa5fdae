"""The program's commands through Python: exit codes, signals, files that come with the package."""
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import urllib.request

import pytest


def start(*args, **options):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DEEPINFER_")}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    # A shell's background job hands down that SIGINT is ignored, and the program keeps to that.
    return subprocess.Popen([sys.executable, *args], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **options)


def call(*args, **options):
    process = start(*args, **options)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def test_version_help_and_wrong_usage():
    import deepinfer
    assert call("-m", "deepinfer", "--version") == (0, f"deepinfer {deepinfer.__version__}\n", "")
    code, out, _ = call("-m", "deepinfer.server", "--help")
    assert code == 0 and "--max-num-seqs" in out
    code, out, err = call("-m", "deepinfer", "frob")
    assert code == 2 and out == "" and "unknown command 'frob'" in err
    code, _, err = call("-m", "deepinfer.server", "--max-num-seq", "3")
    assert code == 2 and "--max-num-seqs" in err
    assert call("-m", "deepinfer", "run", "--model", "/nowhere.gguf", "hi")[0] == 3


def test_the_command_is_installed_beside_the_interpreter():
    if os.environ.get("DEEPINFER_PYTHON") != "installed":
        pytest.skip("the package runs out of the build folder, where it brings no command")
    done = subprocess.run([pathlib.Path(sys.executable).parent / "deepinfer", "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("deepinfer ")


def test_files_that_come_with_the_package(tmp_path):
    code, out, err = call("-m", "deepinfer", "config", "--config", "configs/nvidia_5090.yaml", cwd=tmp_path)
    assert code == 0, err
    assert re.search(r"max_num_seqs: 512 .*nvidia_5090.yaml", out)
    code, out, err = call("-c", """if True:
        from deepinfer import Config
        print(Config.from_yaml("configs/nvidia_5090.yaml").gpu.max_num_seqs)
        """, cwd=tmp_path)
    assert (code, out) == (0, "512\n"), err
    share = call("-c", "import deepinfer, pathlib; print(pathlib.Path(deepinfer.__file__).parent / 'share/deepinfer')")[1].strip()
    names = {p.name for p in pathlib.Path(share).iterdir()}
    assert names >= {"configs", "calibration.txt", "fetch_default_model.sh"}


def test_ctrl_c_ends_a_command(model):
    process = start("-m", "deepinfer", "bench", "--model", model, "--device", "cpu", "--repeat", "1000")
    time.sleep(1.5)
    assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT


def test_a_closed_pipe_ends_a_command_quietly():
    process = start("-m", "deepinfer", "config", "--markdown")
    process.stdout.close()
    process.wait(timeout=60)
    assert process.stderr.read() == "" and process.returncode == -signal.SIGPIPE


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_server(model, tmp_path, number):
    config = tmp_path / "c.yaml"
    config.write_text("gpu:\n  device: cpu\n  max_num_seqs: 3\nmodel:\n  max_model_len: 256\n")
    process = start("-m", "deepinfer.server", "--model", model, "--config", str(config), "--port", "0")
    url = None
    for line in process.stdout:
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        url = url or (found and found.group())
        if line.startswith("curl ") or "curl " in line:
            break
    assert url, process.stderr.read()
    request = urllib.request.Request(url + "/v1/completions", b'{"prompt": "Once", "max_tokens": 3, "ignore_eos": true}',
                                     {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        assert reply.status == 200 and b'"completion_tokens":3' in reply.read().replace(b": ", b":")
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_import_is_small():
    code, out, err = call("-c", """if True:
        import sys, deepinfer
        print([m for m in ("numpy", "torch", "tqdm", "asyncio", "ssl") if m in sys.modules])
        """)
    assert (code, out) == (0, "[]\n"), err
