"""config.json of the Llama 3.1 models that the documentation names: shapes, as published; no weights."""
import json

SIZES = {  # layers, hidden, heads, feed forward
    "8B": (32, 4096, 32, 14336),
    "70B": (80, 8192, 64, 28672),
}


def config(size):
    layers, hidden, heads, ffn = SIZES[size]
    return json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "intermediate_size": ffn,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": 8, "vocab_size": 128256,
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "hidden_act": "silu",
        "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009]})
