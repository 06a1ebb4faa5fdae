#!/usr/bin/env python3
"""Tiny quantized Llama checkpoints, made by the tools that people make them with.

    make_quantized.py [NAME ...]    writes tests/golden/quant_*; all when no NAME is given

Needs what requirements-quantized.txt names; a GPU is not used. By maker:

    ct_*      llmcompressor's oneshot, saved by compressed-tensors
    gptq_*    gptqmodel
    awq_*, fp8_*, ct_w4_order
              packed here, after the published layouts: AutoAWQ's kernels and transformers' FP8 need a GPU, and
              compressed-tensors no longer writes weight_g_idx, but its old checkpoints have it

A folder holds config.json, model.safetensors and expected.json:

    {"weights": {layer: SHA-256 of its matrix [N, K] in F32 little-endian, scale * (code - zero) rounded once},
     "prompts": [[ids] ...], "logits": [[V numbers of the last token] ...]}

The codes are unpacked by the maker's own code (compressed-tensors' unpack_from_int32, gptqmodel's
dequantize_weight) where it has some; the logits are transformers' in float32 with these matrices.
"""

import hashlib
import json
import os
import pathlib
import shutil
import sys
import tempfile

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

GOLDEN = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden"
SIZES = dict(hidden_size=128, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
             num_key_value_heads=2, head_dim=32, vocab_size=96, tie_word_embeddings=True,
             max_position_embeddings=256)
PROMPTS = [[3], [7, 50, 21, 90, 11], [(i * 37 + 5) % 93 + 3 for i in range(24)]]


def make_model(dtype, **changes):
    model = LlamaForCausalLM(LlamaConfig(**(SIZES | changes), bos_token_id=1, eos_token_id=2))
    g = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=g)
            # Columns of different weight, so that act order has something to sort.
            column = 1 + torch.arange(p.shape[-1]) % 7 / 3.0
            p.copy_(1 + 0.2 * noise if "norm" in name else
                    noise if "embed" in name else noise * column / p.shape[1] ** 0.5)
    return model.to(dtype).eval()


def layers_of(model):
    return [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"]


def calibration():
    rng = np.random.default_rng(1)
    return [[int(x) for x in rng.integers(3, 96, 64)] for _ in range(16)]


def write_expected(folder, model, matrices):
    """matrices: layer -> [N, K] float32. `model` has everything else."""
    model = model.float()
    for name, w in matrices.items():
        module = model.get_submodule(name)
        module.weight = torch.nn.Parameter(w.contiguous(), requires_grad=False)
    with torch.no_grad():
        logits = [model(torch.tensor([p])).logits[0, -1].tolist() for p in PROMPTS]
    hashes = {n: hashlib.sha256(w.contiguous().numpy().astype("<f4").tobytes()).hexdigest()
              for n, w in sorted(matrices.items())}
    text = json.dumps({"weights": hashes, "prompts": PROMPTS, "logits": logits})
    (folder / "expected.json").write_text(text + "\n")


def keep_only(source, folder):
    """config.json and the weights out of what a tool saved."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)


def write_packed(folder, model, quantization, tensors):
    """A checkpoint of what this script has packed."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = model.config.to_dict() | {"quantization_config": quantization, "architectures": ["LlamaForCausalLM"]}
    config["dtype"] = str(model.dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config, indent=1, default=str) + "\n")
    quantized = set(layers_of(model))
    rest = {n: p.detach() for n, p in model.named_parameters() if n.removesuffix(".weight") not in quantized}
    save_file({k: v.contiguous() for k, v in (rest | tensors).items()}, folder / "model.safetensors")


# ---- compressed-tensors

def ct_matrices(folder):
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    scheme = next(iter(config["config_groups"].values()))["weights"]
    t = load_file(folder / "model.safetensors")
    out = {}
    for key in t:
        if not key.endswith(".weight_scale"):
            continue
        layer = key.removesuffix(".weight_scale")
        scale = t[key].float()
        if layer + ".weight_packed" in t:
            shape = t[layer + ".weight_shape"].tolist()
            q = unpack_from_int32(t[layer + ".weight_packed"], scheme["num_bits"], torch.Size(shape)).float()
            z = torch.zeros_like(scale)
            if layer + ".weight_zero_point" in t:
                z = unpack_from_int32(t[layer + ".weight_zero_point"], scheme["num_bits"], scale.shape,
                                      packed_dim=0).float()
        else:
            q, z = t[layer + ".weight"].float(), torch.zeros_like(scale)
        if scheme["strategy"] == "block":
            rows, cols = scheme["block_structure"]
            scale = scale.repeat_interleave(rows, 0)[: q.shape[0]].repeat_interleave(cols, 1)[:, : q.shape[1]]
            z = torch.zeros_like(scale)
        elif scale.numel() > 1 and scale.shape[-1] > 1:
            if layer + ".weight_g_idx" in t:
                index = t[layer + ".weight_g_idx"].long()
            else:
                index = torch.arange(q.shape[1]) // (q.shape[1] // scale.shape[1])
            scale, z = scale[:, index], z[:, index]
        out[layer] = (q - z) * scale
    return out


def make_ct(name, recipe, dtype=torch.bfloat16, calibrate=False):
    from datasets import Dataset
    from llmcompressor import oneshot
    plain = make_model(dtype)
    arguments = {}
    if calibrate:
        ids = calibration()
        arguments = dict(dataset=Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * 64] * len(ids)}),
                         num_calibration_samples=len(ids), max_seq_length=64, shuffle_calibration_samples=False)
    with tempfile.TemporaryDirectory() as temp:
        source, out = pathlib.Path(temp) / "plain", pathlib.Path(temp) / "out"
        plain.save_pretrained(source)
        write_word_tokenizer(source)
        model = LlamaForCausalLM.from_pretrained(source, dtype=dtype)
        oneshot(model=model, recipe=recipe, **arguments)
        model.save_pretrained(out, save_compressed=True)
        keep_only(out, GOLDEN / name)
    write_expected(GOLDEN / name, plain, ct_matrices(GOLDEN / name))


def ct_scheme(scheme):
    from llmcompressor.modifiers.quantization import QuantizationModifier
    return QuantizationModifier(targets="Linear", scheme=scheme, ignore=["lm_head"])


def ct_weights(modifier="QuantizationModifier", **weights):
    from llmcompressor.modifiers import gptq, quantization
    of = getattr(gptq if modifier == "GPTQModifier" else quantization, modifier)
    return of(ignore=["lm_head", "re:.*o_proj"],
              config_groups={"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int"} | weights}})


def ct_w4_order(name):
    """Groups that follow an order of their own: weight_g_idx."""
    model = make_model(torch.bfloat16)
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
    tensors, matrices = {}, {}
    for layer in layers_of(model):
        # q, k and v in one order, as they have one input; gate and up in two, which a reader must bear as well.
        shared = layer.endswith(("q_proj", "k_proj", "v_proj"))
        rng = np.random.default_rng(3 if shared else len(tensors))
        w = model.get_submodule(layer).weight.detach().float()
        N, K = w.shape
        g_idx = torch.from_numpy(rng.permutation(K) // 32)
        scale = torch.stack([w[:, g_idx == g].abs().amax(1) / 7.5 for g in range(K // 32)], 1).bfloat16()
        q = torch.clamp(torch.round(w / scale.float()[:, g_idx]), -8, 7).to(torch.int8)
        tensors |= {layer + ".weight_packed": pack_to_int32(q, 4), layer + ".weight_scale": scale,
                    layer + ".weight_shape": torch.tensor([N, K]), layer + ".weight_g_idx": g_idx.int()}
        matrices[layer] = q.float() * scale.float()[:, g_idx]
    weights = dict(num_bits=4, type="int", symmetric=True, strategy="group", group_size=32, actorder="group",
                   dynamic=False)
    write_packed(GOLDEN / name, model, {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}, tensors)
    write_expected(GOLDEN / name, model, matrices)


# ---- gptqmodel

def make_gptq(name, **settings):
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # on one core it asks for more workers than it has
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    plain = make_model(torch.float16)
    with tempfile.TemporaryDirectory() as temp:
        source, out = pathlib.Path(temp) / "plain", pathlib.Path(temp) / "out"
        plain.save_pretrained(source)
        write_word_tokenizer(source)
        model = GPTQModel.load(str(source), QuantizeConfig(offload_to_disk=False, device="cpu", **settings))
        ids = calibration()
        model.quantize([{"input_ids": torch.tensor([i]), "attention_mask": torch.ones(1, len(i), dtype=torch.long)}
                        for i in ids], backend=BACKEND.TORCH)
        model.save(str(out))
        keep_only(out, GOLDEN / name)
        loaded = GPTQModel.load(str(out), backend=BACKEND.TORCH, device="cpu")
        matrices, tensors = {}, load_file(out / "model.safetensors")
        for layer, module in loaded.model.named_modules():
            if isinstance(module, TorchLinear):
                module.scales = tensors[layer + ".scales"].float()  # it rounds its own to bfloat16
                matrices[layer] = module.dequantize_weight().float().t().contiguous()
    write_expected(GOLDEN / name, plain, matrices)


def write_word_tokenizer(folder):
    """The tools want a tokenizer beside the model; its tokens are never used."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    t = Tokenizer(models.WordLevel({f"w{i}": i for i in range(96)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=t, bos_token="w1", eos_token="w2", pad_token="w2",
                            unk_token="w0").save_pretrained(folder)


# ---- packed here

def awq(name, group, old_file=False):
    """AutoAWQ, awq/modules/linear/gemm.py: eight columns of N a word in the order 0 2 4 6 1 3 5 7."""
    model = make_model(torch.float16)
    order = [0, 2, 4, 6, 1, 3, 5, 7]

    def pack(x):  # [rows, N] of codes -> [rows, N / 8]
        parts = x.reshape(x.shape[0], -1, 8)[:, :, order].numpy().astype(np.uint32)
        return torch.from_numpy((parts << (4 * np.arange(8, dtype=np.uint32))).sum(-1, dtype=np.uint32).view(np.int32))

    tensors, matrices = {}, {}
    for layer in layers_of(model):
        w = model.get_submodule(layer).weight.detach().float()
        N, K = w.shape
        g = w.reshape(N, K // group, group)
        low, high = g.amin(-1).clamp(max=0), g.amax(-1).clamp(min=0)
        scale = ((high - low) / 15).half()
        zero = torch.clamp(torch.round(-low / scale.float()), 0, 15)
        q = torch.clamp(torch.round(g / scale.float()[..., None]) + zero[..., None], 0, 15)
        tensors |= {layer + ".qweight": pack(q.reshape(N, K).t().long()), layer + ".qzeros": pack(zero.t().long()),
                    layer + ".scales": scale.t().contiguous()}
        matrices[layer] = ((q - zero[..., None]) * scale.float()[..., None]).reshape(N, K)
    write_packed(GOLDEN / name, model, {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm",
                                        "zero_point": True, "modules_to_not_convert": None}, tensors)
    if old_file:  # as AutoAWQ wrote it before transformers knew the method
        path = GOLDEN / name / "config.json"
        config = json.loads(path.read_text())
        del config["quantization_config"]
        path.write_text(json.dumps(config, indent=1) + "\n")
        (GOLDEN / name / "quant_config.json").write_text(json.dumps(
            {"zero_point": True, "q_group_size": group, "w_bit": 4, "version": "GEMM"}) + "\n")
    check_awq(GOLDEN / name, matrices, group)
    write_expected(GOLDEN / name, model, matrices)


def check_awq(folder, matrices, group):
    """The packing against the reader that compressed-tensors has for AutoAWQ's checkpoints."""
    from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter as reader
    t = load_file(folder / "model.safetensors")
    for layer, w in matrices.items():
        q, z = reader.unpack_awq(t[layer + ".qweight"], t[layer + ".qzeros"], 4)
        q, z = reader.reverse_awq_order(q & 15, z & 15, 4)
        values = (q - z.repeat_interleave(group, 0)).float() * t[layer + ".scales"].float().repeat_interleave(group, 0)
        assert torch.equal(values.t(), w), layer


def fp8(name, block=None, static=False):
    model = make_model(torch.bfloat16)
    tensors, matrices = {}, {}
    for layer in layers_of(model):
        w = model.get_submodule(layer).weight.detach().float()
        N, K = w.shape
        if block:
            rows, cols = -(-N // block), -(-K // block)
            padded = torch.zeros(rows * block, cols * block)
            padded[:N, :K] = w
            scale = padded.reshape(rows, block, cols, block).abs().amax((1, 3)) / 448
            full = scale.repeat_interleave(block, 0)[:N].repeat_interleave(block, 1)[:, :K]
            tensors[layer + ".weight_scale_inv"] = scale
        else:
            scale = w.abs().amax() / 448
            full = scale.expand(N, K)
            tensors[layer + ".weight_scale"] = scale.reshape(())
        if static:
            tensors[layer + ".input_scale"] = torch.tensor(0.03)
        q = torch.clamp(w / full, -448, 448).to(torch.float8_e4m3fn)
        tensors[layer + ".weight"] = q
        matrices[layer] = q.float() * full
    write_packed(GOLDEN / name, model, {
        "quant_method": "fp8", "activation_scheme": "static" if static else "dynamic",
        **({"weight_block_size": [block, block]} if block else {})}, tensors)
    write_expected(GOLDEN / name, model, matrices)


CASES = {
    "quant_awq_g128": lambda n: awq(n, 128),
    "quant_awq_g32_old": lambda n: awq(n, 32, old_file=True),
    "quant_fp8_tensor": lambda n: fp8(n, static=True),
    "quant_fp8_block": lambda n: fp8(n, block=128),
    "quant_ct_w4_order": ct_w4_order,
    "quant_ct_w4_g64_asym": lambda n: make_ct(n, ct_weights(symmetric=False, strategy="group", group_size=64)),
    "quant_ct_w4_channel": lambda n: make_ct(n, ct_weights(symmetric=True, strategy="channel"), torch.float16),
    "quant_ct_w4_gptq": lambda n: make_ct(n, ct_weights("GPTQModifier", symmetric=True, strategy="group",
                                                        group_size=32, actorder="weight"), calibrate=True),
    "quant_ct_fp8_dynamic": lambda n: make_ct(n, ct_scheme("FP8_DYNAMIC")),
    "quant_ct_fp8_static": lambda n: make_ct(n, ct_scheme("FP8"), calibrate=True),
    "quant_ct_fp8_block": lambda n: make_ct(n, ct_scheme("FP8_BLOCK")),
    "quant_ct_w8a8": lambda n: make_ct(n, ct_scheme("W8A8")),
    "quant_gptq4_g32_order": lambda n: make_gptq(n, bits=4, group_size=32, desc_act=True, sym=True),
    "quant_gptq4_g128_asym": lambda n: make_gptq(n, bits=4, group_size=128, desc_act=False, sym=False),
    "quant_gptq4_v2": lambda n: make_gptq(n, bits=4, group_size=64, desc_act=False, sym=False, format="gptq_v2"),
    "quant_gptq8_row": lambda n: make_gptq(n, bits=8, group_size=-1, desc_act=False, sym=True,
                                           act_group_aware=False),
}


def main():
    torch.set_num_threads(2)
    for name in sys.argv[1:] or CASES:
        CASES[name](name)
        size = sum(f.stat().st_size for f in (GOLDEN / name).iterdir())
        print(f"{name}: {size / 1024:.0f} KiB")


main()
