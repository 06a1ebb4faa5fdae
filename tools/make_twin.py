#!/usr/bin/env python3
"""Writes the bf16 twin of a GGUF file of the Llama family as a Hugging Face folder (needs gguf and numpy, not torch).

    tools/make_twin.py MODEL.gguf FOLDER

Every tensor is dequantized to F32 and rounded to bf16 (to nearest, ties to even); q and k go back from the interleaved
to the half-split form of RoPE. Tests run it as a checkpoint of the other format with the same content.
"""
import json
import struct
import sys
from pathlib import Path

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

NAMES = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
         "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
         "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
TOP = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
       "output.weight": "lm_head.weight"}


def hf_name(name):
    if name in TOP:
        return TOP[name]
    _, layer, part, end = name.split(".")
    return f"model.layers.{layer}.{NAMES[part]}.{end}"


def half_split(w, heads):
    """Rows of each head from (0, 1), (2, 3), ... pairs to (0, d/2), (1, d/2 + 1), ..."""
    rows, cols = w.shape
    return w.reshape(heads, rows // heads // 2, 2, cols).swapaxes(1, 2).reshape(rows, cols)


def bf16(x):
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def write_safetensors(path, tensors):
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, t in tensors.items():
        header[name] = {"dtype": "BF16", "shape": list(t.shape), "data_offsets": [offset, offset + t.nbytes]}
        offset += t.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for t in tensors.values():
            f.write(t.tobytes())


def tokenizer_json(reader):
    """GPT-2 style byte-level BPE with SmolLM's pre-tokenizer: digits one by one, then GPT-2's pattern."""
    def strings(key):
        field = reader.fields[key]
        return [bytes(field.parts[i]).decode() for i in field.data]

    tokens, merges = strings("tokenizer.ggml.tokens"), strings("tokenizer.ggml.merges")
    kinds = [int(reader.fields["tokenizer.ggml.token_type"].parts[i][0]) for i in reader.fields["tokenizer.ggml.token_type"].data]
    added = [{"id": i, "content": tokens[i], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": True} for i, kind in enumerate(kinds) if kind == 3]
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}]},
            "post_processor": None,
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                      "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                      "vocab": {t: i for i, t in enumerate(tokens)}, "merges": [m.split(" ") for m in merges]}}


def main(model, folder):
    reader, out = GGUFReader(model), Path(folder)
    out.mkdir(parents=True, exist_ok=True)

    def value(key):
        field = reader.fields[key]
        return field.contents()

    heads, kv_heads = value("llama.attention.head_count"), value("llama.attention.head_count_kv")
    tensors = {}
    for t in reader.tensors:
        w = dequantize(t.data, t.tensor_type).reshape([int(n) for n in t.shape][::-1])
        if ".attn_q.weight" in t.name:
            w = half_split(w, heads)
        if ".attn_k.weight" in t.name:
            w = half_split(w, kv_heads)
        tensors[hf_name(t.name)] = bf16(w)
    write_safetensors(out / "model.safetensors", tensors)
    eos = value("tokenizer.ggml.eos_token_id")
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
              "hidden_size": value("llama.embedding_length"), "num_hidden_layers": value("llama.block_count"),
              "num_attention_heads": heads, "num_key_value_heads": kv_heads, "hidden_act": "silu",
              "intermediate_size": value("llama.feed_forward_length"), "vocab_size": len(tokens_of(reader)),
              "rms_norm_eps": value("llama.attention.layer_norm_rms_epsilon"), "rope_theta": value("llama.rope.freq_base"),
              "max_position_embeddings": value("llama.context_length"),
              "tie_word_embeddings": "lm_head.weight" not in tensors, "eos_token_id": eos,
              "bos_token_id": value("tokenizer.ggml.bos_token_id")}
    (out / "config.json").write_text(json.dumps(config, indent=1))
    (out / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    (out / "tokenizer.json").write_text(json.dumps(tokenizer_json(reader)))
    (out / "tokenizer_config.json").write_text(json.dumps({"eos_token": value("tokenizer.ggml.tokens")[eos], "add_bos_token": False}))
    (out / "chat_template.jinja").write_text(value("tokenizer.chat_template"))


def tokens_of(reader):
    return reader.fields["tokenizer.ggml.tokens"].data


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
