"""The same requests to us that vLLM was sent (tools/golden/vllm_answers.py): status, fields and types are vLLM's, but for what
the table "Differences from vLLM" of docs/API.md names in its first column."""
import importlib.util
import json
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def load_recorder():
    spec = importlib.util.spec_from_file_location("vllm_answers", ROOT / "tools/golden/vllm_answers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RECORDER = load_recorder()
GOLDEN = {row["name"]: row for row in json.loads((ROOT / "tests/server/data/vllm_answers.json").read_text())["answers"]}


def on_purpose():
    """What stands between backticks in the first column."""
    text = (ROOT / "docs/API.md").read_text().split("## Differences from vLLM")[1]
    names = []
    for line in text.splitlines():
        if line.startswith("| `"):
            names += re.findall(r"`([^`]+)`", line.split(" | ")[0])
    return names


def kind_of(name, row):
    if row["status"] >= 400:
        return "error"
    form = name.split(":")[0] if ":" in name else name
    return form + (" stream" if row["type"] == "text/event-stream" else "")


def differences(path, theirs, ours):
    """Paths whose field one of the two lacks, or whose type differs."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        if "*" in theirs and "*" in ours:
            yield from differences(path + ".*", theirs["*"], ours["*"])
            return
        for key in theirs | ours:
            here = f"{path}.{key}".lstrip(".")
            if key not in theirs:
                yield here + " more"
            elif key not in ours:
                yield here + " less"
            else:
                yield from differences(here, theirs[key], ours[key])
    elif isinstance(theirs, list) and isinstance(ours, list):
        if theirs and ours:
            yield from differences(path + "[]", theirs[0], ours[0])
    elif path.endswith("stop_reason") and "null" in (theirs, ours):
        return  # whether sampled text meets the stop string is chance
    elif theirs != ours and None not in (theirs, ours):
        their_name, our_name = (x if isinstance(x, str) else type(x).__name__ for x in (theirs, ours))
        yield f"{path}: {their_name}, {our_name}"


def found_in(name, theirs, ours):
    if theirs["status"] != ours["status"]:
        return [f"{name} is {ours['status']}"]
    found = []
    for field in ("type", "done", "choices"):
        if theirs.get(field) != ours.get(field):
            found.append(f"{name}: {field} {ours.get(field)}")
    kind = kind_of(name, theirs)
    return found + [f"{kind}: {item}" for item in differences("", theirs.get("shape"), ours.get("shape"))]


@pytest.fixture(scope="module")
def ours(launch):
    with launch("--max-model-len", 512, "--served-model-name", "m") as server:
        yield {name: RECORDER.answer(*RECORDER.ask(server.url, method, path, body))
               for name, method, path, body in RECORDER.cases()}
        assert server.stop() == 0


def test_the_same_requests_were_recorded(ours):
    assert list(ours) == list(GOLDEN), "run tools/golden/vllm_answers.py again"


def test_answers_are_vllms_but_for_the_table(ours):
    allowed = set(on_purpose())
    found = {name: found_in(name, GOLDEN[name], ours[name]) for name in ours}
    surprises = {name: [d for d in items if d not in allowed] for name, items in found.items()}
    surprises = {name: items for name, items in surprises.items() if items}
    assert not surprises, json.dumps(surprises, indent=1)
    seen = {item for items in found.values() for item in items}
    assert not allowed - seen, f"differences that are none any more: {sorted(allowed - seen)}"


def test_no_fault_of_a_client_is_a_5xx(ours):
    assert not [name for name, row in ours.items() if row["status"] >= 500]
