"""Links between the Markdown files of the repository lead somewhere. (mkdocs checks those of the site.)"""
import pathlib
import re
import subprocess

import markdown_it
import pytest

ROOT = pathlib.Path(__file__).parents[2]


def tracked():
    files = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert "README.md" in files
    return files


def tokens(path):
    for token in markdown_it.MarkdownIt("commonmark").enable("table").parse(path.read_text(encoding="utf-8")):
        yield token
        yield from token.children or []


def anchors(path):
    """As GitHub makes them of headings."""
    found, heading = set(), False
    for token in tokens(path):
        if heading and token.type == "inline":
            text = "".join(child.content for child in token.children)
            found.add(re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-"))
        heading = token.type == "heading_open"
    return found


def problems(path):
    for token in tokens(path):
        if token.type not in ("link_open", "image"):
            continue
        target = token.attrs.get("href") or token.attrs.get("src")
        if re.match(r"(https?|mailto):", target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        if not there.is_relative_to(ROOT) or not there.exists():
            yield f"{target}: no such file"
        elif anchor and there.suffix == ".md" and anchor not in anchors(there):
            yield f"{target}: no such heading; expected one of {', '.join(sorted(anchors(there)))}"


@pytest.mark.parametrize("name", tracked())
def test_links(name):
    assert list(problems(ROOT / name)) == []


def test_a_broken_link_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr("test_links.ROOT", tmp_path)
    (tmp_path / "a.md").write_text("# One (1) two\n[x](b.md) [y](a.md#one-1-two) [z](#three) | [out](../c.md)\n")
    assert [p.split(":")[0] for p in problems(tmp_path / "a.md")] == ["b.md", "#three", "../c.md"]
