"""Prompts and parameters as the engine's requests, and its news as outputs. Private to the package."""
from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .errors import EngineClosedError, RequestError, from_core
from .outputs import CompletionOutput, RequestMetrics, RequestOutput, StreamPiece, TokenLogprob
from .sampling import SamplingParams


def dumps(body: dict[str, Any]) -> str:
    try:
        return utf8(json.dumps(body, ensure_ascii=False, separators=(",", ":"), default=_plain), "a prompt or parameter")
    except (TypeError, ValueError, RecursionError) as e:
        if isinstance(e, RequestError):
            raise
        raise RequestError(f"a prompt or parameter is no plain value: {e}", "invalid_argument") from e


def _plain(value: Any) -> Any:
    """For what json does not know: numpy's numbers and arrays among others."""
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"got {type(value).__name__}")


def utf8(text: str, what: str) -> str:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as e:
            raise RequestError(f"{what}: got a lone surrogate ({text[e.start]!r} at {e.start}), expected a text that UTF-8 can hold",
                               "invalid_argument") from e
    return text


def described(value: Any) -> str:
    if isinstance(value, Sequence) and len(value) == 0:
        return "an empty text" if isinstance(value, str) else "an empty list"
    return type(value).__name__


def is_ids(prompt: Any) -> bool:
    return isinstance(prompt, Sequence) and not isinstance(prompt, (str, bytes)) and all(
        isinstance(t, int) and not isinstance(t, bool) for t in prompt)


def is_conversation(prompt: Any) -> bool:
    return (isinstance(prompt, Sequence) and not isinstance(prompt, (str, bytes)) and len(prompt) > 0
            and all(isinstance(m, Mapping) and "role" in m for m in prompt))


def one_prompt(prompt: Any, index: int) -> Any:
    if isinstance(prompt, Mapping):  # vLLM's forms
        prompt = prompt.get("prompt_token_ids", prompt.get("prompt"))
    if isinstance(prompt, str):
        return prompt
    if hasattr(prompt, "tolist"):
        prompt = prompt.tolist()
    if is_ids(prompt) and len(prompt) > 0:
        return list(prompt)
    raise RequestError(f"prompts[{index}]: got {described(prompt)}, expected a text or a list of token ids", "invalid_argument",
                       "prompts")


def many_prompts(prompts: Any) -> list[Any]:
    if isinstance(prompts, (str, Mapping)) or (isinstance(prompts, Sequence) and len(prompts) > 0 and is_ids(prompts)):
        return [one_prompt(prompts, 0)]
    if isinstance(prompts, bytes) or not isinstance(prompts, Iterable):
        raise RequestError(f"prompts: got {type(prompts).__name__}, expected a text or a list of them", "invalid_argument", "prompts")
    return [one_prompt(p, i) for i, p in enumerate(prompts)]


def conversations(messages: Any) -> list[list[Mapping[str, Any]]]:
    if is_conversation(messages):
        return [list(messages)]
    if isinstance(messages, Sequence) and not isinstance(messages, (str, bytes)) and all(is_conversation(m) for m in messages):
        return [list(m) for m in messages]
    raise RequestError('messages: expected a list of {"role": ..., "content": ...}, or a list of such lists',
                       "invalid_argument", "messages")


def sampling(params: SamplingParams | Sequence[SamplingParams] | None, number: int, chat: bool = False) -> list[dict[str, Any]]:
    many = params if isinstance(params, Sequence) else [params] * number
    if len(many) != number:
        raise RequestError(f"sampling_params: got {len(many)}, expected one for each of the {number} prompts", "invalid_argument",
                           "sampling_params")
    out = []
    for p in many:
        if p is not None and not isinstance(p, SamplingParams):
            raise TypeError(f"sampling_params: got {type(p).__name__}, expected SamplingParams")
        body = {} if p is None else p.to_dict()
        if chat and type(body.get("logprobs")) is int:  # two fields in the API's chat form
            body |= {"logprobs": True, "top_logprobs": body["logprobs"]}
        out.append(body | {"return_token_ids": True})
    return out


def _logprobs(entries: list[Any] | None) -> list[TokenLogprob]:
    return [TokenLogprob(token, logprob, rank, top) for token, logprob, rank, top in entries or []]


def piece(choice: Any) -> StreamPiece:
    index, text, ids, logprobs, finish, stop = choice
    return StreamPiece(index, text, ids, finish or None, stop, _logprobs(logprobs) if logprobs else None)


def output(request: int, prompt: Any, ids: list[int], choices: list[Any], end: dict[str, Any], body: dict[str, Any]) -> RequestOutput:
    asked = body.get("logprobs") is not None and body.get("logprobs") is not False
    outputs = [CompletionOutput(index, text, tokens, finish or None, stop, _logprobs(logprobs) if asked else None)
               for index, text, tokens, logprobs, finish, stop in choices]
    metrics = RequestMetrics(end["queue"], end["first_token"], end["seconds"], end["prompt_tokens"], end["completion_tokens"],
                             end["cached_tokens"])
    scores: list[TokenLogprob | None] | None = None
    if body.get("prompt_logprobs") is not None:
        scores = [None, *_logprobs(end["prompt_logprobs"])]  # nothing comes before the first token
    return RequestOutput(request, prompt, ids, outputs, metrics, scores)


def raise_error(end: dict[str, Any]) -> None:
    if end["error"] is not None:
        code, message, param = end["error"]
        if code == "unavailable":
            raise EngineClosedError("the engine was closed before the answer was complete", code)
        raise from_core(code, message, param)
