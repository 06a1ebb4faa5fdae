#!/usr/bin/env python3
"""Joins what verify.sh measured: summarize.py PARTS OUT COMMIT

Reads PARTS/*.status and the JSON files beside them, writes OUT/<gpu>-<commit>.json and .md, prints the Markdown.
What did not run or was cut off stands in both as that.
"""
import json
import pathlib
import re
import sys

# name in the bench, title, PyTorch's step, least fraction of the floor
TESTS = [
    ("batch_1", "decode, 1 sequence, 1k context", "decode_1", 0.75),
    ("batch_64", "decode, 64 sequences, 1k context", "decode_64", 0.60),
    ("prefill_1024", "prefill of 1k tokens", "prefill_1024", 0.65),
    ("prefill_8192", "prefill of 8k tokens", "prefill_8192", 0.65),
]
MOST_IDLE = 20.0  # microseconds between graphs
MOST_START = 5.0  # seconds to the first token, from the second start on


def read(path):
    """The last line of a file that is JSON, or the file, or None."""
    try:
        text = path.read_text()
    except OSError:
        return None
    for candidate in (text, *reversed(text.strip().splitlines())):
        try:
            return json.loads(candidate)
        except ValueError:
            continue
    return None


def lines_of(path):
    """A JSON object a line."""
    try:
        return [json.loads(line) for line in path.read_text().splitlines() if line.startswith("{")]
    except (OSError, ValueError):
        return None


def tests_of(path):
    """Counts of a GoogleTest report."""
    report = read(path)
    if not report or "tests" not in report:
        return None
    skipped = sum(case.get("result") == "SKIPPED" for suite in report["testsuites"] for case in suite["testsuite"])
    return {"tests": report["tests"], "failures": report["failures"] + report.get("errors", 0), "skipped": skipped}


def verdict(value, good):
    return "—" if value is None else f"{value} {'✓' if good else '✗'}"


def gather(parts):
    out = {"steps": {p.stem: read(p) for p in sorted(parts.glob("*.status"))}}
    out["ops"] = {p.stem.removeprefix("ops-"): tests_of(p.with_suffix(".json")) for p in sorted(parts.glob("ops-*.status"))}
    out["gpu_info"] = read(parts / "gpu-info.json")
    out["compare"] = read(parts / "model-compare.out")
    out["torch"] = read(parts / "bench-torch.json")
    out["bench"] = read(parts / "bench-8b.out")
    out["start"] = {n: read(parts / f"bench-start-{n}.out") for n in ("first", "second")}
    out["gaps"] = read(parts / "bench-gaps.json")
    out["linear"] = {n: lines_of(parts / f"bench-linear-{n}.out") for n in ("bf16", "q4_0", "f8", "f8_blocks")}
    out["default_model"] = read(parts / "bench-default.out")
    return out


def speed_rows(out):
    bench = {r["test"]: r for r in (out["bench"] or {}).get("results", [])}
    torch = {r["test"]: r["milliseconds"] for r in (out["torch"] or {}).get("step", [])}
    yield "| | ms | tok/s | of the floor | goal | PyTorch's kernels alone, ms |"
    yield "|---|---|---|---|---|---|"
    for name, title, step, goal in TESTS:
        r = bench.get(name)
        own = f"{torch[step]:.2f}" if step in torch else "—"
        if r is None:
            yield f"| {title} | not measured | | | {goal:.0%} | {own} |"
            continue
        fraction = r.get("fraction_of_floor")
        shown = verdict(None if fraction is None else f"{fraction:.0%}", fraction is not None and fraction >= goal)
        yield f"| {title} | {r['milliseconds']:.2f} | {r['tokens_per_second']:.0f} | {shown} | {goal:.0%} | {own} |"
    gaps = out["gaps"]
    idle = gaps and gaps["gaps"] and gaps["median_microseconds"]
    shown = verdict(f"{idle:.1f} us (p95 {gaps['p95_microseconds']:.1f})" if idle else None, idle and idle <= MOST_IDLE)
    yield f"| device idle between graphs, median | {shown} | | | {MOST_IDLE:.0f} us | |"
    for which in ("first", "second"):
        start = (out["start"][which] or {}).get("first_token_seconds")
        good = start is not None and (which == "first" or start <= MOST_START)
        goal = f"{MOST_START:.0f} s" if which == "second" else ""
        shown = verdict(None if start is None else f"{start:.2f} s", good)
        yield f"| {which} start to first token, 8B in the page cache | {shown} | | | {goal} | |"


def markdown(out, commit):
    torch = out["torch"] or {}
    yield f"# {torch.get('gpu') or gpu_name(out)}, commit {commit}"
    yield ""
    if torch:
        yield (f"PyTorch {torch['torch']} in the same run: copy {torch['copy_gb_per_second']:.0f} GB/s, matrix products "
               f"{torch['matmul_tflop_per_second']:.0f} TFLOP/s (bf16, 8192³).")
    floor = (out["bench"] or {}).get("floor")
    if floor:
        yield (f"The floors' rates, measured by `deepinfer bench` itself: copy {floor['copy_gb_per_second']:.0f} GB/s, matrix "
               f"products {floor['matmul_tflop_per_second']:.0f} TFLOP/s. Random weights in the shape of Llama-3.1-8B, bf16, "
               "made on the card.")
    if torch or floor:
        yield ""
    yield from speed_rows(out)
    yield ""
    yield "| kernel tests on the card | tests | failed | skipped | memcheck | racecheck |"
    yield "|---|---|---|---|---|---|"
    for name, counts in out["ops"].items():
        tools = []
        for tool in ("memcheck", "racecheck"):
            step = out["steps"].get(f"sanitizer-{tool}-{name}")
            tools.append("not run" if step is None else {0: "clean", 124: "cut off", 137: "cut off"}.get(step["status"], "FAILED"))
        counts = counts or {"tests": "no report", "failures": "?", "skipped": "?"}
        yield f"| {name} | {counts['tests']} | {counts['failures']} | {counts['skipped']} | {tools[0]} | {tools[1]} |"
    yield ""
    c = out["compare"]
    if c:
        yield (f"Default model beside itself in F32: {c['positions']} positions, mean divergence {c['divergence']:.2g} nats "
               f"(rounding predicts {c['noise_divergence']:.2g}; the CPU backend: {c['cpu_divergence']:.2g}), log-probabilities off "
               f"by {c['error']['value']:.2f} of what rounding does (at most {c['error']['most']:.2f}), the worst position by "
               f"{c['worst_error']['value']:.2f} (at most {c['worst_error']['most']:.2f}); {c['equal_tokens']} of "
               f"{c['continued_tokens']} greedy tokens are F32's, the others as near as rounding explains: "
               f"{'good' if c['good'] else 'NOT good'}.")
    else:
        yield "Default model beside itself in F32: not compared."
    yield ""
    wrong = [f"{n} ({'cut off' if s['status'] in (124, 137) else s['status']})" for n, s in out["steps"].items()
             if s and s["status"]]
    yield f"Steps that failed: {', '.join(wrong) or 'none'}. Seconds in all: {sum(s['seconds'] for s in out['steps'].values() if s):.0f}."


def gpu_name(out):
    if out["torch"]:
        return out["torch"]["gpu"]
    gpus = (out["gpu_info"] or {}).get("gpus")
    return gpus[0]["name"] if gpus else "no-gpu"


def main():
    parts, folder, commit = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
    out = gather(parts)
    out["commit"] = commit
    name = re.sub(r"[^a-z0-9]+", "-", gpu_name(out).lower()).strip("-")
    text = "\n".join(markdown(out, commit)) + "\n"
    (folder / f"{name}-{commit}.json").write_text(json.dumps(out, indent=1) + "\n")
    (folder / f"{name}-{commit}.md").write_text(text)
    print(text)


main()
