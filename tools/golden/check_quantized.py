#!/usr/bin/env python3
"""Reads checkpoints of `deepinfer quantize` with other programs and compares what they compute.

check_quantized.py CHECKPOINT --reference MODEL [--text FILE] [--tokens 256] [--chunks 4] [--reader transformers|vllm|none]

MODEL is what the checkpoint was made of. The weights are unpacked here, as the published layouts say, into the plain F32
model; its logits are what the reader's must be, but for the reader's own precision. Printed as JSON: mean KL divergence
and top-1 agreement of that model against MODEL, and of the reader against that model. Needs torch, transformers and
safetensors; for compressed-tensors that package, for gptq and awq what transformers asks for (gptqmodel, optimum).
"""
import argparse
import json
import pathlib

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where in a word the 8 output features stand


def nibbles(words):
    """[..., n] I32 -> [..., n, 8], the lowest four bits first."""
    return (words.unsqueeze(-1) >> torch.arange(0, 32, 4, dtype=torch.int32)) & 15


def gptq(t, name):
    codes = nibbles(t[name + ".qweight"]).transpose(1, 2).flatten(0, 1)  # [K, N]
    zeros = (nibbles(t[name + ".qzeros"]).flatten(1) + 1) & 15  # [groups, N]; version 1 stores one less
    groups = t[name + ".g_idx"].long()
    scales = t[name + ".scales"].float()
    return ((codes - zeros[groups]).float() * scales[groups]).T


def awq(t, name):
    codes = nibbles(t[name + ".qweight"])[..., AWQ_ORDER].flatten(1)  # [K, N]
    zeros = nibbles(t[name + ".qzeros"])[..., AWQ_ORDER].flatten(1)
    group = codes.shape[0] // zeros.shape[0]
    scales = t[name + ".scales"].float()
    return ((codes - zeros.repeat_interleave(group, 0)).float() * scales.repeat_interleave(group, 0)).T


def int4(t, name):
    codes = nibbles(t[name + ".weight_packed"]).flatten(1)
    scales = t[name + ".weight_scale"].float()
    return (codes - 8).float() * scales.repeat_interleave(codes.shape[1] // scales.shape[1], 1)


def fp8(t, name):
    return t[name + ".weight"].float() * t[name + ".weight_scale"].float()


def dequantized(folder):
    """The checkpoint's tensors as those of the plain model, in F32."""
    t = {}
    for file in sorted(folder.glob("*.safetensors")):
        t.update(load_file(file))
    marks = {".qweight": None, ".weight_packed": int4, ".weight_scale": fp8}
    plain, packed = {}, set()
    for key in t:
        for suffix, unpack in marks.items():
            name = key.removesuffix(suffix)
            if name == key or (suffix == ".weight_scale" and name + ".weight_packed" in t):
                continue
            unpack = unpack or (gptq if name + ".g_idx" in t else awq)
            plain[name + ".weight"] = unpack(t, name)
            packed.add(name)
    parts = ("qweight", "qzeros", "scales", "g_idx", "weight_packed", "weight_shape", "weight_scale", "weight")
    for key, value in t.items():
        if not (key.rsplit(".", 1)[0] in packed and key.rsplit(".", 1)[1] in parts):
            plain[key] = value.float()
    return plain


def plain_model(reference, folder):
    config = AutoConfig.from_pretrained(reference)
    model = AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32)
    if folder is None:
        return model.eval()
    missing, unexpected = model.load_state_dict(dequantized(folder), strict=False)
    missing = [m for m in missing if not (m == "lm_head.weight" and config.tie_word_embeddings)]
    assert not missing and not unexpected, (missing, unexpected)
    return model.eval()


@torch.no_grad()
def logits_of(model, chunks):
    return torch.stack([model(c[None].to(model.device)).logits[0].float().cpu() for c in chunks])


def vllm_logits(folder, chunks):
    """Log-probabilities of whole prompts' positions, by vLLM on this machine's device."""
    from vllm import LLM, SamplingParams

    llm = LLM(str(folder), max_logprobs=-1, enforce_eager=True, max_model_len=chunks.shape[1] + 8, dtype="bfloat16")
    vocabulary = llm.llm_engine.model_config.get_vocab_size()
    asked = SamplingParams(max_tokens=1, prompt_logprobs=vocabulary, temperature=0)
    out = llm.generate([{"prompt_token_ids": c.tolist()} for c in chunks], asked)
    all_rows = torch.full((*chunks.shape, vocabulary), float("nan"))
    for i, answer in enumerate(out):
        for j, row in enumerate(answer.prompt_logprobs[1:]):
            for token, value in row.items():
                all_rows[i, j, token] = value.logprob
    return all_rows[:, :-1]


def compare(got, want):
    """Of the distributions at every position but a chunk's last, which vLLM does not give."""
    want, got = want[:, :got.shape[1]].log_softmax(-1), got.log_softmax(-1)
    want = want[:, :-1] if got.shape[1] > want.shape[1] else want
    kl = (want.exp() * (want - got)).sum(-1)
    return {"mean_kl": kl.mean().item(), "max_kl": kl.max().item(),
            "same_top1": (want.argmax(-1) == got.argmax(-1)).double().mean().item(),
            "max_logprob_difference": (want - got)[want > -10].abs().max().item()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("--reference", required=True)
    parser.add_argument("--text", type=pathlib.Path, default=ROOT / "CONTRIBUTING.md")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--reader", choices=("transformers", "vllm", "none"), default="transformers")
    parser.add_argument("--dtype", default="float32", help="of transformers' reader")
    a = parser.parse_args()
    ids = AutoTokenizer.from_pretrained(a.reference)(a.text.read_text(encoding="utf-8"))["input_ids"]
    ids = ids[:a.tokens * a.chunks]
    chunks = torch.tensor(ids[:len(ids) // a.tokens * a.tokens]).view(-1, a.tokens)
    unpacked = logits_of(plain_model(a.reference, a.checkpoint), chunks)
    result = {"checkpoint": str(a.checkpoint), "positions": chunks.numel(),
              "against_reference": compare(unpacked, logits_of(plain_model(a.reference, None), chunks))}
    if a.reader == "transformers":
        model = AutoModelForCausalLM.from_pretrained(a.checkpoint, dtype=getattr(torch, a.dtype), device_map="cpu").eval()
        result["transformers_against_unpacked"] = compare(logits_of(model, chunks), unpacked)
    elif a.reader == "vllm":
        result["vllm_against_unpacked"] = compare(vllm_logits(a.checkpoint, chunks), unpacked)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
