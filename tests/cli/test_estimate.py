"""deepinfer estimate: known figures, what serve really plans, and what is refused."""
import json
import re
import subprocess

import pytest

from test_commands import call, fake_gpus

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16", "tie_word_embeddings": False, "hidden_act": "silu",
}
LLAMA_70B = LLAMA_8B | {"hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64,
                        "intermediate_size": 28672}


def folder(path, config):
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    return path


def estimate(deepinfer, *args, code=0, **options):
    done = call(deepinfer, "estimate", "--json", *args, **options)
    assert done.returncode == code, done
    return json.loads(done.stdout)


def test_a_model_of_8b_on_a_5090(deepinfer, tmp_path):
    e = estimate(deepinfer, "--model", folder(tmp_path / "8b", LLAMA_8B), "--gpu", "RTX 5090")
    assert e["fits"] and e["problem"] is None
    assert 8_030_261_248 < e["weight_bytes"] < 1.2 * 8_030_261_248, "FP8 but for the embedding: the 5090's own settings"
    assert e["kv_dtype"] == "F8_E4M3" and e["kv_bytes_per_token"] == 65536, "the same"
    assert e["memory_bytes"] == 32607 << 20
    assert e["weight_bytes"] + e["kv_bytes"] + e["buffer_bytes"] <= e["memory_bytes"]
    assert e["max_model_len"] == 131072 and e["kv_tokens"] == e["kv_blocks"] * 16
    assert all(s["sequences"] * s["context"] <= e["kv_tokens"] for s in e["sequences"])
    # The text says the same.
    text = call(deepinfer, "estimate", "--model", tmp_path / "8b/config.json", "--gpu", "5090").stdout
    for part in ("fp8, rounded while loading", "64.0 KiB", f"{e['kv_tokens']} tokens", "predicted"):
        assert part in text, text
    text = call(deepinfer, "estimate", "--model", tmp_path / "8b", "--gpu", "5090", "--quantization", "none").stdout
    assert "14.96 GiB, bfloat16" in text


def test_what_does_not_fit_is_4_and_names_what_would(deepinfer, tmp_path):
    model = folder(tmp_path / "70b", LLAMA_70B)
    e = estimate(deepinfer, "--model", model, "--gpu", "H200", code=4)
    assert not e["fits"] and e["weight_bytes"] == 2 * 70_553_706_496 and e["kv_tokens"] == 0
    assert "131.42 GiB" in e["problem"]
    assert any("--quantization fp8" in r for r in e["remedies"])
    cards = [r.split("'")[1] for r in e["remedies"] if r.startswith("--gpu")]
    assert cards == ["NVIDIA B200"]
    # Each of them is true.
    assert estimate(deepinfer, "--model", model, "--gpu", "H200", "--quantization", "fp8")["fits"]
    assert estimate(deepinfer, "--model", model, "--gpu", cards[0])["fits"]
    assert estimate(deepinfer, "--model", model, "--gpu", "H200", "--count", 2)["fits"]
    done = call(deepinfer, "estimate", "--model", model, "--gpu", "H200")
    assert done.returncode == 4 and "It does not fit" in done.stdout and "Tried, and fits" in done.stdout


def test_splits_of_several_cards(deepinfer, tmp_path):
    small, large = folder(tmp_path / "8b", LLAMA_8B), folder(tmp_path / "70b", LLAMA_70B)
    e = estimate(deepinfer, "--model", small, "--gpu", "5090", "--count", 4)
    assert e["split"] == "DP 4" and e["device_count"] == 4, "cards without peer access: replicas first"
    rates = {s["split"]: s for s in e["splits"]}
    assert {"DP 4", "TP 2, DP 2", "TP 4", "PP 4"} <= set(rates)
    assert rates["TP 4"]["stream_tokens_per_second"] > rates["DP 4"]["stream_tokens_per_second"] > 10
    assert rates["DP 4"]["served"] and not rates["PP 4"]["served"] and "pipelines" in rates["PP 4"]["unavailable"]
    # The guide's model and cards.
    guide = ["--model", large, "--gpu", "5090"]
    e = estimate(deepinfer, *guide, "--count", 2, code=4)
    assert [r for r in e["remedies"] if r.startswith("--quantization int4 --tensor-parallel-size 2: ")]
    assert not any(s["fits"] for s in e["splits"])
    for split in (["--count", 2], ["--tp", 2], ["--tensor-parallel-size", 2]):
        e = estimate(deepinfer, *guide, "--quantization", "int4", *split)
        assert e["split"] == "TP 2" and e["device_count"] == 2 and e["max_model_len"] == 131072
    text = call(deepinfer, "estimate", *guide, "--quantization", "int4", "--count", 2).stdout
    for part in ("2 x NVIDIA GeForce RTX 5090", "split              TP 2", "does not fit", "goes through the host",
                 "no card was measured"):
        assert part in text, text
    one = call(deepinfer, "estimate", "--model", small, "--gpu", "5090").stdout
    assert "splits, the best first" not in one, "one card, one way"
    # The load that rates are for.
    long = estimate(deepinfer, *guide, "--quantization", "int4", "--tp", 2, "--prompt-tokens", 30000)
    assert long["splits"][0]["first_token_seconds"] > 20 * e["splits"][0]["first_token_seconds"]


def test_splits_of_the_threads_of_a_cpu(deepinfer, default_model):
    e = estimate(deepinfer, "--model", default_model, "--device", "cpu", "--threads", "2", "--splits")
    assert {s["split"] for s in e["splits"]} == {"one device", "TP 2", "PP 2", "DP 2"}
    assert all(s["fits"] and s["requests_per_second"] > 0 for s in e["splits"])
    e = estimate(deepinfer, "--model", default_model, "--device", "cpu", "--tp", 2)
    assert [s["split"] for s in e["splits"]] == ["TP 2"]


def test_settings_count(deepinfer, tmp_path):
    model = ["--model", folder(tmp_path / "8b", LLAMA_8B)]
    plain = estimate(deepinfer, *model, "--gpu", "4090")
    assert plain["max_model_len"] < 131072
    fp8 = estimate(deepinfer, *model, "--gpu", "4090", "--kv-cache-dtype", "fp8")
    assert 2 * fp8["kv_bytes_per_token"] == plain["kv_bytes_per_token"]
    short = estimate(deepinfer, *model, "--gpu", "4090", "--max-model-len", 4096)
    assert short["max_model_len"] == 4096 and short["sequences"][-1]["context"] == 4096
    too_long = estimate(deepinfer, *model, "--gpu", "4090", "--max-model-len", 131072, code=4)
    assert "model.max_model_len" in too_long["problem"]
    assert any("--kv-cache-dtype fp8" in r or "--max-model-len auto" in r for r in too_long["remedies"])
    memory = estimate(deepinfer, *model, "--memory", "24GiB")
    assert memory["memory_bytes"] == 24 << 30 and memory["kv_dtype"] == "BF16"
    file = tmp_path / "my.yaml"
    file.write_text("gpu:\n  gpu_memory_utilization: 0.8\n")
    assert estimate(deepinfer, *model, "--gpu", "4090", "--config", file)["kv_tokens"] < plain["kv_tokens"]


@pytest.mark.parametrize("args", [[], ["--kv-cache-dtype", "int8"], ["--max-model-len", "1000"],
                                  ["--kv-cache-memory-bytes", "50000000"]])
def test_it_is_what_serve_plans_on_the_cpu(deepinfer, default_model, args):
    settings = ["--model", str(default_model), "--device", "cpu", *args]
    e = estimate(deepinfer, *settings)
    assert e["fits"] and e["weights"] == "Q4_1"
    with subprocess.Popen([deepinfer, "serve", "--port", "0", *settings], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True) as server:
        text = ""
        for line in server.stdout:
            text += line
            if "KV cache" in line:
                break
        server.terminate()
        text += server.communicate(timeout=60)[0]
    planned = re.search(r"of (\w+): (\d+) blocks, (\d+) tokens", text)
    assert planned, text
    assert (e["kv_dtype"], e["kv_blocks"], e["kv_tokens"]) == (planned[1], int(planned[2]), int(planned[3]))


def test_without_a_gpu_it_is_this_machine(deepinfer, default_model, build_dir):
    e = estimate(deepinfer, "--model", default_model, env=fake_gpus(build_dir, "init=9"))
    assert e["device"] == "CPU" and e["fits"] and "buffer_bytes" not in e
    assert e["model_context"] == e["max_model_len"] == 8192
    machine = estimate(deepinfer, "--model", default_model, "--device", "cpu", "--memory", "90MiB", code=4)
    assert "may use 90 MiB" in machine["problem"]


def test_quantized_checkpoints(deepinfer, tmp_path):
    awq = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}
    e = estimate(deepinfer, "--model", folder(tmp_path / "awq", LLAMA_8B | {"quantization_config": awq}), "--gpu",
                 "4090")
    assert "AWQ" in e["weights"]
    assert e["weight_bytes"] == pytest.approx(5.73e9, rel=0.01)
    done = call(deepinfer, "estimate", "--model", tmp_path / "awq", "--gpu", "4090", "--quantization", "gptq")
    assert done.returncode == 2 and "AWQ" in done.stderr


@pytest.mark.parametrize("args, code, words", [
    (["--gpu", "RTX 5909"], 2, ["RTX 5909", "did you mean 'RTX 5090'", "--memory"]),
    (["--gpu", "A100"], 2, ["A100 40GB, A100 80GB"]),
    (["--gpu", "T4"], 2, ["7.5", "8.0"]),
    (["--gpu", "5090", "--memory", "24GiB"], 2, ["--gpu and --memory"]),
    (["--memory", "lots"], 2, ["'lots'", "24GiB"]),
    (["--memory", "-3GiB"], 2, ["-3GiB"]),
    (["--memory", "24 parsecs"], 2, ["parsecs"]),
    (["--gpu", "H200", "--count", "0"], 2, ["--count"]),
    (["--gpu", "H200", "--tp", "3"], 2, ["divisor"]),
    (["--gpu", "H200", "--count", "4", "--tp", "2", "--dp", "3"], 2, ["TP 2, DP 3 takes 6 cards, but there are 4"]),
    (["--gpu", "H200", "--pp", "33"], 2, ["33", "32 layers"]),
    (["--gpu", "H200", "--tp", "0"], 2, ["--tp"]),
    (["--device", "cpu", "--count", "2"], 2, ["--count"]),
    (["--gpu", "5090", "--kv-cache-dtype", "int8"], 2, ["int8"]),
    (["--gpu", "5090", "--max-model-len", "200000"], 2, ["131072"]),
    (["--gpus", "5090"], 2, ["--gpu"]),
])
def test_what_is_wrong_is_said(deepinfer, tmp_path, args, code, words):
    done = call(deepinfer, "estimate", "--model", folder(tmp_path / "8b", LLAMA_8B), *args)
    assert done.returncode == code, done
    for word in words:
        assert word in done.stderr, done.stderr


@pytest.mark.parametrize("name, config, words", [
    ("missing", None, ["no such file or folder"]),
    ("empty", {}, ["config.json", "architectures"]),
    ("other", LLAMA_8B | {"architectures": ["MambaForCausalLM"]}, ["MambaForCausalLM", "LlamaForCausalLM"]),
    ("broken", LLAMA_8B | {"num_hidden_layers": "many"}, ["num_hidden_layers"]),
])
def test_a_model_that_is_none_is_3(deepinfer, tmp_path, name, config, words):
    if config is not None:
        folder(tmp_path / name, config)
    done = call(deepinfer, "estimate", "--model", tmp_path / name, "--gpu", "5090")
    assert done.returncode == 3, done
    for word in words:
        assert word in done.stderr, done.stderr
