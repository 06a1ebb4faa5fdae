"""The Dockerfile: linted, and what it copies, sets and starts is there. tools/image_here.sh builds and starts it."""
import fnmatch
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
DOCKERFILES = [ROOT / "deploy/Dockerfile", ROOT / "deploy/wheel.dockerfile"]


def hadolint():
    beside = pathlib.Path(sys.executable).parent / "hadolint"
    return str(beside) if beside.exists() else shutil.which("hadolint") or "hadolint"


def instructions():
    """[(stage, keyword, rest)] with the lines of an instruction joined."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILES[0].read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    stage, out = None, []
    for line in filter(None, map(str.strip, text.splitlines())):
        keyword, rest = line.split(None, 1)
        if keyword == "FROM":
            stage = rest.split(" AS ")[1]
        out.append((stage, keyword, " ".join(rest.split())))
    return out


def of(stage, keyword):
    return [rest for s, k, rest in instructions() if (s, k) == (stage, keyword)]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(path):
    result = subprocess.run([hadolint(), "--no-color", path], text=True, capture_output=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_hadolint_finds_a_slip(tmp_path):
    slip = tmp_path / "Dockerfile"
    slip.write_text("FROM debian:12-slim\nRUN cd /tmp && sudo apt-get install curl\n")
    assert subprocess.run([hadolint(), slip], capture_output=True).returncode != 0


def test_what_is_copied_is_there_and_not_ignored():
    ignored = [line for line in (ROOT / ".dockerignore").read_text().split("\n") if line and not line.startswith("#")]
    copied = [word for stage, keyword, rest in instructions() if keyword == "COPY" and "--from" not in rest
              for word in rest.split()[:-1]]
    assert "src" in copied
    for name in copied:
        assert (ROOT / name).exists(), name
        assert not any(fnmatch.fnmatch(name.split("/")[0], pattern) for pattern in ignored), name
    # What CMake reads beside the sources when nothing but the program is built.
    lists = (ROOT / "CMakeLists.txt").read_text()
    for folder in re.findall(r"^(?:add_subdirectory\(|include\()(\w+)", lists, flags=re.MULTILINE):
        assert folder in copied, folder


def test_stages_and_targets():
    stages = [stage for stage, keyword, _ in instructions() if keyword == "FROM" and stage]
    assert stages[-1] == "cpu" and "cuda" in stages and stages.index("runtime") < stages.index("cuda")
    for target in ("cpu", "cuda"):
        assert of(target, "FROM")[0].startswith("runtime AS")
        assert of(target, "COPY") == [f"--from=build-{target} /opt/deepinfer /opt/deepinfer"]
    # Nothing of the compiler's in what is shipped.
    assert of("runtime", "FROM")[0].startswith("${DEBIAN}")


def test_it_starts_as_a_user_that_is_not_root():
    user = of("runtime", "USER")[-1]
    number = user.split(":")[0]
    assert number.isdigit() and int(number) != 0
    assert f"--uid {number}" in " ".join(of("runtime", "RUN"))
    pod = next(d for d in yaml.safe_load_all((ROOT / "deploy/kubernetes/deepinfer.yaml").read_text())
               if d["kind"] == "Deployment")["spec"]["template"]["spec"]
    assert str(pod["securityContext"]["runAsUser"]) == number
    assert {"USER"} & {k for s, k, _ in instructions() if s in ("cpu", "cuda")} == set(), "a target changes the user back"


def test_its_settings_are_the_programs(deepinfer):
    """ENV's variables are settings that the program knows, and give host and port; the port is the exposed one."""
    words = shlex.split(" ".join(of("runtime", "ENV")))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DEEPINFER_")} | dict(w.split("=", 1) for w in words)
    result = subprocess.run([deepinfer, "config"], env=environment, text=True, capture_output=True)
    assert result.returncode == 0, result.stderr
    settings = yaml.safe_load(result.stdout)["server"]
    assert settings["host"] == "0.0.0.0" and [str(settings["port"])] == of("runtime", "EXPOSE")
    assert json.loads(of("runtime", "ENTRYPOINT")[0]) == ["/opt/deepinfer/bin/deepinfer"]
    assert json.loads(of("runtime", "CMD")[0]) == ["serve"]
    assert of("runtime", "STOPSIGNAL") == ["SIGTERM"]


def test_the_health_check_tells_ready_from_not(server):
    command = json.loads(of("runtime", "HEALTHCHECK")[0].split("CMD ", 1)[1])
    for port, ready in ((server.port, True), (1, False)):
        result = subprocess.run(command, env={**os.environ, "DEEPINFER_PORT": str(port)}, capture_output=True)
        assert (result.returncode == 0) == ready, result.stderr


@pytest.mark.parametrize("arguments, words", [(["--target", "gpu"], "expected cpu or cuda"), (["--frobnicate"], "unknown option")])
def test_the_builder_refuses_what_it_does_not_know(arguments, words):
    result = subprocess.run([ROOT / "tools/image_here.sh", *arguments], text=True, capture_output=True)
    assert result.returncode == 2 and words in result.stderr, result.stderr
