#!/usr/bin/env python3
"""Tiny random Llama checkpoints, with the logits that transformers computes of them in float32.

    tiny_llama.py [--check]    writes, or compares with, tests/golden/tiny_llama/

Needs torch, transformers, tokenizers, gguf. One folder a variant, in Hugging Face's form:

    config.json generation_config.json model.safetensors (or two shards and an index)
    tokenizer.json ...  in "base" only: byte-level BPE, with a chat template
    expected.json       {"prompts": [[ids] ...], "logits_file": "logits.bin", "greedy": [[ids] ...]}
    logits.bin          F32 little-endian [prompts, vocab]: the logits of each prompt's last token
    model-q8_0.gguf     in some: the weights as llama.cpp's converter stores them, q and k permuted, with
                        expected-q8_0.json and logits-q8_0.bin of the dequantized weights; also f16, bf16, q4_*

`greedy` holds the 8 tokens that follow each prompt at temperature 0. Only "base" has a tokenizer.

--check makes everything again in a temporary folder. Files must be equal byte for byte, but logits only within
1e-4 of their largest: another CPU adds in another order.
"""

import argparse
import json
import pathlib
import shutil
import sys
import tempfile

import gguf
import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden" / "tiny_llama"
SMALL = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
             num_key_value_heads=1, head_dim=16, vocab_size=160)
LLAMA3 = dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32)
VARIANTS = {
    # Grouped queries, own head: the one with a tokenizer.
    "base": dict(dtype="bfloat16", hidden_size=64, intermediate_size=96, num_attention_heads=4,
                 num_key_value_heads=2, vocab_size=320, tokenizer=True, gguf=("Q4_1",)),
    "mha_tied": dict(dtype="float16", num_key_value_heads=2, tie_word_embeddings=True, gguf=("F16", "Q8_0", "Q4_0")),
    "llama3_rope": dict(dtype="bfloat16", rope_parameters=LLAMA3, gguf=("BF16",)),
    "linear_rope": dict(dtype="float16", rope_parameters=dict(rope_type="linear", rope_theta=5000.0, factor=4.0)),
    "biases": dict(dtype="float32", attention_bias=True, mlp_bias=True),
    "wide_heads": dict(dtype="bfloat16", head_dim=64, intermediate_size=96),
    "sharded": dict(dtype="float16", num_attention_heads=4, num_key_value_heads=2, shard=True),
}
PROMPT_LENGTHS = (1, 5, 17, 40)
TEXT = ("The quick brown fox jumps over the lazy dog. She sells sea shells by the sea shore, and the shells that "
        "she sells are sea shells. How much wood would a woodchuck chuck if a woodchuck could chuck wood? ") * 4
TEMPLATE = ("{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
            "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


def make_tokenizer(folder):
    """320 tokens: 3 special ones, 256 bytes, 61 merges."""
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  special_tokens=[AddedToken(s, special=True, normalized=False) for s in special],
                                  show_progress=False)
    t.train_from_iterator([TEXT], trainer)
    assert t.get_vocab_size() == 320
    fast = PreTrainedTokenizerFast(tokenizer_object=t, bos_token=special[0], eos_token=special[2])
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)


def randomize(model, seed):
    """Weights large enough that logits differ clearly between tokens."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=g)
            if "norm" in name:
                p.copy_(1 + 0.2 * noise)
            elif name.endswith("bias"):
                p.copy_(0.3 * noise)
            elif "embed" in name:
                p.copy_(noise)
            else:
                p.copy_(noise / p.shape[1] ** 0.5)


def make_prompts(vocab, seed):
    rng = np.random.default_rng(seed)
    return [[int(x) for x in rng.integers(3, vocab, n)] for n in PROMPT_LENGTHS]


def run(model, prompts):
    """Logits of each prompt's last token, and the 8 tokens that follow it."""
    rows, greedy = [], []
    with torch.no_grad():
        for prompt in prompts:
            ids, new = list(prompt), []
            for step in range(8):
                logits = model(torch.tensor([ids])).logits[0, -1].float().numpy()
                if step == 0:
                    rows.append(logits)
                new.append(int(logits.argmax()))
                ids.append(new[-1])
            greedy.append(new)
    return np.stack(rows), greedy


def write_expected(folder, model, prompts, suffix=""):
    logits, greedy = run(model, prompts)
    logits.astype("<f4").tofile(folder / f"logits{suffix}.bin")
    text = json.dumps({"prompts": prompts, "logits_file": f"logits{suffix}.bin", "greedy": greedy}, indent=1)
    (folder / f"expected{suffix}.json").write_text(text + "\n")


def permute(w, heads):
    """As llama.cpp's converter: pairs (i, i + d/2) become (2i, 2i + 1)."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def unpermute(w, heads):
    return w.reshape(heads, w.shape[0] // heads // 2, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
         "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
         "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}


def gguf_name(name):
    stem, kind = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        _, _, number, rest = stem.split(".", 3)
        return f"blk.{number}.{NAMES[rest]}.{kind}"
    return f"{NAMES[stem]}.{kind}"


def rope_factors(config):
    """What llama.cpp's converter stores as rope_freqs.weight for llama3's scaling."""
    p = config.rope_parameters
    freqs = 1.0 / (p["rope_theta"] ** (np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim))
    low, high = p["low_freq_factor"], p["high_freq_factor"]
    context, out = p["original_max_position_embeddings"], []
    for wavelength in 2 * np.pi / freqs:
        if wavelength < context / high:
            out.append(1.0)
        elif wavelength > context / low:
            out.append(p["factor"])
        else:
            smooth = (context / wavelength - low) / (high - low)
            out.append(1 / ((1 - smooth) / p["factor"] + smooth))
    return np.array(out, np.float32)


def write_metadata(w, config, tokenizer_json):
    w.add_context_length(config.max_position_embeddings)
    w.add_embedding_length(config.hidden_size)
    w.add_block_count(config.num_hidden_layers)
    w.add_feed_forward_length(config.intermediate_size)
    w.add_head_count(config.num_attention_heads)
    w.add_head_count_kv(config.num_key_value_heads)
    w.add_key_length(config.head_dim)
    w.add_value_length(config.head_dim)
    w.add_rope_dimension_count(config.head_dim)
    w.add_rope_freq_base(config.rope_parameters["rope_theta"])
    w.add_layer_norm_rms_eps(config.rms_norm_eps)
    w.add_vocab_size(config.vocab_size)
    if tokenizer_json is None:
        return
    t = json.loads(tokenizer_json.read_text())
    tokens = sorted(t["model"]["vocab"], key=t["model"]["vocab"].get)
    special = {a["content"] for a in t["added_tokens"]}
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(tokens)
    w.add_token_types([3 if token in special else 1 for token in tokens])
    w.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in t["model"]["merges"]])
    w.add_bos_token_id(0)
    w.add_eos_token_id(2)
    w.add_add_bos_token(False)
    w.add_chat_template(TEMPLATE)


def write_gguf(folder, config, state, kind, tokenizer_json):
    """Returns the weights that the file holds, dequantized and permuted back."""
    qtype = gguf.GGMLQuantizationType[kind]
    w = gguf.GGUFWriter(folder / f"model-{kind.lower()}.gguf", "llama")
    write_metadata(w, config, tokenizer_json)
    held = {}
    for name in sorted(state):
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        x = state[name].float().numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        stored = np.ascontiguousarray(permute(x, heads) if heads else x)
        t = qtype if x.ndim == 2 else gguf.GGMLQuantizationType.F32
        data = gguf.quants.quantize(stored, t)
        w.add_tensor(gguf_name(name), data, raw_dtype=t)
        back = gguf.quants.dequantize(data, t)
        held[name] = torch.from_numpy(np.ascontiguousarray(unpermute(back, heads) if heads else back))
    if config.rope_parameters["rope_type"] == "llama3":
        w.add_tensor("rope_freqs.weight", rope_factors(config))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return held


def make_variant(root, name, options, seed):
    options = dict(options)
    kinds, shard, tokenizer = (options.pop(k, d) for k, d in (("gguf", ()), ("shard", False), ("tokenizer", False)))
    dtype = getattr(torch, options.pop("dtype"))
    folder = root / name
    folder.mkdir()
    config = LlamaConfig(**{**SMALL, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "bos_token_id": 0,
                            "eos_token_id": 2, "pad_token_id": None, **options})
    model = LlamaForCausalLM(config).eval()
    randomize(model, seed)
    model.to(dtype)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    model.save_pretrained(folder, max_shard_size=size * 6 // 10 if shard else "1GB")
    if tokenizer:
        make_tokenizer(folder)
    # Read again: the conversion has rounded the frequencies of RoPE too, which are no weights.
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    prompts = make_prompts(config.vocab_size, seed)
    write_expected(folder, model, prompts)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    for kind in kinds:
        held = write_gguf(folder, config, state, kind, folder / "tokenizer.json" if tokenizer else None)
        model.load_state_dict(held, strict=False)
        model.tie_weights()
        write_expected(folder, model, prompts, f"-{kind.lower()}")


def make(root):
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    for seed, (name, options) in enumerate(VARIANTS.items(), 1):
        make_variant(root, name, options, seed)
    for readme in root.rglob("README.md"):
        readme.unlink()


def compare(old, new):
    names = {p.relative_to(d) for d in (old, new) for p in d.rglob("*") if p.is_file()}
    wrong = []
    for name in sorted(names):
        a, b = old / name, new / name
        if not a.exists() or not b.exists():
            wrong.append(f"{name}: only in one")
        elif name.suffix == ".bin":
            x, y = np.fromfile(a, "<f4"), np.fromfile(b, "<f4")
            if x.shape != y.shape or np.abs(x - y).max() > 1e-4 * np.abs(x).max():
                wrong.append(f"{name}: logits differ")
        elif a.read_bytes() != b.read_bytes():
            wrong.append(f"{name}: differs")
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the folder instead of writing it")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        root = pathlib.Path(tmp) / "tiny_llama"
        root.mkdir()
        make(root)
        total = sum(p.stat().st_size for p in root.rglob("*") if p.is_file())
        if args.check:
            wrong = compare(OUT, root)
            print(*wrong, f"tiny_llama: {len(wrong)} differences", sep="\n")
            sys.exit(1 if wrong else 0)
        shutil.rmtree(OUT, ignore_errors=True)
        shutil.copytree(root, OUT)
        print(f"{OUT}: {total} bytes")


if __name__ == "__main__":
    main()
