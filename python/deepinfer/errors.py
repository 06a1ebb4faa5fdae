"""What can go wrong. The texts are the program's own: what, where, got, expected, what to do."""


class DeepInferError(Exception):
    """Base of all errors of this package.

    Attributes:
        code: the kind of error as a word: "config", "context_length", ...
        param: the name of the parameter at fault, or "".
    """

    def __init__(self, message: str, code: str = "internal", param: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.param = param


class ConfigError(DeepInferError, ValueError):
    """A setting is unknown, of the wrong type or out of range."""


class ModelError(DeepInferError):
    """A model file or folder is missing, broken or not supported."""


class OutOfMemoryError(DeepInferError, MemoryError):
    """The device or its memory does not suffice; the text names settings that would fit."""


class RequestError(DeepInferError, ValueError):
    """A prompt or sampling parameter is wrong, or does not fit the context."""


class EngineClosedError(DeepInferError, RuntimeError):
    """The engine was closed, or belongs to another process."""


class EngineError(DeepInferError, RuntimeError):
    """The engine failed while it ran a request."""


class CancelledError(DeepInferError):
    """The request was cancelled before its end."""


_CLASSES = {
    "invalid_argument": RequestError, "context_length": RequestError, "unsupported": RequestError,
    "not_found": ModelError, "model": ModelError, "config": ConfigError, "memory": OutOfMemoryError,
    "unavailable": EngineClosedError, "cancelled": CancelledError,
}


def from_core(code: str, message: str, param: str) -> DeepInferError:
    """The exception for an error of the engine."""
    return _CLASSES.get(code, EngineError)(message, code, param)
