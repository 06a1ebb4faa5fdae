"""The engine in this process."""
from __future__ import annotations

import asyncio
import atexit
import ctypes
import json
import sys
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any, Union

from . import _core
from .config import Config
from .errors import EngineClosedError, RequestError, from_core
from .outputs import CompletionOutput, RequestMetrics, RequestOutput, StreamPiece, TokenLogprob
from .sampling import SamplingParams

Prompt = Union[str, Sequence[int]]
Message = dict[str, Any]
_POLL = 0.1  # seconds after which a wait looks for signals

_engines: weakref.WeakSet[InferenceEngine] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """While the interpreter is whole: threads that outlive it cannot be ended cleanly."""
    for engine in list(_engines):
        engine.close()


class InferenceEngine:
    """A model, loaded and ready. Any thread may call any method; asyncio has forms of its own.

    >>> engine = InferenceEngine(Config(model="model.gguf"))
    >>> outputs = engine.generate(prompts=["Hello", "Good morning"])

    Weights and cache are given back by close(), by leaving a `with` block, or with the object.
    """

    def __init__(self, config: Config | str | None = None, *, model: str | None = None, **settings: Any) -> None:
        """Loads the model of `config` (or `model`, with settings by name: max_num_seqs=64).

        Raises ConfigError, ModelError, OutOfMemoryError.
        """
        if isinstance(config, str):
            config, model = None, config
        if config is None:
            config = Config()
        elif not isinstance(config, Config):
            raise TypeError(f"InferenceEngine: got {type(config).__name__}, expected a Config or a model's name")
        if model is not None:
            settings["model"] = model
        config._update(settings)
        self.config = config
        self._core = _core.EngineCore(config._settings)
        _engines.add(self)

    # Answers, whole.

    def generate(
        self,
        prompts: Prompt | Iterable[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool | Callable[..., Any] = True,
        *,
        priority: int = 0,
    ) -> list[RequestOutput]:
        """Continues each prompt (a text, or token ids); the outputs are in the order of the prompts.

        `sampling_params`: one for all, or one for each prompt. `use_tqdm`: show progress on standard error for more than one
        prompt, when tqdm is installed. Ctrl-C cancels all of it. Raises RequestError for the first prompt or parameter
        that is wrong; nothing else has run then.
        """
        inputs = _prompts(prompts)
        bodies = [{"prompt": p, **params} for p, params in zip(inputs, _params(sampling_params, len(inputs)))]
        return self._run(inputs, bodies, False, priority, use_tqdm)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool | Callable[..., Any] = True,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: dict[str, Any] | None = None,
        priority: int = 0,
    ) -> list[RequestOutput]:
        """Answers a conversation, or each of several, through the model's chat template."""
        chats = _conversations(messages)
        extra: dict[str, Any] = {"add_generation_prompt": add_generation_prompt,
                                 "continue_final_message": continue_final_message}
        if chat_template_kwargs:
            extra["chat_template_kwargs"] = chat_template_kwargs
        bodies = [{"messages": m, **extra, **params} for m, params in zip(chats, _params(sampling_params, len(chats), True))]
        return self._run(chats, bodies, True, priority, use_tqdm)

    async def agenerate(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> RequestOutput:
        """generate() of one prompt for asyncio; being cancelled cancels the request."""
        return await self._arun(prompt, {"prompt": _prompt(prompt, 0), **_params(sampling_params, 1)[0]}, False)

    async def achat(self, messages: Sequence[Message], sampling_params: SamplingParams | None = None) -> RequestOutput:
        """chat() of one conversation for asyncio."""
        return await self._arun(list(messages), {"messages": list(messages), **_params(sampling_params, 1, True)[0]}, True)

    # Answers, as they grow.

    def stream(self, prompt: Prompt | Sequence[Message], sampling_params: SamplingParams | None = None) -> Iterator[StreamPiece]:
        """The answer in pieces. A list of messages is a conversation. Leaving the loop cancels the rest."""
        channel = _core.Channel()
        request = self._start(channel, prompt, sampling_params)
        done = False
        try:
            while not done:
                for _, choices, end in channel.take(_POLL):
                    yield from map(_piece, choices)
                    if end is not None:
                        done = True
                        _raise(end)
        finally:
            if not done:
                self._core.cancel(request)

    async def astream(self, prompt: Prompt | Sequence[Message],
                      sampling_params: SamplingParams | None = None) -> AsyncIterator[StreamPiece]:
        """stream() for asyncio."""
        channel = _core.Channel()
        request = self._start(channel, prompt, sampling_params)
        done = False
        try:
            with _Readable(channel) as readable:
                while not done:
                    await readable.wait()
                    for _, choices, end in channel.take(0):
                        for choice in choices:
                            yield _piece(choice)
                        if end is not None:
                            done = True
                            _raise(end)
        finally:
            if not done:
                self._core.cancel(request)

    # Text and tokens.

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text."""
        if not isinstance(text, str):
            raise TypeError(f"encode: got {type(text).__name__}, expected a text")
        return self._core.encode(text, add_special_tokens)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids. Raises RequestError for one that is not in the vocabulary."""
        return self._core.decode(list(token_ids), skip_special_tokens)

    # The engine itself.

    @property
    def max_model_len(self) -> int:
        """Tokens of the longest sequence, prompt and answer."""
        return self._core.facts()["max_model_len"]

    def stats(self) -> dict[str, Any]:
        """What the engine does and holds: requests, blocks of the KV cache, tokens so far, bytes of the weights."""
        return self._core.facts()

    def reset_prefix_cache(self) -> bool:
        """Forgets what finished prompts left in the KV cache; False while requests run."""
        return self._core.reset_prefix_cache()

    def close(self) -> None:
        """Ends what runs (EngineClosedError there) and gives the memory back. May be called again."""
        self._core.close()
        _engines.discard(self)

    @property
    def closed(self) -> bool:
        return self._core.closed()

    def __enter__(self) -> InferenceEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<InferenceEngine {'closed' if self.closed else ', '.join(self._core.facts()['names'])}>"

    # How it is done.

    def _start(self, channel: _core.Channel, prompt: Any, params: SamplingParams | None) -> int:
        chat = _is_conversation(prompt)
        body = {"messages": list(prompt)} if chat else {"prompt": _prompt(prompt, 0)}
        body |= _params(params, 1, chat)[0]
        return self._core.submit(channel, _dumps(body), chat, True)[0]

    def _run(self, inputs: list[Any], bodies: list[dict[str, Any]], chat: bool, priority: int, use_tqdm: Any) -> list[RequestOutput]:
        channel = _core.Channel()
        order: dict[int, int] = {}
        token_ids: list[list[int]] = []
        outputs: list[RequestOutput | None] = [None] * len(inputs)
        bar = _progress(use_tqdm, len(inputs))
        try:
            for i, body in enumerate(bodies):
                request, ids = self._core.submit(channel, _dumps(body | {"priority": priority}), chat, False)
                order[request] = i
                token_ids.append(ids)
            left = len(inputs)
            while left:
                for request, choices, end in channel.take(_POLL):
                    _raise(end)
                    i = order.pop(request)
                    outputs[i] = _output(request, inputs[i], token_ids[i], choices, end, bodies[i])
                    left -= 1
                    if bar is not None:
                        bar.update(1)
        finally:
            for request in order:
                self._core.cancel(request)
            if bar is not None:
                bar.close()
        return outputs  # type: ignore[return-value]

    async def _arun(self, prompt: Any, body: dict[str, Any], chat: bool) -> RequestOutput:
        channel = _core.Channel()
        request, ids = self._core.submit(channel, _dumps(body), chat, False)
        done = False
        try:
            with _Readable(channel) as readable:
                await readable.wait()
                (_, choices, end), = channel.take(0)
                done = True
                _raise(end)
                return _output(request, prompt, ids, choices, end, body)
        finally:
            if not done:
                self._core.cancel(request)


class LLM(InferenceEngine):
    """InferenceEngine by the name and arguments that vLLM's users know: ``LLM(model=..., max_num_seqs=64)``."""

    def __init__(self, model: str | None = None, **settings: Any) -> None:
        super().__init__(model=model, **settings)


def memory_summary() -> str:
    """What the engines of this process hold: weights, KV blocks, graphs and buffers, and the process as a whole.

    Takes the place of torch.cuda.memory_summary().
    """
    lines = []
    for engine in list(_engines):
        f = engine.stats()
        block = f["kv_bytes"] / max(f["total_blocks"], 1)
        used = (f["total_blocks"] - f["free_blocks"]) * block
        lines += [f"{f['names'][0]} on {f['device']}",
                  f"  weights             {f['weight_bytes'] / 2**20:10.1f} MiB",
                  f"  KV cache ({f['kv_dtype']})".ljust(22) + f"{f['kv_bytes'] / 2**20:10.1f} MiB, {used / 2**20:.1f} in use, "
                  f"{f['total_blocks']} blocks of {f['block_size']} tokens"]
        if f["memory"]:
            lines.append(f"  measured            {f['memory']}")
    if not lines:
        lines.append("no engine is loaded")
    with open("/proc/self/status") as status:
        resident = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
    lines.append(f"this process          {resident / 2**10:10.1f} MiB resident")
    return "\n".join(lines)


def empty_cache() -> None:
    """Forgets the prefix caches of idle engines and gives free memory of the process back to the system.

    Takes the place of torch.cuda.empty_cache(). The KV cache itself stays: its size is gpu.kv_cache_memory_bytes.
    """
    for engine in list(_engines):
        engine.reset_prefix_cache()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        pass  # a C library without it keeps what it has


class _Readable:
    """Waits for a channel's file in the running loop."""

    def __init__(self, channel: _core.Channel) -> None:
        self._fd, self._event, self._loop = channel.fd(), asyncio.Event(), asyncio.get_running_loop()

    def __enter__(self) -> _Readable:
        self._loop.add_reader(self._fd, self._event.set)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.remove_reader(self._fd)

    async def wait(self) -> None:
        await self._event.wait()
        self._event.clear()


def _dumps(body: dict[str, Any]) -> str:
    try:
        return json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError) as e:
        raise RequestError(f"a prompt or parameter is no plain value: {e}", "invalid_argument") from e


def _is_ids(prompt: Any) -> bool:
    return isinstance(prompt, Sequence) and not isinstance(prompt, (str, bytes)) and all(
        isinstance(t, int) and not isinstance(t, bool) for t in prompt)


def _is_conversation(prompt: Any) -> bool:
    return isinstance(prompt, Sequence) and not isinstance(prompt, (str, bytes)) and len(prompt) > 0 and isinstance(prompt[0], dict)


def _prompt(prompt: Any, index: int) -> Any:
    if isinstance(prompt, dict):  # vLLM's forms
        prompt = prompt.get("prompt_token_ids", prompt.get("prompt"))
    if isinstance(prompt, str):
        return prompt
    if _is_ids(prompt) and len(prompt) > 0:
        return list(prompt)
    what = "an empty list" if isinstance(prompt, Sequence) and len(prompt) == 0 else f"{type(prompt).__name__}"
    raise RequestError(f"prompts[{index}]: got {what}, expected a text or a list of token ids", "invalid_argument", "prompts")


def _prompts(prompts: Any) -> list[Any]:
    if isinstance(prompts, (str, dict)) or (isinstance(prompts, Sequence) and len(prompts) > 0 and _is_ids(prompts)):
        return [_prompt(prompts, 0)]
    if isinstance(prompts, bytes) or not isinstance(prompts, Iterable):
        raise RequestError(f"prompts: got {type(prompts).__name__}, expected a text or a list of them", "invalid_argument", "prompts")
    return [_prompt(p, i) for i, p in enumerate(prompts)]


def _conversations(messages: Any) -> list[list[Message]]:
    if _is_conversation(messages):
        return [list(messages)]
    if isinstance(messages, Sequence) and not isinstance(messages, (str, bytes)) and all(_is_conversation(m) for m in messages):
        return [list(m) for m in messages]
    raise RequestError('messages: expected a list of {"role": ..., "content": ...}, or a list of such lists',
                       "invalid_argument", "messages")


def _params(params: SamplingParams | Sequence[SamplingParams] | None, number: int, chat: bool = False) -> list[dict[str, Any]]:
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


def _logprobs(entries: list[Any]) -> list[TokenLogprob]:
    return [TokenLogprob(token, logprob, rank, top) for token, logprob, rank, top in entries]


def _piece(choice: Any) -> StreamPiece:
    index, text, ids, logprobs, finish, stop = choice
    return StreamPiece(index, text, ids, finish or None, stop, _logprobs(logprobs) if logprobs else None)


def _output(request: int, prompt: Any, ids: list[int], choices: list[Any], end: dict[str, Any], body: dict[str, Any]) -> RequestOutput:
    asked = body.get("logprobs") is not None and body.get("logprobs") is not False
    outputs = [CompletionOutput(index, text, tokens, finish or None, stop, _logprobs(logprobs) if asked else None)
               for index, text, tokens, logprobs, finish, stop in choices]
    metrics = RequestMetrics(end["queue"], end["first_token"], end["seconds"], end["prompt_tokens"], end["completion_tokens"],
                             end["cached_tokens"])
    scores: list[TokenLogprob | None] | None = None
    if body.get("prompt_logprobs") is not None:
        scores = [None, *_logprobs(end["prompt_logprobs"])]  # nothing comes before the first token
    return RequestOutput(request, prompt, ids, outputs, metrics, scores)


def _raise(end: dict[str, Any] | None) -> None:
    if end is not None and end["error"] is not None:
        code, message, param = end["error"]
        if code == "unavailable":
            raise EngineClosedError("the engine was closed before the answer was complete", code)
        raise from_core(code, message, param)


def _progress(use_tqdm: Any, total: int) -> Any:
    if not use_tqdm or total < 2:
        return None
    if not callable(use_tqdm):
        if not sys.stderr.isatty():
            return None
        try:
            from tqdm.auto import tqdm as use_tqdm
        except ImportError:
            return None
    return use_tqdm(total=total, desc="prompts", unit="prompt")
