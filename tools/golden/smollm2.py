#!/usr/bin/env python3
"""Golden data of the default model, by transformers in F32: greedy answers of its bf16 twin, and the quality reference.

    tools/golden/smollm2.py MODEL.gguf [--check]       (needs torch, transformers, tokenizers, gguf)

tests/golden/smollm2/greedy.json    {"cases": [{"prompt": [ids], "output": [64 ids], "gap": smallest top-1/top-2 gap}]}
tests/golden/smollm2/quality.json   the dequantized F32 model on chunks of 512 tokens of a fixed text (licenses that
    Debian ships in /usr/share/common-licenses): tokens' SHA-256, perplexity over the second halves, as llama.cpp counts.
tests/golden/smollm2/quality.bin    for every 16th position of those: the reference's 32 most likely tokens and their
    log-probabilities: i32 chunk, i32 position, i32 ids[32], f32 logprobs[32].
"""
import hashlib
import json
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

OUT = Path(__file__).resolve().parents[2] / "tests/golden/smollm2"
TEXTS = ["GPL-3", "GFDL-1.3", "Apache-2.0", "GPL-2", "MPL-2.0"]
CHUNK, EVERY, TOP, STEPS = 512, 16, 32, 64
PROMPTS = [
    "The capital of France is", "Once upon a time, in a small village by the sea,", "def fibonacci(n):\n    ",
    "Water boils at a temperature of", "1, 2, 3, 4, 5,", "Die Hauptstadt von Deutschland ist", "SELECT name FROM users WHERE",
    "The three laws of motion were formulated by", "To make a good cup of coffee, you need", "In 1969, humans first",
    "#include <stdio.h>\n\nint main(void) {\n", "The opposite of hot is", "A list of colors:\n- red\n- blue\n-",
    "Photosynthesis is the process by which", "El perro corre por", "import numpy as np\n\nx = np.",
    "Q: What is the largest planet?\nA:", "<html>\n<head>\n<title>", "The quick brown fox", "Dear Sir or Madam,\n\nI am writing to",
]


@torch.no_grad()
def greedy(model, ids):
    output, gap, step, cache = [], float("inf"), torch.tensor([ids]), None
    for _ in range(STEPS):
        answer = model(step, past_key_values=cache, use_cache=True)
        cache, two = answer.past_key_values, answer.logits[0, -1].topk(2)
        gap = min(gap, float(two.values[0] - two.values[1]))
        output.append(int(two.indices[0]))
        step = two.indices[None, :1]
    return output, gap


@torch.no_grad()
def quality(model, ids):
    nll, count, rows = 0.0, 0, []
    for c in range(len(ids) // CHUNK):
        chunk = torch.tensor(ids[c * CHUNK:(c + 1) * CHUNK])
        logprobs = model(chunk[None]).logits[0].double().log_softmax(-1)
        for i in range(CHUNK // 2, CHUNK - 1):
            nll -= float(logprobs[i, chunk[i + 1]])
            count += 1
            if i % EVERY == 0:
                top = logprobs[i].topk(TOP)
                rows.append(struct.pack(f"<2i{TOP}i{TOP}f", c, i, *top.indices.tolist(), *top.values.tolist()))
        print(f"\rchunk {c + 1}/{len(ids) // CHUNK}", end="", file=sys.stderr)
    return float(torch.tensor(nll / count).exp()), count, b"".join(rows)


def load(folder, **kwargs):
    # Read back from files: a model that is converted in memory also rounds its RoPE frequencies.
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **kwargs).eval()


def make(gguf, twin):
    subprocess.run([sys.executable, OUT.parents[2] / "tools/make_twin.py", gguf, twin], check=True)
    # transformers converts a GGUF's tokenizer without SmolLM's splitting of digits; the twin's has it.
    tokenizer = Tokenizer.from_file(f"{twin}/tokenizer.json")

    def encode(text):
        return tokenizer.encode(text, add_special_tokens=False).ids

    model = load(twin)
    cases = []
    for prompt in PROMPTS:
        output, gap = greedy(model, encode(prompt))
        cases.append({"text": prompt, "prompt": encode(prompt), "output": output, "gap": round(gap, 6)})
    ids = encode("".join(Path("/usr/share/common-licenses", t).read_text() for t in TEXTS))
    ids = ids[:len(ids) // CHUNK * CHUNK]
    perplexity, count, rows = quality(load(str(Path(gguf).parent), gguf_file=Path(gguf).name), ids)
    meta = {"texts": TEXTS, "chunk": CHUNK, "tokens": len(ids), "positions": count, "top": TOP, "perplexity": perplexity,
            "tokens_sha256": hashlib.sha256(struct.pack(f"<{len(ids)}i", *ids)).hexdigest()}
    return {"greedy.json": (json.dumps({"cases": cases}, indent=1) + "\n").encode(),
            "quality.json": (json.dumps(meta, indent=1) + "\n").encode(), "quality.bin": rows}


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    check = "--check" in sys.argv
    with tempfile.TemporaryDirectory() as twin:
        files = make(sys.argv[1], twin)
    OUT.mkdir(parents=True, exist_ok=True)
    same = True
    for name, data in files.items():
        if not check:
            (OUT / name).write_bytes(data)
        elif name == "greedy.json":
            same &= [c["output"] for c in json.loads(data)["cases"]] == [
                c["output"] for c in json.loads((OUT / name).read_text())["cases"]]
        elif name == "quality.json":
            new, old = json.loads(data), json.loads((OUT / name).read_text())
            same &= abs(new.pop("perplexity") / old.pop("perplexity") - 1) < 1e-5 and new == old
    if not same:
        sys.exit("smollm2: the stored files differ from new ones")


if __name__ == "__main__":
    main()
