"""DeepInfer: fast inference of large language models, in Python.

>>> from deepinfer import LLM, SamplingParams
>>> with LLM(model="model.gguf") as engine:
...     for output in engine.generate(["Once upon a time"], SamplingParams(max_tokens=16)):
...         print(output.text)
"""
from . import _core
from .config import Config
from .engine import LLM, InferenceEngine
from .errors import (CancelledError, ConfigError, DeepInferError, EngineClosedError, EngineError, ModelError,
                     OutOfMemoryError, RequestError)
from .memory import empty_cache, memory_stats, memory_summary
from .outputs import CompletionOutput, RequestMetrics, RequestOutput, StreamPiece, TokenLogprob
from .sampling import SamplingParams

__version__ = _core.version()

__all__ = [
    "LLM", "CancelledError", "CompletionOutput", "Config", "ConfigError", "DeepInferError", "EngineClosedError",
    "EngineError", "InferenceEngine", "ModelError", "OutOfMemoryError", "RequestError", "RequestMetrics", "RequestOutput",
    "SamplingParams", "StreamPiece", "TokenLogprob", "__version__", "empty_cache", "memory_stats",
    "memory_summary",
]
