"""How tokens are chosen: the parameters of a request."""
from __future__ import annotations

from typing import Any

from . import _core

_NOT_SAMPLING = frozenset({"prompt", "messages", "stream", "model", "stream_options", "echo", "return_token_ids"})
_NAMES = frozenset(_core.parameter_names()) - _NOT_SAMPLING


class SamplingParams:
    """Parameters of a request, by the names of vLLM and of the server's API (docs/API.md has the table with ranges and
    defaults): temperature, top_p, top_k, min_p, max_tokens, min_tokens, n, seed, stop, stop_token_ids, logprobs,
    prompt_logprobs, presence_penalty, frequency_penalty, repetition_penalty, logit_bias, bad_words, ignore_eos, and
    llama.cpp's typical_p, dry_multiplier, xtc_probability, mirostat ...

    What is left out, or None, has the default of the settings (`sampling.*`), then of the model's generation_config.json,
    then the built-in one. A wrong name is a TypeError (as an attribute an AttributeError) that names the nearest one; values
    are checked when a request is submitted: RequestError names the parameter.
    """

    def __init__(self, **params: Any) -> None:
        params.pop("output_kind", None)  # vLLM's; stream() and generate() say it here
        for name in params:
            if name not in _NAMES:
                raise TypeError(f"SamplingParams: {_unknown(name)}")
        self._params = {name: value for name, value in params.items() if value is not None}

    def __getattr__(self, name: str) -> Any:
        if name not in _NAMES:
            raise AttributeError(_unknown(name), name=name, obj=self)
        return self._params.get(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_params":
            object.__setattr__(self, name, value)
        elif name not in _NAMES:
            raise AttributeError(_unknown(name), name=name, obj=self)
        elif value is None:
            self._params.pop(name, None)
        else:
            self._params[name] = value

    def __dir__(self) -> list[str]:
        return [*sorted(_NAMES), "clone", "to_dict"]

    def to_dict(self) -> dict[str, Any]:
        """What was set."""
        return dict(self._params)

    def clone(self) -> SamplingParams:
        """Another one, equal to this."""
        return SamplingParams(**self._params)

    def __reduce__(self) -> Any:
        return _of, (self._params,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SamplingParams) and self._params == other._params

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "SamplingParams(" + ", ".join(f"{k}={v!r}" for k, v in self._params.items()) + ")"


def _of(params: dict[str, Any]) -> SamplingParams:
    return SamplingParams(**params)


def _unknown(name: str) -> str:
    near = _core.nearest(name, sorted(_NAMES))
    return f"{name} is no sampling parameter" + (f"; did you mean {near}?" if near else "")
