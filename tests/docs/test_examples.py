"""What examples/ promise beyond what examples/README.md runs (test_snippets.py): going on after a stop, errors, the notebook."""
import json
import subprocess
import sys

import pytest

from page_runner import PageRunner
from snippets import ROOT, Snippet

EXAMPLES = ROOT / "examples"


def snippet(name, code):
    return Snippet(f"examples/{name}", 1, "sh", code, [])


@pytest.fixture(scope="module")
def page(place, tmp_path_factory):
    runner = PageRunner(place, tmp_path_factory.mktemp("examples"))
    yield runner
    runner.close()


def shell(page, code):
    page._sh(snippet("test", code), page._code(snippet("test", code)))


def test_a_batch_goes_on_where_it_was_stopped(page):
    given = [json.loads(line) for line in (EXAMPLES / "requests.jsonl").read_text().splitlines()]
    command = "python examples/batch.py examples/requests.jsonl out.jsonl --url http://127.0.0.1:8000/v1"
    shell(page, command)
    out = page.work / "out.jsonl"
    lines = out.read_text().splitlines()
    answers = {line["custom_id"]: line for line in map(json.loads, lines)}
    assert sorted(answers) == sorted(request["custom_id"] for request in given)
    assert all(line["error"] is None and line["response"]["status_code"] == 200 for line in answers.values())
    assert answers["sea"]["response"]["body"]["choices"][0]["message"]["content"]
    assert answers["story"]["response"]["body"]["object"] == "text_completion"
    # Stopped while the third line was written.
    out.write_text("\n".join(lines[:2]) + "\n" + lines[2][:40])
    shell(page, command)
    again = [json.loads(line)["custom_id"] for line in out.read_text().splitlines()]
    assert sorted(again) == sorted(answers) and again[:2] == [json.loads(line)["custom_id"] for line in lines[:2]]


def test_a_refused_request_is_a_result_and_the_exit_code_tells(page):
    (page.work / "bad.jsonl").write_text(json.dumps(
        {"custom_id": "x", "method": "POST", "url": "/v1/completions", "body": {"prompt": "a", "top_p": 7}}) + "\n")
    shell(page, "! python examples/batch.py bad.jsonl bad_out.jsonl --url http://127.0.0.1:8000/v1")
    line = json.loads((page.work / "bad_out.jsonl").read_text())
    assert line["response"]["status_code"] == 400 and "top_p" in line["response"]["body"]["error"]["message"]


@pytest.mark.parametrize("text, words", [("{}", "custom_id"), ('{"custom_id": "a"}', "url"), ("no json", "1:")])
def test_a_wrong_line_is_named_before_anything_is_sent(tmp_path, text, words):
    (tmp_path / "in.jsonl").write_text(text + "\n")
    done = subprocess.run([sys.executable, EXAMPLES / "batch.py", tmp_path / "in.jsonl", tmp_path / "out.jsonl"],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and words in done.stderr and not (tmp_path / "out.jsonl").exists()


def test_passages_are_found_by_their_rare_words(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import rag
    index = rag.Bm25([("a", "the cat sat on the mat"), ("b", "the dog ran"), ("c", "the sea is deep and the sea is blue")])
    assert [name for name, _ in index.best("Which cat was it?", 1)] == ["a"]
    assert [name for name, _ in index.best("How deep is the sea?", 2)][0] == "c"
    assert index.best("zebra", 3) == []


def cells(name):
    return json.loads((EXAMPLES / name).read_text(encoding="utf-8"))["cells"]


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.ipynb")))
def test_the_cells_of_a_notebook_run(place, tmp_path_factory, name):
    code = [cell for cell in cells(name) if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1)), "run it from the beginning, then save it"
    assert all(output["output_type"] != "error" for cell in code for output in cell["outputs"])
    assert any(cell["outputs"] for cell in code)
    runner = PageRunner(place, tmp_path_factory.mktemp("notebook"))
    try:
        for cell in code:
            found = Snippet(f"examples/{name}", 1, "python", "".join(cell["source"]), [])
            runner._python(found, runner._code(found))
    finally:
        runner.close()
