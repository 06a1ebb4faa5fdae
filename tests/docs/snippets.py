"""The snippets of a Markdown page, and the place where they are run.

Every fenced or indented block is a snippet. What happens with it follows from its language:

  python           run; a page's blocks share one interpreter, in order
  sh, bash         run by bash in the page's folder, which looks like the repository with a few models in it
  yaml             read as settings by `deepinfer config --config`
  json, jsonl      parsed
  text             nothing: output, formulas, pictures
  anything else    an error: say what it is

HTML comments directly above a block change that. One that is not understood is an error.

  <!-- snippet: skip: REASON -->          not run; the test's report prints the reason
  <!-- snippet: needs: WORD -->           run only where that program is in PATH (`gpu`: a card is here; `cuda`: the program
                                         has the CUDA backend), else skipped
  <!-- snippet: card: NAME -->            run with a driver library that reports such a card (tests/support/fake_nvml.cpp)
  <!-- snippet: file: NAME -->            also written to a file of the page's folder
  <!-- snippet: parse only: REASON -->    yaml that holds no settings of ours
  <!-- snippet: replace: A => B -->       A is replaced before it runs
  <!-- snippet: fails: WORDS -->          it must fail, and print these words
  <!-- snippet: corrected: WORDS -->      of the older guide: what docs/gpu_optimization.md says about it (test_guide.py)
"""
import dataclasses
import os
import pathlib
import re

import markdown_it

ROOT = pathlib.Path(__file__).parents[2]
ALIASES = {"py": "python", "bash": "sh", "shell": "sh", "yml": "yaml"}
LANGUAGES = {"python", "sh", "yaml", "json", "jsonl", "text"}
DIRECTIVES = {"skip", "needs", "card", "file", "parse only", "replace", "fails", "corrected"}
_COMMENT = re.compile(r"<!--\s*snippet:(.*?)-->", re.DOTALL)


@dataclasses.dataclass
class Snippet:
    page: str            # relative to the repository
    line: int            # of its first line of code, from 1
    language: str
    code: str
    directives: list     # of (name, text)

    @property
    def id(self):
        return f"{self.page}:{self.line}-{self.language or 'none'}"

    def texts(self, name):
        return [text for directive, text in self.directives if directive == name]

    def text(self, name):
        return next(iter(self.texts(name)), None)

    def problem(self):
        """Why it cannot be classified, or None."""
        for name, text in self.directives:
            if name not in DIRECTIVES:
                return f"directive {name!r}: expected one of {', '.join(sorted(DIRECTIVES))}"
            if not text:
                return f"directive {name!r} says nothing"
            if name == "replace" and " => " not in text:
                return f"directive replace: got {text!r}, expected A => B"
        if self.language not in LANGUAGES and not self.text("skip"):
            return (f"language {self.language!r} is not known: expected {', '.join(sorted(LANGUAGES))}, "
                    "or a comment <!-- snippet: skip: REASON --> above it")
        return None


def parse(path):
    """The snippets of a page. `path` is relative to the repository, or absolute."""
    text = (ROOT / path).read_text(encoding="utf-8")
    name = os.path.relpath(ROOT / path, ROOT)
    snippets, directives = [], []
    for token in markdown_it.MarkdownIt("commonmark").parse(text):
        if token.type == "html_block":
            for comment in _COMMENT.findall(token.content):
                known = next((d for d in sorted(DIRECTIVES) if comment.strip().startswith(d + ":")), None)
                directive, _, said = (known, "", comment.strip()[len(known) + 1:]) if known else comment.partition(":")
                directives.append((directive.strip(), " ".join(said.split())))
            continue
        if token.type in ("fence", "code_block"):
            words = token.info.split()
            language = words[0].lower() if words else ("" if token.type == "fence" else "indented")
            first = token.map[0] + (2 if token.type == "fence" else 1)
            snippets.append(Snippet(name, first, ALIASES.get(language, language), token.content, directives))
        if not token.type.startswith(("list_item", "bullet_list", "ordered_list")):
            directives = []
    return snippets


def pages():
    """Every page whose snippets are run: the README, what CONTRIBUTING says, examples, and all of docs/."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "examples/README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [str(path.relative_to(ROOT)) for path in found if path.exists()]
