import copy
import pickle

import pytest

from deepinfer import Config, ConfigError


def test_the_keys_of_the_guide_are_there():
    config = Config()
    wanted = {
        "model": ["name", "trust_remote_code", "revision", "tokenizer", "tokenizer_mode", "dtype", "max_model_len", "quantization"],
        "gpu": ["device", "gpu_memory_utilization", "tensor_parallel_size", "pipeline_parallel_size", "max_num_batched_tokens",
                "max_num_seqs", "enable_chunked_prefill", "enable_prefix_caching", "disable_log_stats",
                "nvidia_5090_optimizations", "kv_cache_dtype", "enforce_eager"],
        "server": ["host", "port", "log_level", "api_key", "allowed_origins", "timeout"],
        "sampling": ["temperature", "top_p", "top_k", "max_tokens"],
    }
    for section, keys in wanted.items():
        for key in keys:
            getattr(getattr(config, section), key)


def test_values_are_python_values():
    config = Config()
    assert config.gpu.enable_chunked_prefill is True
    assert isinstance(config.gpu.max_num_seqs, int)
    assert config.model.max_model_len is None  # auto
    config.model.max_model_len = 512
    assert config.model.max_model_len == 512
    config.model.max_model_len = "auto"
    assert config.model.max_model_len is None
    config.server.api_key = ["a", "b"]
    assert config.server.api_key == ["a", "b"]
    config.sampling.temperature = 0
    assert config.sampling.temperature == 0
    config.sampling.temperature = None
    assert config.sampling.temperature is None


def test_the_guides_loop():
    config = Config()
    for seqs in [128, 256, 384, 512]:
        config.gpu.max_num_seqs = seqs
        assert config.gpu.max_num_seqs == seqs


def test_a_wrong_name_names_the_nearest():
    config = Config()
    with pytest.raises(AttributeError, match="did you mean max_num_seqs"):
        config.gpu.max_num_seq = 3
    with pytest.raises(AttributeError, match=r"did you mean gpu.max_num_seqs"):
        config.server.max_num_seqs = 3
    with pytest.raises(AttributeError, match="did you mean gpu"):
        config.gpus
    with pytest.raises(ConfigError, match="did you mean max_num_seqs"):
        Config(max_num_seq=3)


@pytest.mark.parametrize("key, value", [("max_num_seqs", -3), ("max_num_seqs", "many"), ("max_num_seqs", 1.5),
                                        ("enforce_eager", 2), ("gpu_memory_utilization", 1.5), ("device", "tpu")])
def test_a_wrong_value_says_what_was_expected(key, value):
    config = Config()
    before = getattr(config.gpu, key)
    with pytest.raises(ConfigError, match=rf"gpu\.{key}: got .*expected"):
        setattr(config.gpu, key, value)
    assert getattr(config.gpu, key) == before


def test_yaml_and_back(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("gpu:\n  max_num_seqs: 7\n  enforce_eager: true\n")
    config = Config.from_yaml(file)
    assert config.gpu.max_num_seqs == 7 and config.gpu.enforce_eager is True
    config.gpu.max_num_seqs = 9
    file.write_text(config.to_yaml())
    assert Config.from_yaml(file).to_dict() == config.to_dict()
    file.write_text("gpu:\n  max_num_seq: 7\n")
    with pytest.raises(ConfigError, match="a.yaml:2"):
        Config.from_yaml(file)
    with pytest.raises(ConfigError, match="no such file"):
        Config.from_yaml(tmp_path / "missing.yaml")


def test_from_dict():
    config = Config.from_dict({"gpu": {"max_num_seqs": 5}, "model": {"name": "x"}})
    assert (config.gpu.max_num_seqs, config.model.name) == (5, "x")


def test_copies_are_equal_and_separate():
    config = Config(max_num_seqs=5, model="x", api_key=["a", "b"])
    for made in (copy.copy(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert made.to_dict() == config.to_dict()
        made.gpu.max_num_seqs = 6
        assert config.gpu.max_num_seqs == 5


def test_sections_cannot_be_replaced():
    with pytest.raises(AttributeError):
        Config().gpu = {}
