#!/usr/bin/env python3
"""Writes data/calibration.txt, the text on which `deepinfer quantize` observes a model's inputs.

make_calibration.py [OUT]

All of it was written for this project: data/calibration/ (prose, dialogues, 21 languages, tables, logs, code in many
languages), this repository's documentation, and some of its sources. It is cut into pieces of about 1,500 bytes that
alternate, so that every stretch of the text has some of each. Run it by hand: a new text means new checkpoints.
"""
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PIECE = 1500
SOURCES = {  # kind: files, and how many bytes of them at most
    "prose": (["data/calibration/prose.txt"], 40_000),
    "dialogue": (["data/calibration/dialogue.txt"], 40_000),
    "languages": (["data/calibration/languages.txt"], 40_000),
    "structured": (["data/calibration/structured.txt"], 40_000),
    "docs": (["README.md", "docs/ARCHITECTURE.md", "docs/API.md", "docs/CONFIG.md", "docs/SECURITY.md",
              "docs/performance/cpu.md"], 70_000),
    "code": (["src/engine/scheduler.cpp", "src/text/bpe.cpp", "tools/check_includes.py", "bench/load.py"], 36_000),
}


def pieces(text):
    """Paragraphs, joined to about PIECE bytes."""
    piece = ""
    for paragraph in text.split("\n\n"):
        if not paragraph.strip():
            continue
        piece += paragraph + "\n\n"
        if len(piece.encode()) >= PIECE:
            yield piece
            piece = ""
    if piece:
        yield piece


def main():
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "data/calibration.txt"
    rows = []
    for files, limit in SOURCES.values():
        text = "\n\n".join((ROOT / name).read_text(encoding="utf-8") for name in files)
        rows.append(list(pieces(text.encode()[:limit].decode(errors="ignore"))))
    # The short kinds are spread over the whole length, not used up at its beginning.
    spread = [((i + 0.5) / len(row), kind, piece) for kind, row in enumerate(rows) for i, piece in enumerate(row)]
    text = "".join(piece for _, _, piece in sorted(spread, key=lambda item: item[:2]))
    out.write_text(text, encoding="utf-8")
    print(f"{out}: {len(text.encode())} bytes in {sum(map(len, rows))} pieces")


if __name__ == "__main__":
    main()
