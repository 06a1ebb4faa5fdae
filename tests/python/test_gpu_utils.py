"""GPU facts, from a stand-in for the driver's library (tests/support/fake_nvml.cpp)."""
import dataclasses

import pytest

from deepinfer import Config
from deepinfer.gpu_utils import GPUDetector, GPUError

DRIVER = "driver=580.82.07;cuda=13000"
CARD_5090 = "gpu=NVIDIA GeForce RTX 5090|GPU-1|32607|30000|12.0|37|55|120500|575000|"
CARD_4090 = "gpu=NVIDIA GeForce RTX 4090|GPU-2|24564|24000|8.9|0|41|30250|450000|"
OLD_CARD = "gpu=NVIDIA GeForce GTX 1080|GPU-3|8192|8000|6.1|0|40|9000|180000|"
SILENT = "gpu=-|GPU-4|-|-|-|-|-|-|-"


@pytest.fixture
def machine(monkeypatch, build_dir):
    """Sets the GPUs of this machine: machine(item, ...)."""
    for name in ("CUDA_VISIBLE_DEVICES", "FAKE_NVML"):
        monkeypatch.delenv(name, raising=False)
    folder = build_dir / "tests/support/fake_nvml"
    assert (folder / "libnvidia-ml.so.1").exists(), f"{folder}: build the target fake_nvml"

    def of(*items):
        monkeypatch.setenv("DEEPINFER_CUDA_LIB_DIR", str(folder))
        monkeypatch.setenv("FAKE_NVML", ";".join(items))
        return GPUDetector()

    return of


def test_without_a_gpu(capsys):
    detector = GPUDetector()
    if detector.gpu_count():
        pytest.skip("this machine has a GPU")
    assert detector.get_gpus() == [] and detector.get_nvidia_5090_gpus() == []
    assert detector.has_nvidia_5090() is False and detector.has_nvidia_4090() is False
    assert detector.get_optimal_config().to_dict() == Config().to_dict()
    for index in (0, 1, -1):
        with pytest.raises(GPUError, match="no GPU is there"):
            detector.get_gpu_info(index)
    detector.print_gpu_info()
    assert capsys.readouterr().out.strip() == detector.message != ""


def test_several_cards(machine, capsys):
    detector = machine(DRIVER, CARD_4090, CARD_5090, CARD_5090.replace("GPU-1", "GPU-9"), SILENT)
    assert detector.gpu_count() == 4 and detector.message == ""
    assert detector.has_nvidia_5090() is True and detector.has_nvidia_4090() is True
    assert [g.id for g in detector.get_nvidia_5090_gpus()] == [1, 2]
    gpu = detector.get_gpu_info(1)
    assert gpu.name == "NVIDIA GeForce RTX 5090" and gpu.uuid == "GPU-1"
    assert (gpu.total_memory, gpu.free_memory) == (32607 << 20, 30000 << 20)
    assert (gpu.compute_capability, gpu.driver_version, gpu.cuda_version) == ("12.0", "580.82.07", "13.0")
    assert (gpu.utilization, gpu.temperature, gpu.power, gpu.power_limit) == (37, 55, 120.5, 575.0)
    assert gpu.is_5090 and not gpu.is_4090 and gpu.problem == ""
    assert f"Free memory: {gpu.free_memory / 1024**3:.2f} GB" == "Free memory: 29.30 GB"  # the guide's line
    detector.print_gpu_info()
    out = capsys.readouterr().out
    assert out.count("RTX 5090") >= 2 and "RTX 4090" in out and "580.82.07" in out
    with pytest.raises(GPUError, match=r"GPU 4: expected 0 to 3"):
        detector.get_gpu_info(4)
    with pytest.raises(GPUError, match=r"GPU -1: expected 0 to 3"):
        detector.get_gpu_info(-1)
    for wrong in ("0", 1.0, True, None):
        with pytest.raises(TypeError, match="expected the number of a GPU"):
            detector.get_gpu_info(wrong)


def test_what_a_card_does_not_tell_is_none(machine):
    gpu = machine(DRIVER, SILENT).get_gpu_info(0)
    facts = dataclasses.asdict(gpu)
    assert facts["uuid"] == "GPU-4"
    assert [k for k in ("total_memory", "free_memory", "compute_capability", "utilization", "temperature", "power", "power_limit")
            if facts[k] is not None] == []
    assert not gpu.is_5090 and not gpu.is_4090


@pytest.mark.parametrize("card, want", [(CARD_5090, (512, 0.95)), (CARD_4090, (384, 0.92))])
def test_the_settings_that_suit_a_card(machine, card, want):
    config = machine(DRIVER, card).get_optimal_config()
    assert (config.gpu.max_num_seqs, config.gpu.gpu_memory_utilization) == want
    assert isinstance(config, Config)


def test_the_environment_stands_above_them(machine, monkeypatch):
    monkeypatch.setenv("DEEPINFER_MAX_NUM_SEQS", "7")
    assert machine(DRIVER, CARD_5090).get_optimal_config().gpu.max_num_seqs == 7


def test_a_card_that_cannot_be_used(machine):
    detector = machine(DRIVER, OLD_CARD, CARD_4090)
    assert "compute capability 6.1" in detector.get_gpu_info(0).problem
    assert detector.get_optimal_config().gpu.max_num_seqs == 384  # of the one that can
    only = machine(DRIVER, OLD_CARD)
    assert "compute capability 6.1" in only.message
    assert only.get_optimal_config().to_dict() == Config().to_dict()


def test_an_old_driver(machine):
    gpu = machine("driver=535.1;cuda=12020", CARD_5090).get_gpu_info(0)
    assert "too old" in gpu.problem and gpu.cuda_version == "12.2"


@pytest.mark.parametrize("items, part", [(["init=9"], "driver is not loaded"), (["init=999"], "NVML"), ([DRIVER], "sees no GPU")])
def test_a_driver_that_gives_nothing(machine, items, part, capsys):
    detector = machine(*items)
    assert detector.get_gpus() == [] and part in detector.message
    assert not detector.has_nvidia_5090() and not detector.has_nvidia_4090()
    detector.print_gpu_info()
    assert part in capsys.readouterr().out
    with pytest.raises(GPUError, match=part):
        detector.get_gpu_info(0)


def test_a_lost_card_does_not_hide_the_others(machine):
    detector = machine(DRIVER, "gpu=lost|GPU-7", CARD_5090)
    assert "lost" in detector.get_gpu_info(0).problem
    assert [g.id for g in detector.get_nvidia_5090_gpus()] == [1]


def test_only_visible_cards_count(machine, monkeypatch):
    detector = machine(DRIVER, CARD_4090, CARD_5090)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [g.name for g in detector.get_gpus()] == ["NVIDIA GeForce RTX 5090"] and not detector.has_nvidia_4090()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert detector.get_gpus() == [] and detector.message
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert detector.gpu_count() == 2  # asked anew at each call
