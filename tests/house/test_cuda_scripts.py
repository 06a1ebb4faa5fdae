"""The scripts around CUDA: which cards are seen, which toolkit is taken, what is refused."""
import os
import pathlib
import shutil
import stat
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def run(*command, **variables):
    env = {k: v for k, v in os.environ.items() if k not in ("CUDA_HOME", "CUDA_PATH", "DEEPINFER_CUDA_HOME")}
    return subprocess.run([str(c) for c in command], env={**env, **variables}, text=True,
                          stdin=subprocess.DEVNULL, capture_output=True, timeout=120)


def program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize("answer, expected", [
    ("9.0", "90a"), ("12.0", "120f"), ("12.0\n12.0", "120f"), ("8.9\n12.0", "89;120f"), ("8.6", "86"), ("10.3", "103"),
    ("7.5\n8.0", "80"), ("[N/A]\n9.0", "90a"),
])
def test_cards_are_named_as_nvcc_names_them(tmp_path, answer, expected):
    program(tmp_path / "nvidia-smi", f"printf '{answer}\\n'\n")
    result = run(ROOT / "tools/gpu_architectures.sh", PATH=f"{tmp_path}:/usr/bin:/bin", DEEPINFER_TEST_ROOT=str(tmp_path))
    assert (result.returncode, result.stdout) == (0, expected + "\n")


def test_a_card_that_is_too_old_is_no_card(tmp_path):
    program(tmp_path / "nvidia-smi", "echo 7.5\n")
    result = run(ROOT / "tools/gpu_architectures.sh", PATH=f"{tmp_path}:/usr/bin:/bin")
    assert result.returncode == 1
    assert "7.5" in result.stderr and "8.0" in result.stderr


@pytest.mark.parametrize("vendor, kind, code", [
    ("0x10de", "0x030000", 0), ("0x10de", "0x030200", 0), ("0x10de", "0x020000", 1), ("0x1002", "0x030000", 1),
])
def test_a_card_without_a_driver_is_seen_on_the_bus(tmp_path, vendor, kind, code):
    program(tmp_path / "bin/nvidia-smi", "exit 9\n")
    device = tmp_path / "sys/bus/pci/devices/0000:01:00.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text(vendor + "\n")
    (device / "class").write_text(kind + "\n")
    result = run(ROOT / "tools/gpu_architectures.sh", PATH=f"{tmp_path}/bin:/usr/bin:/bin", DEEPINFER_TEST_ROOT=str(tmp_path))
    assert (result.returncode, result.stdout.strip()) == (code, "")


def test_the_first_toolkit_that_is_new_enough_is_taken(tmp_path):
    program(tmp_path / "old/bin/nvcc", "echo 'Cuda compilation tools, release 12.8, V12.8.61'\n")
    program(tmp_path / "new/bin/nvcc", "echo 'Cuda compilation tools, release 13.5, V13.5.37'\n")
    result = run(ROOT / "tools/cuda_toolkit.sh", DEEPINFER_CUDA_HOME=str(tmp_path / "old"), CUDA_HOME=str(tmp_path / "new"))
    assert (result.returncode, result.stdout) == (0, f"{tmp_path}/new\n")


def test_the_libraries_of_an_installed_toolkit_stand_where_nvcc_looks(tmp_path):
    toolkit = tmp_path / "cache/cuda/nvidia/cu13"
    program(toolkit / "bin/nvcc", "echo 'Cuda compilation tools, release 13.0, V13.0.88'\n")
    (toolkit / "lib").mkdir()
    (toolkit / "lib/libcudart_static.a").touch()
    for _ in range(2):
        result = run(ROOT / "tools/cuda_toolkit.sh", PATH="/usr/bin:/bin", DEEPINFER_TEST_ROOT=str(tmp_path),
                     DEEPINFER_CACHE_DIR=str(tmp_path / "cache"))
        assert (result.returncode, result.stdout) == (0, f"{toolkit}\n"), result.stderr
    assert (toolkit / "lib64/libcudart_static.a").exists()


def test_quickstart_after_a_failed_configuration_still_builds_for_the_card(tmp_path):
    root, home, bin = tmp_path / "root", tmp_path / "home", tmp_path / "bin"
    shutil.copytree(ROOT / "tools", root / "tools")
    shutil.copy(ROOT / "quickstart.sh", root)
    (root / "tools/packages.txt").write_text("build libc6\n")
    program(root / "tools/flashinfer.sh", "exit 0\n")
    program(tmp_path / "cuda/bin/nvcc", "echo 'Cuda compilation tools, release 13.0, V13.0.88'\n")
    program(bin / "nvidia-smi", "echo 12.0\n")
    program(bin / "cmake", f"""case "$1" in -S) ;; *) exit 0 ;; esac
echo "$@" >> {tmp_path}/asked
mkdir -p {root}/build/release
echo 'DEEPINFER_CUDA_HOME:PATH={tmp_path}/cuda' > {root}/build/release/CMakeCache.txt
[ "$(wc -l < {tmp_path}/asked)" -gt 1 ] || exit 1
touch {root}/build/release/build.ninja
""")
    model = home / "models/SmolLM2-135M-Instruct.Q4_1.gguf"
    model.parent.mkdir(parents=True)
    model.touch()
    codes = [run(root / "quickstart.sh", "--no-serve", "--prefix", tmp_path / "out", PATH=f"{bin}:/usr/bin:/bin",
                 HOME=str(home), DEEPINFER_CACHE_DIR=str(home), DEEPINFER_CUDA_HOME=str(tmp_path / "cuda")).returncode
             for _ in range(3)]
    asked = (tmp_path / "asked").read_text().splitlines()
    assert codes == [1, 0, 0] and len(asked) == 2, (codes, asked)
    for line in asked:
        assert "-DDEEPINFER_CUDA=ON" in line and "-DDEEPINFER_CUDA_ARCHITECTURES=120f" in line, line


def test_flashinfer_of_another_version_is_refused(tmp_path):
    wheel = tmp_path / "flashinfer.whl"
    wheel.write_bytes(b"something else")
    result = run(ROOT / "tools/flashinfer.sh", "--wheel", wheel, tmp_path / "out")
    assert result.returncode == 1
    assert "SHA-256" in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_program_needs_no_cuda_library_to_start(build_dir):
    result = run("ldd", build_dir / "src/cli/deepinfer")
    assert result.returncode == 0
    names = [line.split()[0] for line in result.stdout.splitlines()]
    assert names
    wrong = [n for n in names if n.startswith(("libcuda", "libcublas", "libnccl", "libnvidia", "libnvrtc", "libnvJitLink"))]
    assert not wrong
