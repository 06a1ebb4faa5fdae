import pytest

from deepinfer import Config
from deepinfer.gpu_utils import GPUDetector, GPUError


def test_without_a_gpu(capsys):
    detector = GPUDetector()
    if detector.gpu_count():
        pytest.skip("this machine has a GPU")
    assert detector.get_gpus() == [] and detector.get_nvidia_5090_gpus() == []
    assert detector.has_nvidia_5090() is False and detector.has_nvidia_4090() is False
    assert isinstance(detector.get_optimal_config(), Config)
    with pytest.raises(GPUError, match="no GPU is there"):
        detector.get_gpu_info(0)
    detector.print_gpu_info()
    assert capsys.readouterr().out.strip() == detector.message != ""
