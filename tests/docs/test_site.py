"""The site of the documentation: it loads nothing from elsewhere, and a link or anchor that leads nowhere is an error."""
import os
import re
import shutil
import subprocess
import sys

import pytest

from snippets import ROOT

PARTS = ("mkdocs.yml", "docs", "tools/mkdocs_hooks.py", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "examples")


def build(folder, site):
    return subprocess.run([sys.executable, "-m", "mkdocs", "build", "--site-dir", site], cwd=folder, text=True,
                          capture_output=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, timeout=120)


@pytest.fixture
def copy(tmp_path):
    """What the site is made of, to be changed."""
    for part in PARTS:
        target = tmp_path / "copy" / part
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / part).is_dir() else shutil.copy)(ROOT / part, target)
    return tmp_path / "copy"


def test_it_loads_nothing_from_elsewhere(tmp_path):
    done = build(ROOT, tmp_path)
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^>]*", text), page
    for sheet in tmp_path.rglob("*.css"):
        assert not re.findall(r"url\([\"']?(?:https?:)?//|@import", sheet.read_text(encoding="utf-8")), sheet


@pytest.mark.parametrize("text, words", [("[x](nowhere.md)", "nowhere.md"), ("[x](API.md#nowhere)", "nowhere"),
                                         ("[x](../tools/nowhere.py)", "nowhere.py")])
def test_a_link_to_nowhere_is_an_error(copy, tmp_path, text, words):
    with (copy / "docs/index.md").open("a") as page:
        page.write("\n" + text + "\n")
    done = build(copy, tmp_path / "site")
    assert done.returncode != 0 and words in done.stderr, done


def test_a_page_that_the_navigation_forgot_is_there(copy, tmp_path):
    (copy / "docs/FORGOTTEN.md").write_text("# Forgotten\n\n[changes](../CHANGELOG.md), [a script](../tools/mkdocs_hooks.py)\n")
    done = build(copy, tmp_path / "site")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site/FORGOTTEN.html").read_text(encoding="utf-8")
    assert 'href="CHANGELOG.html"' in page and "mkdocs_hooks.py<" not in page.replace("a script", "")
    assert 'href="FORGOTTEN.html"' in (tmp_path / "site/index.html").read_text(encoding="utf-8")
