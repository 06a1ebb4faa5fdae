"""The runner of the documentation's snippets finds what is wrong in them: a test that cannot fail would tell nothing."""
import pytest

import snippets
from page_runner import Failed, PageRunner, Skipped


def page(tmp_path, text):
    (tmp_path / "page.md").write_text(text)
    return snippets.parse(tmp_path / "page.md")


@pytest.fixture
def outcome(place, tmp_path):
    """outcome(text): what became of the last snippet of such a page."""
    runner = PageRunner(place, tmp_path / "runner")

    def run(text):
        found = page(tmp_path, text)
        return runner.run_up_to(found, len(found) - 1)

    yield run
    runner.close()


def test_blocks_and_comments_are_found(tmp_path):
    found = page(tmp_path, """# Page

<!-- snippet: needs: nsys -->
<!-- snippet: replace: A => B -->
```bash
echo A
```

1. In a list:

    <!-- snippet: skip: no reason --->
    ```yaml
    gpu:
    ```

Text.

<!-- snippet: skip: it is above a text -->

Text again.

```py
x = 1
```

    indented
""")
    assert [(s.language, s.line, s.code) for s in found] == [
        ("sh", 6, "echo A\n"), ("yaml", 13, "gpu:\n"), ("python", 23, "x = 1\n"), ("indented", 26, "indented\n")]
    assert found[0].directives == [("needs", "nsys"), ("replace", "A => B")]
    assert found[1].texts("skip") and found[2].directives == []
    assert [s.problem() is None for s in found] == [True, True, True, False]


@pytest.mark.parametrize("text, words", [
    ("```\nx\n```\n", "language '' is not known"),
    ("```rust\nx\n```\n", "language 'rust' is not known"),
    ("<!-- snippet: ignore: me -->\n```sh\ntrue\n```\n", "directive 'ignore'"),
    ("<!-- snippet: skip: -->\n```sh\ntrue\n```\n", "says nothing"),
    ("<!-- snippet: replace: a -->\n```sh\ntrue\n```\n", "expected A => B"),
    ("<!-- snippet: replace: a => b -->\n```sh\nfoo\n```\n", "'a' is not in the snippet"),
    ("```sh\nfalse\ntrue\n```\n", "exit code 1"),
    ("```sh\nfalse | cat\n```\n", "exit code 1"),
    ("```sh\ndeepinfer config --max-num-seqs many\n```\n", "expected an integer"),
    ("```sh\ndeepinfer serve --model nowhere.gguf\n```\n", "nowhere.gguf"),
    ("```sh\ncurl http://localhost:8000/nowhere\n```\n", "route_not_found"),
    ("```python\n1 / 0\n```\n", "line 2"),
    ("```python\nimport os\nos._exit(3)\n```\n", "exit code 3"),
    ("```yaml\ngpu:\n  max_num_seq: 3\n```\n", "max_num_seqs"),
    ("<!-- snippet: parse only: a list -->\n```yaml\na: [\n```\n", "expected"),
    ("```json\n{\"a\": 1,}\n```\n", "line 1"),
    ("```jsonl\n{}\n{\n```\n", "line 1"),
    ("<!-- snippet: fails: zero -->\n```python\nx = 1\n```\n", "got none"),
    ("<!-- snippet: fails: zero -->\n```python\nraise ValueError('one')\n```\n", "another one"),
])
def test_what_is_wrong_fails(outcome, text, words):
    result = outcome(text)
    assert isinstance(result, Failed) and words in str(result), result


@pytest.mark.parametrize("comment, reason", [("needs: no-such-program", "needs no-such-program"), ("skip: the moon", "the moon")])
def test_what_cannot_run_is_skipped_with_its_reason(outcome, comment, reason):
    result = outcome(f"<!-- snippet: {comment} -->\n```sh\nfalse\n```\n")
    assert isinstance(result, Skipped) and str(result) == reason


def test_a_page_is_one_story(outcome):
    """Python keeps its names, files stay, a server stays until the next one."""
    assert outcome("""
<!-- snippet: file: made.yaml -->
```yaml
gpu:
  max_num_seqs: 7
```

```python
names = open("made.yaml").read()
```

```sh
deepinfer serve --model my-model --config made.yaml --served-model-name one --port 1234
curl -s http://localhost:8000/v1/models | grep '"one"'
```

<!-- snippet: replace: NAME => two -->
```sh
python -m deepinfer.server --model my-model --served-model-name NAME
```

```python
import urllib.request

models = urllib.request.urlopen("http://127.0.0.1:8000/v1/models").read().decode()
assert '"two"' in models and "max_num_seqs: 7" in names
```

<!-- snippet: fails: AssertionError -->
```python
assert '"one"' in models
```
""") is None
