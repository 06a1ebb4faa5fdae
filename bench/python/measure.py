#!/usr/bin/env python3
"""What Python costs, beside the same engine without it.

  measure.py --deepinfer build/release/src/cli/deepinfer [--model M] [--rounds 5] [--save FILE]

- generate: 1,000 short prompts by generate(), and by `deepinfer bench`, in turns; both from the first submission to the
  last token, a load of random token ids that both make alike. Wanted: at most 3% slower.
- import: a process that imports the package, less one that does not. Wanted: 0.1 s.
- stream: processor time of the thread that reads a stream, for each token: of what has arrived already, and with the
  waits for each token, which are the system's (a wait that nobody ends is shown beside). Wanted: 5 microseconds.

The package is the one that this interpreter imports (PYTHONPATH=build/release/python, or installed)."""
import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time

SEQUENCES, PROMPT, DECODE = 1000, 16, 16


def bench(args):
    """Seconds of a whole run of the program, and how many tokens each sequence generated."""
    command = [args.deepinfer, "bench", "--prefill", "0", "--decode", str(DECODE), "--batch", str(SEQUENCES), "--batch-prompt",
               str(PROMPT), "--repeat", "1", "--max-num-seqs", str(SEQUENCES), "--max-queue", "65536", "--device", args.device]
    if args.model:
        command += ["--model", args.model]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    [result] = [r for r in json.loads(done.stdout)["results"] if r["test"].startswith("batch")]
    return result["seconds"][0], result["generated_tokens"]


def generate(engine, tokens, seed):
    from deepinfer import SamplingParams
    source = random.Random(seed)
    prompts = [[source.randrange(engine.vocab_size) for _ in range(PROMPT)] for _ in range(SEQUENCES)]
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    begin = time.perf_counter()
    outputs = engine.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - begin
    assert sum(len(o.token_ids) for o in outputs) == SEQUENCES * tokens
    return seconds


def process_seconds(code):
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - begin


def stream_seconds(engine, wait, tokens=400):
    """Of a token. `wait`: the reader waits for each, else they are all there when it begins."""
    from deepinfer import SamplingParams
    stream = engine.stream("Once upon a time", SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True))
    next(stream)
    while not wait and engine.stats()["running"]:
        time.sleep(0.01)
    begin = time.thread_time()
    count = sum(len(piece.token_ids) for piece in stream)
    return (time.thread_time() - begin) / count


def sleep_seconds(times=200):
    begin = time.thread_time()
    for _ in range(times):
        time.sleep(0.001)
    return (time.thread_time() - begin) / times


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deepinfer", required=True)
    parser.add_argument("--model")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save")
    args = parser.parse_args()
    report = {"load_average": os.getloadavg(), "cores": os.cpu_count()}

    imports = [process_seconds("import deepinfer") - process_seconds("pass") for _ in range(max(args.rounds, 5))]
    report["import_seconds"] = imports
    print(f"import            {1e3 * statistics.median(imports):8.1f} ms      (wanted: 100)")

    from deepinfer import InferenceEngine
    settings = {"model": args.model} if args.model else {}
    with InferenceEngine(device=args.device, max_num_seqs=SEQUENCES, **settings) as engine:
        streams = [stream_seconds(engine, False) for _ in range(args.rounds)]
        waiting = [stream_seconds(engine, True) for _ in range(args.rounds)]
    sleeps = [sleep_seconds() for _ in range(args.rounds)]
    report |= {"stream_seconds": streams, "stream_waiting_seconds": waiting, "sleep_seconds": sleeps}
    print(f"a streamed token  {1e6 * statistics.median(streams):8.2f} us      (wanted: 5); {1e6 * statistics.median(waiting):.1f} us with its "
          f"wait, a wait alone {1e6 * statistics.median(sleeps):.1f} us")

    # Not beside an engine that holds memory and threads: each has the machine for itself.
    program, python = [], []
    for number in range(args.rounds):
        seconds, tokens = bench(args)
        program.append(seconds)
        with InferenceEngine(device=args.device, max_num_seqs=SEQUENCES, **settings) as engine:
            generate(engine, tokens, 0)  # touches the memory, as bench does
            python.append(generate(engine, tokens, number + 1))
        print(f"round {number + 1}: bench {program[-1]:.3f} s, generate {python[-1]:.3f} s", flush=True)
    ratio = statistics.median(p / b for p, b in zip(python, program))
    report |= {"bench_seconds": program, "generate_seconds": python, "ratio": ratio, "tokens": SEQUENCES * tokens}
    print(f"generate          {100 * (ratio - 1):+8.1f} %       (wanted: at most +3), medians {statistics.median(python):.3f} s "
          f"and {statistics.median(program):.3f} s for {SEQUENCES} prompts, {SEQUENCES * tokens} tokens")
    if args.save:
        with open(args.save, "w") as file:
            json.dump(report, file, indent=1)


if __name__ == "__main__":
    main()
