#!/usr/bin/env python3
"""Compares what `deepinfer estimate --splits` predicts for this CPU with what `deepinfer bench` measures.

    bench/cpu/splits.py --model FILE [--model ...] [--deepinfer PATH] [--threads 2] [--rounds 3]

One rank of all threads, ranks of one thread each (TP, PP), and replicas of one thread each (DP: as many programs at the
same time, each on a core of its own). Predictions come from layers, which the program measures in between. Prints a
table on standard error and JSON on standard output: measured, predicted, and the second by the first. Medians of the rounds.

On a machine that others use the clock tells little. --by processor: the processor time of a test (that of a run with three
times its work less that of a run with its work), by the ranks that share it. Waiting for others spins for a while, so
ranks that wait for a processor look slower than they are.
"""
import argparse
import json
import os
import resource
import statistics
import subprocess
import sys

PREFILL, DECODE, BATCH, BATCH_PROMPT = 512, 64, 8, 64


def program(args, *words, cores=None):
    """Started, its output read when it is asked for."""
    command = [args.deepinfer, *map(str, words), "--device", "cpu", "--log-level", "error"]
    if cores:
        command = ["taskset", "-c", cores, *command]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def answer(process):
    out, err = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(process.args)}: {err.strip()}")
    return json.loads(out)


def processor_seconds(args, words, ranks, cores):
    """Of `ranks` programs at the same time, each of them; of one program with several ranks, a rank."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for process in [program(args, *words, cores=str(core) if core is not None else None) for core in cores]:
        answer(process)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / ranks


def by_processor(args, bench, ranks, cores):
    """Tokens a second of each test of one rank."""
    def rate(tokens, flags):
        times = [processor_seconds(args, [*bench, *flags(n)], ranks, cores) for n in (1, 3)]
        # Each test is run once more than it is told to; 1 and 3 are repetitions.
        return 2 * tokens / max(times[1] - times[0], 1e-9)

    none = {"--prefill": 0, "--decode": 0, "--batch": 0, "--batch-prompt": BATCH_PROMPT}

    def flags(n, **tests):
        chosen = none | {f"--{name}": value for name, value in tests.items()} | {"--repeat": n}
        return [word for pair in chosen.items() for word in pair]

    prompts = rate(BATCH * BATCH_PROMPT, lambda n: flags(n, prefill=BATCH * BATCH_PROMPT))
    both = rate(BATCH * DECODE, lambda n: flags(n, batch=BATCH, decode=DECODE) + ["--prefill", 0])
    one = rate(DECODE, lambda n: flags(n, decode=DECODE))
    # A batch's test computes its prompts, and one answer alone is in it too.
    batch = 1 / max(1 / both - BATCH_PROMPT / DECODE / prompts - 1 / BATCH / one, 1e-9)
    return {"prefill": rate(PREFILL, lambda n: flags(n, prefill=PREFILL)), "decode": one, "batch": batch}


def by_clock(args, bench, cores):
    tests = ["--prefill", PREFILL, "--decode", DECODE, "--batch", BATCH, "--batch-prompt", BATCH_PROMPT, "--repeat", args.repeat]
    running = [program(args, *bench, *tests, cores=str(core) if core is not None else None) for core in cores]
    results = [{r["test"]: r["tokens_per_second"] for r in answer(p)["results"]} for p in running]
    return {"prefill": sum(r[f"prefill_{PREFILL}"] for r in results), "decode": statistics.mean(r[f"decode_{DECODE}"] for r in results),
            "batch": sum(r[f"batch_{BATCH}"] for r in results)}


def measure(args, model, split):
    replicas, tensor, stages = (split[f"{name}_parallel_size"] for name in ("data", "tensor", "pipeline"))
    cores = sorted(os.sched_getaffinity(0))[:replicas] if replicas > 1 else [None]
    sizes = [] if replicas > 1 else [f"--tensor-parallel-size={tensor}", f"--pipeline-parallel-size={stages}"]
    bench = ["bench", "--model", model, "--threads", 1 if replicas > 1 else args.threads, *sizes]
    if args.by == "clock":
        return by_clock(args, bench, cores)
    out = by_processor(args, bench, replicas if replicas > 1 else args.threads, cores)
    return {test: value * (replicas if test != "decode" else 1) for test, value in out.items()}


def predict(args, model):
    """By split: the same figures."""
    def ask(prompt, tokens, sequences):
        words = ["estimate", "--model", model, "--threads", args.threads, "--splits", "--json", "--prompt-tokens", prompt,
                 "--answer-tokens", tokens, "--sequences", sequences]
        return {s["split"]: s for s in answer(program(args, *words))["splits"]}

    long, one, many = ask(PREFILL, 1, 1), ask(1, DECODE, 1), ask(BATCH_PROMPT, DECODE, BATCH)
    out = {}
    for name, s in long.items():
        # Replicas that all decode one answer each share the machine: no answer is alone.
        alone = s["data_parallel_size"] == 1
        decode = (one[name]["stream_tokens_per_second"] if alone else
                  one[name]["decode_tokens_per_second"] / s["data_parallel_size"])
        prefill = (PREFILL / s["first_token_seconds"] if alone else s["prefill_tokens_per_second"])
        out[name] = {"split": s, "prefill": prefill, "decode": decode, "batch": many[name]["decode_tokens_per_second"]}
    return out


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--model", action="append", required=True)
    p.add_argument("--deepinfer", default="build/release/src/cli/deepinfer")
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--repeat", type=int, default=3)
    p.add_argument("--by", choices=["clock", "processor"], default="clock")
    p.add_argument("--skip", action="append", default=[], help="splits to leave out, as in 'PP 2'")
    args = p.parse_args()
    rows = []
    for model in args.model:
        measured, predicted = {}, {}
        for _ in range(args.rounds):
            for name, figures in predict(args, model).items():
                if name in args.skip:
                    continue
                predicted.setdefault(name, []).append(figures)
                measured.setdefault(name, []).append(measure(args, model, figures["split"]))
        for name in measured:
            for test in ("prefill", "decode", "batch"):
                seen = statistics.median(m[test] for m in measured[name])
                said = statistics.median(f[test] for f in predicted[name])
                rows.append({"model": os.path.basename(model.rstrip("/")), "split": name, "test": test,
                             "measured": round(seen, 1), "predicted": round(said, 1), "ratio": round(said / seen, 3)})
                print("{model:<40} {split:<11} {test:<8} measured {measured:>9} predicted {predicted:>9}  {ratio:.2f}".format(
                    **rows[-1]), file=sys.stderr)
    print(json.dumps({"threads": args.threads, "rounds": args.rounds, "by": args.by, "results": rows}))


if __name__ == "__main__":
    main()
