"""docs/gpu_optimization.md keeps the headings of the older guide and tells each correction; pages are what programs print."""
import json
import re
import subprocess

import markdown_it
import pytest
import yaml

import llama_configs
import snippets

GUIDE = snippets.ROOT / "docs/gpu_optimization.md"
OLDER = "tests/docs/older_guide.md"
SECTION = "What differs from the older guide and why"


def headings(path):
    """(level, text) outside of code."""
    found, code = [], False
    for line in path.read_text(encoding="utf-8").splitlines():
        code ^= line.lstrip().startswith("```")
        if line.startswith("#") and not code:
            marks, _, text = line.partition(" ")
            found.append((len(marks), text))
    return found


def section(path, title):
    text = path.read_text(encoding="utf-8")
    assert f"\n## {title}\n" in text
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_headings_are_the_older_guides_in_its_order():
    ours = headings(GUIDE)
    assert (2, SECTION) in ours
    assert [heading for heading in ours if heading != (2, SECTION)] == headings(snippets.ROOT / OLDER)


@pytest.mark.parametrize("snippet", [pytest.param(s, id=s.id) for s in snippets.parse(OLDER)])
def test_what_does_not_work_as_written_is_told(snippet):
    said = snippet.texts("corrected")
    if snippet.text("fails"):
        assert said, f"{snippet.id} fails and nothing says why"
    for words in said:
        assert words in section(GUIDE, SECTION), f"{words!r} is not in the section {SECTION!r} of {GUIDE}"


def presets():
    """(line of the page, file, snippet) of each YAML snippet whose paragraph before names a file of configs/."""
    paragraph = ""
    for token in markdown_it.MarkdownIt("commonmark").parse(GUIDE.read_text(encoding="utf-8")):
        if token.type == "inline":
            paragraph = token.content
        found = re.search(r"`(configs/\w+\.yaml)`", paragraph)
        if token.type == "fence" and token.info == "yaml" and found:
            yield pytest.param(found[1], token.content, id=found[1])


@pytest.mark.parametrize("file, snippet", list(presets()))
def test_settings_that_the_guide_quotes_are_those_of_the_file(file, snippet):
    there = yaml.safe_load((snippets.ROOT / file).read_text(encoding="utf-8"))
    for name, settings in yaml.safe_load(snippet).items():
        assert settings.items() <= there[name].items(), f"{name} of {file}"


@pytest.mark.parametrize("card", ["RTX 4090", "RTX 5090"])
@pytest.mark.parametrize("weights", ["bf16", "fp8", "int4"])
def test_what_fits_is_what_the_program_says(deepinfer, tmp_path, card, weights):
    rows = [line.split("|")[1:-1] for line in GUIDE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    start = next(i for i, row in enumerate(rows) if "Sequences of 2,048 tokens" in row[0])
    column = [cell.strip() for cell in rows[start]].index(card)
    said = next(row[column] for row in rows[start:] if row[0].strip() == weights)
    (tmp_path / "config.json").write_text(llama_configs.config("8B"))
    done = subprocess.run([deepinfer, "estimate", "--model", tmp_path, "--gpu", card, "--json", "--quantization",
                           "none" if weights == "bf16" else weights], text=True, capture_output=True, timeout=30)
    assert done.returncode == 0, done
    assert json.loads(done.stdout)["sequences"][0] == {"context": 2048, "sequences": int(said)}


def test_the_estimate_on_the_page_of_tuning_is_what_the_program_prints(deepinfer, tmp_path):
    shown = next(s.code for s in snippets.parse("docs/TUNING.md") if s.code.startswith("device "))
    (tmp_path / "config.json").write_text(llama_configs.config("8B"))
    printed = subprocess.run([deepinfer, "estimate", "--model", tmp_path, "--gpu", "RTX 5090"], text=True, capture_output=True,
                             timeout=30).stdout
    assert shown in printed


def test_the_splits_on_the_page_of_tuning_are_what_the_program_prints(deepinfer, tmp_path):
    shown = next(s.code for s in snippets.parse("docs/TUNING.md") if s.code.startswith("splits, "))
    (tmp_path / "config.json").write_text(llama_configs.config("70B"))
    printed = subprocess.run([deepinfer, "estimate", "--model", tmp_path, "--gpu", "RTX 5090", "--count", "4", "--quantization",
                              "int4"], text=True, capture_output=True, timeout=30).stdout
    assert shown in printed


@pytest.mark.parametrize("model, quantization, card, split", [
    ("8B", "fp8", "RTX 5090", "DP 8"), ("70B", "int4", "RTX 5090", "TP 2, DP 4"), ("70B", "none", "H100 80GB", "TP 4, DP 2")])
def test_what_a_thousand_cards_serve_is_what_the_program_predicts(deepinfer, tmp_path, model, quantization, card, split):
    (tmp_path / "config.json").write_text(llama_configs.config(model))
    printed = subprocess.run([deepinfer, "estimate", "--model", tmp_path, "--gpu", card, "--count", "8", "--quantization",
                              quantization, "--json"], text=True, capture_output=True, timeout=30).stdout
    best = json.loads(printed)["splits"][0]
    assert best["split"] == split
    text = (snippets.ROOT / "docs/scale.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    heading = next(row for row in rows if row[-1] == "tokens of answers")
    row = next(row for row in rows[rows.index(heading):] if row[0].startswith(model) and card.split()[-1].removesuffix("GB") in row[0])
    requests = 125 * best["requests_per_second"]
    assert float(row[-2].replace(",", "")) == pytest.approx(requests, rel=0.01)
    assert float(row[-1].replace(",", "")) == pytest.approx(256 * requests, rel=0.01)


def test_the_page_of_all_settings_is_what_the_program_prints(deepinfer):
    printed = subprocess.run([deepinfer, "config", "--markdown"], capture_output=True, text=True, check=True, timeout=30).stdout
    assert printed == (snippets.ROOT / "docs/CONFIG.md").read_text(encoding="utf-8"), \
        "run: deepinfer config --markdown > docs/CONFIG.md"
