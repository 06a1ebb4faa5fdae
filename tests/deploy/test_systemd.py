"""The unit: checked by systemd where that is installed, and against the settings and exit codes of the program."""
import os
import pathlib
import re
import shutil
import subprocess

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
UNIT = ROOT / "deploy/systemd/deepinfer@.service"


def setting(name, section="Service"):
    text = UNIT.read_text().split(f"[{section}]")[1].split("\n[")[0]
    return [line.split("=", 1)[1] for line in text.splitlines() if line.startswith(name + "=")]


@pytest.mark.parametrize("name", ["deepinfer@.service", "deepinfer-router.service"])
def test_systemd_takes_it(tmp_path, deepinfer, name):
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / name
    # systemd wants to see the programs where the units say they are.
    text = (UNIT.parent / name).read_text()
    for program in ("/usr/local/bin/deepinfer", "/opt/vllm-router/bin/vllm-router"):
        text = text.replace(f"ExecStart={program}", f"ExecStart={deepinfer}")
    unit.write_text(text)
    result = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], text=True, capture_output=True)
    assert result.returncode == 0 and not result.stderr, result.stderr
    unit.write_text(unit.read_text() + "\n[Service]\nRestarts=always\n")
    result = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], text=True, capture_output=True)
    assert "Restarts" in result.stderr, "systemd-analyze finds no slip"


def test_systemd_makes_its_user(tmp_path):
    if not shutil.which("systemd-sysusers"):
        pytest.skip("systemd-sysusers is not installed")
    (tmp_path / "etc").mkdir()
    result = subprocess.run(["systemd-sysusers", f"--root={tmp_path}", ROOT / "deploy/systemd/deepinfer.sysusers"],
                            text=True, capture_output=True)
    assert result.returncode == 0, result.stderr
    assert f"{setting('User')[0]}:" in (tmp_path / "etc/passwd").read_text()


def test_it_stops_after_the_drain(deepinfer):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DEEPINFER_")}
    result = subprocess.run([deepinfer, "config"], env=environment, text=True, capture_output=True, check=True)
    drain = yaml.safe_load(result.stdout)["server"]["drain_timeout"]
    assert int(setting("TimeoutStopSec")[0]) >= drain + 5
    assert setting("KillSignal") == ["SIGTERM"] and setting("KillMode") == ["mixed"]


def test_its_command_line_is_the_programs(deepinfer, tmp_path):
    """With an instance's name put in, the program reads the settings and reaches the model, which is missing."""
    config = tmp_path / "8000.yaml"
    config.write_text(f"model:\n  name: {tmp_path}/none.gguf\nserver:\n  port: 1\n")
    words = setting("ExecStart")[0].replace("%i", "0").replace("/etc/deepinfer/0.yaml", str(config)).split()
    assert words[0].endswith("/deepinfer")
    result = subprocess.run([deepinfer, *words[1:]], text=True, capture_output=True, timeout=60,
                            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)})
    assert result.returncode == 3 and "none.gguf" in result.stderr, result.stderr


def test_exit_codes_mean_what_the_unit_takes_them_for(deepinfer, tmp_path):
    stays = set(map(int, setting("RestartPreventExitStatus")[0].split()))
    meaning = dict(re.findall(r"(\d) (clean|usage|model|device|address|drain)",
                              (ROOT / "src/cli/exit_code.h").read_text()))
    assert {meaning[str(code)] for code in stays} == {"usage", "model"}
    assert meaning[setting("SuccessExitStatus")[0]] == "drain"
    result = subprocess.run([deepinfer, "serve", "--port", "70000"], text=True, capture_output=True, timeout=60,
                            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)})
    assert result.returncode in stays, result.stderr


def test_the_page_starts_the_router_as_the_unit_does():
    unit = (UNIT.parent / "deepinfer-router.service").read_text().replace("\\\n", " ")
    flags = dict(re.findall(r"(--[a-z-]+) (\S+)", unit.split("ExecStart=")[1].split("\n")[0]))
    page = (ROOT / "docs/scale.md").read_text().replace("\\\n", " ")
    shown = dict(re.findall(r"(--[a-z-]+) (\S+)", re.search(r"^router/bin/vllm-router (.*)$", page, re.MULTILINE).group(1)))
    assert len(shown) > 6 and {"--port", "--worker-urls"} <= shown.keys()
    for flag in shown.keys() - {"--port", "--worker-urls"}:
        assert flags.get(flag) == shown[flag], flag
    versions = set(re.findall(r"vllm-router==([\d.]+)", unit + page))
    assert len(versions) == 1, versions
