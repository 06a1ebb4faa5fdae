#!/usr/bin/env python3
"""Checkpoints of other quantizers, from the model and the calibration text that ours have: what table.py compares.

    bench/quantization/peers.py --model FOLDER --out FOLDER [--calibration data/calibration.txt] [--group-size 64]
                                [--samples 64] [--tokens 512] [NAME ...]

NAMEs: llmcompressor-gptq, llmcompressor-awq, gptqmodel-gptq; all when none is given. Each becomes OUT/NAME, with the tool's own
defaults beside the bits, the group and the text. Needs what tools/golden/requirements-quantized.txt lists; no GPU. Then:

    deepinfer quantize --model FOLDER --method gptq --group-size 64 --out OUT/gptq
    bench/quantization/table.py --base FOLDER --text FILE gptq=OUT/gptq llmcompressor-gptq=OUT/llmcompressor-gptq ...
"""
import argparse
import os
import pathlib
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]


def samples(args):
    """The text in pieces of equal length, one after another, as `deepinfer quantize` cuts it."""
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    ids = tokenizer(args.calibration.read_text(encoding="utf-8"))["input_ids"]
    pieces = [ids[i:i + args.tokens] for i in range(0, len(ids) - args.tokens + 1, args.tokens)][:args.samples]
    print(f"{len(pieces)} samples of {args.tokens} tokens", flush=True)
    return pieces


def llmcompressor(args, modifiers, out):
    from datasets import Dataset
    from llmcompressor import oneshot
    ids = samples(args)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype="auto")
    oneshot(model=model, recipe=modifiers, shuffle_calibration_samples=False, num_calibration_samples=len(ids),
            max_seq_length=args.tokens, dataset=Dataset.from_dict({"input_ids": ids,
                                                                   "attention_mask": [[1] * len(i) for i in ids]}))
    model.save_pretrained(out, save_compressed=True)


def weights(args, symmetric):
    return {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "strategy": "group",
                                                           "group_size": args.group_size, "symmetric": symmetric}}}


def llmcompressor_gptq(args, out):
    from llmcompressor.modifiers.gptq import GPTQModifier
    llmcompressor(args, [GPTQModifier(ignore=["lm_head"], config_groups=weights(args, True))], out)


def llmcompressor_awq(args, out):
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    if not torch.cuda.is_available():
        torch.Tensor.pin_memory = lambda self, *_: self  # it pins what it keeps, which asks for a driver
    llmcompressor(args, [AWQModifier(duo_scaling="both"),
                         QuantizationModifier(ignore=["lm_head"], config_groups=weights(args, False))], out)


def gptqmodel_gptq(args, out):
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # on one core it asks for more workers than it has
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
    settings = QuantizeConfig(bits=4, group_size=args.group_size, offload_to_disk=False, device="cpu")
    model = GPTQModel.load(str(args.model), settings)
    model.quantize([{"input_ids": torch.tensor([i]), "attention_mask": torch.ones(1, len(i), dtype=torch.long)}
                    for i in samples(args)], backend=BACKEND.TORCH)
    model.save(str(out))


MAKERS = {"llmcompressor-gptq": llmcompressor_gptq, "llmcompressor-awq": llmcompressor_awq,
          "gptqmodel-gptq": gptqmodel_gptq}


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--model", required=True, type=pathlib.Path)
    p.add_argument("--out", required=True, type=pathlib.Path)
    p.add_argument("--calibration", type=pathlib.Path, default=ROOT / "data" / "calibration.txt")
    p.add_argument("--group-size", type=int, default=64)
    p.add_argument("--samples", type=int, default=64)
    p.add_argument("--tokens", type=int, default=512)
    p.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MAKERS))
    args = p.parse_args()
    unknown = [n for n in args.names if n not in MAKERS]
    if unknown:
        p.error(f"got {', '.join(unknown)}, expected {', '.join(MAKERS)}")
    for name in args.names or MAKERS:
        start = time.monotonic()
        MAKERS[name](args, args.out / name)
        AutoTokenizer.from_pretrained(args.model).save_pretrained(args.out / name)
        print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
