"""Profiles of an engine in this process."""
import json

import pytest
from deepinfer import SamplingParams


def test_a_profile_tells_where_the_time_went(engine, tmp_path):
    file = tmp_path / "folder" / "trace.json"
    engine.start_profile()
    with pytest.raises(RuntimeError, match="already"):
        engine.start_profile()
    engine.generate(["a", "b", "c"], SamplingParams(max_tokens=4, ignore_eos=True), use_tqdm=False)
    report = engine.stop_profile(file)
    assert report["file"] == str(file) and report["steps"] >= 4 and report["dropped"] == 0
    assert sum(share["percent"] for share in report["shares"]) == pytest.approx(100, abs=.01)
    assert report["advice"] and "what to change" in report["text"]
    names = {event["name"] for event in json.loads(file.read_text())["traceEvents"]}
    assert {"step", "attention", "head", "sample"} <= names
    with pytest.raises(RuntimeError, match="start_profile"):
        engine.stop_profile(file)


def test_a_name_is_found_and_a_wrong_one_is_an_error(engine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    engine.start_profile()
    assert [p.name for p in tmp_path.iterdir()] == []
    engine.stop_profile()
    [file] = tmp_path.iterdir()
    assert file.name.startswith("deepinfer-") and json.loads(file.read_text())["otherData"]
    engine.start_profile()
    with pytest.raises(OSError, match="x.json"):
        engine.stop_profile(file / "x.json")
    engine.start_profile()  # the one before is over
    engine.stop_profile(tmp_path / "y.json")
