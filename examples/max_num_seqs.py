#!/usr/bin/env python3
"""Measures the engine's throughput for several values of gpu.max_num_seqs and draws it. Needs matplotlib for the drawing.

    max_num_seqs.py [--model M] [--config FILE] [--values 128,256,384,512] [--prompts N] [--plot FILE.png]

Each value gets an engine of its own and the same prompts; all of them are there from the beginning, as in a batch job. More
sequences at a time share each reading of the weights, until the arithmetic or the KV cache is the limit; each of them then
waits longer for its tokens. `deepinfer tune` looks for the best settings by itself.
"""
import argparse
import statistics
import sys
import time

from deepinfer import Config, DeepInferError, InferenceEngine, SamplingParams


def measure(config, prompts, params):
    """Tokens a second in all, and the median seconds between the tokens of an answer."""
    with InferenceEngine(config) as engine:
        engine.generate(prompts[:2], params, use_tqdm=False)  # what only the first step needs
        begin = time.perf_counter()
        outputs = engine.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - begin
    between = [(m.total_time - m.time_to_first_token) / (m.completion_tokens - 1)
               for m in (output.metrics for output in outputs) if m.completion_tokens > 1]
    return sum(len(output.token_ids) for output in outputs) / seconds, statistics.median(between)


def draw(rows, path):
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    figure, left = pyplot.subplots(figsize=(7, 4.2), constrained_layout=True)
    right = left.twinx()
    seqs = [row[0] for row in rows]
    (speed,) = left.plot(seqs, [row[1] for row in rows], "o-", color="tab:blue", label="tokens a second")
    (wait,) = right.plot(seqs, [1000 * row[2] for row in rows], "s--", color="tab:orange", label="between tokens, ms (median)")
    left.set_xscale("log", base=2)
    left.set_xticks(seqs, [str(s) for s in seqs])
    left.minorticks_off()
    left.set_xlabel("max_num_seqs")
    left.set_ylabel("tokens a second")
    right.set_ylabel("ms between tokens")
    left.set_ylim(bottom=0)
    right.set_ylim(bottom=0)
    left.legend(handles=[speed, wait], loc="lower right")
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="left out: the default model")
    parser.add_argument("--config", help="a YAML file of settings")
    parser.add_argument("--values", default="128,256,384,512", help="[%(default)s]")
    parser.add_argument("--prompts", type=int, default=1024, help="[%(default)s]")
    parser.add_argument("--max-tokens", type=int, default=64, help="of each answer [%(default)s]")
    parser.add_argument("--max-model-len", type=int, default=1024, help="[%(default)s]")
    parser.add_argument("--plot", help="a file for the drawing: .png, .svg, .pdf")
    options = parser.parse_args()
    prompts = [f"Write a short text about the number {i}." for i in range(options.prompts)]
    params = SamplingParams(max_tokens=options.max_tokens, ignore_eos=True, temperature=0)
    rows = []
    print("max_num_seqs  tokens/s  ms between tokens")
    for seqs in map(int, options.values.split(",")):
        config = Config.from_yaml(options.config) if options.config else Config()
        if options.model:
            config.model.name = options.model
        config.model.max_model_len = options.max_model_len
        config.gpu.max_num_seqs = seqs
        rows.append((seqs, *measure(config, prompts, params)))
        print(f"{seqs:12}  {rows[-1][1]:8.0f}  {1000 * rows[-1][2]:17.1f}", flush=True)
    if options.plot:
        draw(rows, options.plot)
        print(options.plot)


if __name__ == "__main__":
    try:
        main()
    except DeepInferError as e:
        sys.exit(f"max_num_seqs.py: {e}")
