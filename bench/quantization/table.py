#!/usr/bin/env python3
"""What each quantization costs and gives, against the same model without: bytes, speed, divergence.

    bench/quantization/table.py --base FOLDER --text FILE [--rounds 3] [--build build/release] NAME=MODEL[,SETTING=VALUE...] ...

Each NAME is a row: a checkpoint that was quantized (NAME=FOLDER, as `deepinfer quantize` or another tool made it, or a GGUF
file), or a way to load the base (NAME=FOLDER,quantization=int4). Speeds are medians of interleaved runs of
`deepinfer bench`, as ratios to the base; divergence is `kld MODEL BASE --text FILE` with both on this machine. Prints a
Markdown table on standard error and JSON on standard output.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

TESTS = ("decode", "batch_8", "prefill_512")


class Row:
    def __init__(self, text):
        self.name, _, rest = text.partition("=")
        self.model, *settings = rest.split(",")
        if not self.model:
            sys.exit(f"{text}: expected NAME=MODEL[,SETTING=VALUE...]")
        self.flags = [f for s in settings for f in ("--" + s.split("=")[0].replace("_", "-"), s.split("=")[1])]
        self.settings = settings
        self.speed, self.memory = {}, []

    def disk(self):
        path = pathlib.Path(self.model)
        files = path.glob("*.safetensors") if path.is_dir() else [path]
        return sum(f.stat().st_size for f in files)


def run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} failed with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def measure_speed(row, args):
    out = json.loads(run([f"{args.build}/src/cli/deepinfer", "bench", "--model", row.model, *row.flags, "--batch", "8",
                          "--repeat", "1", "--log-level", "error", "--threads", str(args.threads)]))
    for result in out["results"]:
        for test in TESTS:
            if result["test"].startswith(test):
                row.speed.setdefault(test, []).append(result["tokens_per_second"])
    row.memory.append(out["weight_bytes"])


def measure_quality(row, args):
    settings = [f for s in row.settings for f in ("--" + s.split("=")[0], s.split("=")[1])]
    return json.loads(run([f"{args.build}/bench/kld", row.model, args.base, "--text", args.text, "--threads",
                           str(args.threads), "--chunks", str(args.chunks), *settings]))


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--base", required=True, help="the model without quantization")
    p.add_argument("--text", required=True, help="what divergence is measured on; not what calibrated the models")
    p.add_argument("--build", default="build/release")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--chunks", type=int, default=24)
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("rows", nargs="+", metavar="NAME=MODEL[,SETTING=VALUE]")
    args = p.parse_args()
    rows = [Row(f"none={args.base}")] + [Row(r) for r in args.rows]
    for r in range(args.rounds):
        for row in rows[r % len(rows):] + rows[:r % len(rows)]:
            measure_speed(row, args)
        print(f"speed: round {r + 1}/{args.rounds}", file=sys.stderr)
    base, out = rows[0], []
    for row in rows:
        quality = measure_quality(row, args)
        out.append({"name": row.name, "disk_bytes": row.disk(), "weight_bytes": row.memory[-1],
                    "tokens_per_second": {t: statistics.median(v) for t, v in row.speed.items()},
                    "spread": {t: (max(v) - min(v)) / statistics.median(v) for t, v in row.speed.items()}, **quality})
        print(f"quality: {row.name}", file=sys.stderr)
    print("| | disk MB | memory MB | of none | decode | batch 8 | prefill 512 | perplexity | mean KL | same top |\n"
          "|---|---|---|---|---|---|---|---|---|---|", file=sys.stderr)
    for row, o in zip(rows, out):
        ratios = [o["tokens_per_second"][t] / out[0]["tokens_per_second"][t] for t in TESTS]
        print(f"| {o['name']} | {o['disk_bytes'] / 1e6:.1f} | {o['weight_bytes'] / 1e6:.1f} | "
              f"{o['weight_bytes'] / out[0]['weight_bytes']:.0%} | " + " | ".join(f"{x:.2f}x" for x in ratios)
              + f" | {o['perplexity']:.3f} | {o['mean_kld']:.5f} | {o['same_top']:.1%} |", file=sys.stderr)
    print(json.dumps({"base": base.model, "rounds": args.rounds, "rows": out}, indent=1))


if __name__ == "__main__":
    main()
