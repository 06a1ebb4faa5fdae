"""Drives the template_tool binary: one JSON line in, one out."""

import json
import os
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]


def tool_path():
    build = pathlib.Path(os.environ.get("DEEPINFER_BUILD_DIR") or ROOT / "build/release")
    path = build / "tests/unit/text/template_tool"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: build the target template_tool, or set DEEPINFER_BUILD_DIR")
    return path


def data_folder():
    """The folder with models/templates, or None."""
    named = os.environ.get("DEEPINFER_TEST_DATA")
    candidates = [pathlib.Path(named)] if named else [ROOT.parent / "peers", ROOT / ".cache" / "test-data"]
    return next((path for path in candidates if (path / "models" / "templates").is_dir()), None)


def render_all(requests):
    lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in requests)
    done = subprocess.run(
        [tool_path()], input=lines.encode(), capture_output=True, check=False, env={**os.environ, "TZ": "UTC"}
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
    answers = [json.loads(line) for line in done.stdout.decode().split("\n") if line]
    assert len(answers) == len(requests)
    return answers
