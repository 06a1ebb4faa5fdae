"""Facts about the GPUs of this machine, from the driver (NVML). Nothing here starts CUDA."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from . import _core
from .config import Config
from .errors import DeepInferError


class GPUError(DeepInferError, RuntimeError):
    """There is no such GPU."""


@dataclass(slots=True)
class GPUInfo:
    """One GPU. What the driver does not tell is None.

    Memory in bytes; `utilization` in percent of the last sample period; `temperature` in degrees Celsius; `power` and
    `power_limit` in watts. `problem`: why it cannot be used, or "".
    """

    id: int
    name: str
    total_memory: int | None
    free_memory: int | None
    compute_capability: str | None
    driver_version: str | None
    cuda_version: str | None
    utilization: int | None
    temperature: int | None
    power: float | None
    power_limit: float | None
    uuid: str
    pci_bus_id: str
    problem: str
    is_5090: bool
    is_4090: bool
    settings: dict[str, str] = field(default_factory=dict)


class GPUDetector:
    """The visible GPUs (CUDA_VISIBLE_DEVICES holds), asked anew at each call."""

    def __init__(self) -> None:
        self.refresh()

    def refresh(self) -> None:
        """Asks the driver again."""
        report: dict[str, Any] = _core.detect_gpus()
        self._gpus = [GPUInfo(**gpu) for gpu in report["gpus"]]
        self._message: str = report["message"]
        self._table: str = report["table"]

    @property
    def message(self) -> str:
        """Why there is no usable GPU; "" when there is one."""
        return self._message

    def get_gpus(self) -> list[GPUInfo]:
        """All of them; empty without a GPU."""
        self.refresh()
        return list(self._gpus)

    def gpu_count(self) -> int:
        """How many there are."""
        return len(self.get_gpus())

    def has_nvidia_5090(self) -> bool:
        """Whether one of them is an RTX 5090."""
        return bool(self.get_nvidia_5090_gpus())

    def has_nvidia_4090(self) -> bool:
        """Whether one of them is an RTX 4090."""
        return any(gpu.is_4090 for gpu in self.get_gpus())

    def get_nvidia_5090_gpus(self) -> list[GPUInfo]:
        """The RTX 5090s; empty when there is none."""
        return [gpu for gpu in self.get_gpus() if gpu.is_5090]

    def get_gpu_info(self, index: int = 0) -> GPUInfo:
        """One GPU by its number, from 0, in the order of nvidia-smi. Raises GPUError when it is not there."""
        gpus = self.get_gpus()
        if isinstance(index, bool) or not isinstance(index, int):
            raise TypeError(f"get_gpu_info: got {index!r}, expected the number of a GPU")
        if not 0 <= index < len(gpus):
            there = f"0 to {len(gpus) - 1}" if gpus else f"no GPU is there: {self._message}"
            raise GPUError(f"GPU {index}: {'expected ' if gpus else ''}{there}", "memory")
        return gpus[index]

    def get_optimal_config(self) -> Config:
        """The settings that suit this machine: those of its first GPU that can be used, or of the CPU.

        Environment variables (DEEPINFER_MAX_NUM_SEQS) stand above them, as everywhere.
        """
        usable = [gpu.id for gpu in self.get_gpus() if not gpu.problem]
        return Config._of_gpu(usable[0]) if usable else Config()

    def print_gpu_info(self) -> None:
        """Prints a table of the GPUs, or why there is none."""
        self.refresh()
        print(self._table.rstrip() if self._gpus else self._message)
