"""How tokens are chosen: the parameters of a request."""
from __future__ import annotations

from typing import Any


class SamplingParams:
    """Parameters of a request, by the names of vLLM and of the server's API (docs/API.md has the table with ranges and
    defaults): temperature, top_p, top_k, min_p, max_tokens, min_tokens, n, seed, stop, stop_token_ids, logprobs,
    prompt_logprobs, presence_penalty, frequency_penalty, repetition_penalty, logit_bias, bad_words, ignore_eos, and
    llama.cpp's typical_p, dry_multiplier, xtc_probability, mirostat ...

    What is left out has the default of the settings (`sampling.*`), then of the model's generation_config.json, then the
    built-in one. Values are checked when a request is submitted: RequestError names the parameter.
    """

    def __init__(self, **params: Any) -> None:
        params.pop("output_kind", None)
        unknown = [name for name in params if name in _NOT_SAMPLING]
        if unknown:
            raise TypeError(f"SamplingParams: {unknown[0]} is no sampling parameter")
        self._params = {name: value for name, value in params.items() if value is not None}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._params.get(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_params":
            object.__setattr__(self, name, value)
        elif value is None:
            self._params.pop(name, None)
        else:
            self._params[name] = value

    def to_dict(self) -> dict[str, Any]:
        """What was set."""
        return dict(self._params)

    def clone(self) -> SamplingParams:
        return SamplingParams(**self._params)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SamplingParams) and self._params == other._params

    def __repr__(self) -> str:
        return "SamplingParams(" + ", ".join(f"{k}={v!r}" for k, v in self._params.items()) + ")"


_NOT_SAMPLING = frozenset({"prompt", "messages", "stream", "model", "stream_options", "echo"})
