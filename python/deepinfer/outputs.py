"""What a generation gives."""
from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class TokenLogprob:
    """A token with its natural-logarithm probability, of the raw logits.

    `rank`: 1 for the most likely token; of a prompt's tokens only, else 0.
    `top`: the most likely tokens as (id, logprob), most likely first, as many as were asked for.
    """

    token_id: int
    logprob: float
    rank: int = 0
    top: list[tuple[int, float]] = field(default_factory=list)


@dataclass(slots=True)
class CompletionOutput:
    """One answer to a prompt.

    `finish_reason`: "stop" (end of sequence, a stop string or id) or "length" (max_tokens, or the end of the context).
    `stop_reason`: the stop string or token id that ended it; None for the end of sequence.
    `logprobs`: one entry a token of `token_ids` that has text; None unless asked for.
    """

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    logprobs: list[TokenLogprob] | None = None


@dataclass(slots=True)
class RequestMetrics:
    """Of one request: seconds from its submission on, and tokens."""

    queue_time: float | None
    time_to_first_token: float | None
    total_time: float
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


@dataclass(slots=True)
class RequestOutput:
    """A prompt with its answers, `n` of them; `text`, `token_ids`, `logprobs` and `finish_reason` are those of the first."""

    request_id: int
    prompt: str | list[int] | list[dict[str, object]]
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    metrics: RequestMetrics
    prompt_logprobs: list[TokenLogprob | None] | None = None

    @property
    def text(self) -> str:
        return self.outputs[0].text

    @property
    def token_ids(self) -> list[int]:
        return self.outputs[0].token_ids

    @property
    def logprobs(self) -> list[TokenLogprob] | None:
        return self.outputs[0].logprobs

    @property
    def finish_reason(self) -> str | None:
        return self.outputs[0].finish_reason


@dataclass(slots=True)
class StreamPiece:
    """What is new of an answer: complete UTF-8, never a part of a stop string.

    `finish_reason` is None until the last piece of choice `index`.
    """

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    logprobs: list[TokenLogprob] | None = None
