"""deepinfer estimate of a model on a hub: config.json or a GGUF file's header is fetched, and no weights."""
import json

from hub_stand_in import Fault
from hub_support import noise

MODEL = "acme/eight"
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16", "tie_word_embeddings": False,
}


def files(config, parts=("model.safetensors",)):
    out = {"config.json": json.dumps(config).encode(), "tokenizer.json": b"{}"}
    out |= {part: noise(1000 + i) for i, part in enumerate(parts)}
    if len(parts) > 1:
        out["model.safetensors.index.json"] = b'{"weight_map": {}}'
    return out


def estimate(hub, *args, code=0):
    done = hub.call("estimate", "--json", *args)
    assert done.returncode == code, done
    return json.loads(done.stdout)


def test_config_json_is_all_that_is_fetched(hub):
    hub.add(MODEL, files(CONFIG))
    e = estimate(hub, "--model", MODEL, "--gpu", "4090")
    assert e["fits"] and e["weight_bytes"] == 2 * 8_030_261_248 and hub.url in e["source"]
    assert {s.file for s in hub.requests(host="hub")} == {"config.json"}
    assert hub.requests(host="store") == []
    assert not hub.cache.exists() or not list(hub.cache.rglob("*.safetensors")), "nothing is kept"


def test_sizes_of_quantized_files_count(hub):
    awq = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}
    small = CONFIG | {"vocab_size": 16, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
                      "intermediate_size": 64, "num_hidden_layers": 2, "quantization_config": awq}
    parts = {f"model-0000{i}-of-00002.safetensors": noise(400_000 + i) for i in (1, 2)}
    hub.add(MODEL, files(small, tuple(parts)) | parts)
    e = estimate(hub, "--model", MODEL, "--gpu", "4090")
    assert abs(e["weight_bytes"] - sum(len(p) for p in parts.values())) < 100


def test_of_a_gguf_file_the_header(hub, default_model):
    whole = default_model.read_bytes()
    hub.add("acme/smol", {"smol-Q4_1.gguf": whole, "smol-Q8_0.gguf": b"never asked for"})
    e = estimate(hub, "--model", "acme/smol:Q4_1", "--gpu", "4090")
    local = estimate(hub, "--model", str(default_model), "--gpu", "4090")
    for key in ("weight_bytes", "kv_tokens", "model_context", "weights", "kv_dtype"):
        assert e[key] == local[key]
    asked = [s.range for s in hub.requests(host="store")]
    assert asked and all(r is not None and r[1] < len(whole) / 5 for r in asked), "the first part alone"


def test_a_model_in_the_cache_needs_no_network(hub, default_model):
    hub.add("acme/smol", {"smol-Q4_1.gguf": default_model.read_bytes()})
    assert hub.call("pull", "acme/smol").returncode == 0
    hub.forget()
    assert estimate(hub, "--model", "acme/smol", "--gpu", "4090")["fits"]
    assert hub.requests() == []


def test_faults_of_the_hub(hub):
    hub.add(MODEL, files(CONFIG))
    first = []

    def once(seen):
        if first:
            return None
        first.append(seen)
        return Fault(cut_after=10)

    hub.fault = once
    assert estimate(hub, "--model", MODEL, "--gpu", "4090")["fits"], "it is tried again"
    hub.fault = lambda seen: Fault(status=404)
    done = hub.call("estimate", "--model", MODEL, "--gpu", "4090")
    assert done.returncode == 3 and MODEL in done.stderr, done
    hub.fault = lambda seen: Fault(body=b"<html>not json</html>")
    done = hub.call("estimate", "--model", MODEL, "--gpu", "4090")
    assert done.returncode == 3, done
    done = hub.call("estimate", "--model", "acme/none", "--gpu", "5090")
    assert done.returncode == 3 and "acme/none" in done.stderr, done
    done = hub.call("estimate", "--model", MODEL, "--gpu", "5090", env={"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 3 and "HF_HUB_OFFLINE" in done.stderr, done
