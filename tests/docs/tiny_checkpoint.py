"""A Hugging Face folder with random weights that loads at once: two layers, a byte-level tokenizer, a chat template."""
import json
import pathlib

import numpy
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

HIDDEN, HEADS, FFN, LAYERS, CONTEXT = 128, 2, 256, 2, 2048
TEMPLATE = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
SPECIAL = ["<|im_start|>", "<|im_end|>"]


def _tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def _bfloat16(values):
    return (values.astype(numpy.float32).view(numpy.uint32) >> 16).astype(numpy.uint16)


def _safetensors(path, tensors):
    header, blobs, end = {}, [], 0
    for name, values in tensors.items():
        data = _bfloat16(values).tobytes()
        header[name] = {"dtype": "BF16", "shape": list(values.shape), "data_offsets": [end, end + len(data)]}
        end += len(data)
        blobs.append(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(blobs))


def write(folder, seed=11):
    """Returns the folder."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True)
    random = numpy.random.default_rng(seed)
    tokenizer = _tokenizer()
    vocabulary = tokenizer.get_vocab_size()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": SPECIAL[1], "chat_template": TEMPLATE}))
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": FFN,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "vocab_size": vocabulary,
        "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "eos_token_id": vocabulary - 1, "bos_token_id": None}))
    shapes = {"model.embed_tokens": (vocabulary, HIDDEN), "lm_head": (vocabulary, HIDDEN)}
    for i in range(LAYERS):
        layer = f"model.layers.{i}."
        shapes |= {layer + f"self_attn.{p}_proj": (HIDDEN, HIDDEN) for p in "qkvo"}
        shapes |= {layer + "mlp.gate_proj": (FFN, HIDDEN), layer + "mlp.up_proj": (FFN, HIDDEN),
                   layer + "mlp.down_proj": (HIDDEN, FFN)}
    tensors = {f"{name}.weight": random.normal(0, shape[1] ** -0.5, shape) for name, shape in shapes.items()}
    norms = ["model.norm"] + [f"model.layers.{i}.{n}_layernorm" for i in range(LAYERS) for n in ("input", "post_attention")]
    tensors |= {f"{name}.weight": numpy.ones(HIDDEN) for name in norms}
    _safetensors(folder / "model.safetensors", tensors)
    return folder
