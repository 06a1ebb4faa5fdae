"""The engine in this process."""
from __future__ import annotations

import atexit
import errno
import importlib
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Union

from . import _core, memory
from . import _wire as wire
from .config import Config
from .errors import EngineClosedError, RequestError
from .outputs import RequestOutput, StreamPiece
from .sampling import SamplingParams

Prompt = Union[str, Sequence[int], Mapping[str, Any]]  # a text, token ids, or vLLM's {"prompt": ...}
Message = Mapping[str, Any]
_POLL = 0.1  # seconds after which a wait looks for signals


@atexit.register
def _close_all() -> None:
    """While the interpreter is whole: threads that outlive it cannot be ended cleanly."""
    for engine in list(memory.engines):
        engine.close()


class InferenceEngine:
    """A model, loaded and ready. Any thread may call any method; asyncio has forms of its own.

    >>> engine = InferenceEngine(Config(model="model.gguf"))
    >>> outputs = engine.generate(prompts=["Hello", "Good morning"])

    Weights and cache are given back by close(), by leaving a `with` block, or with the object.
    """

    def __init__(self, config: Config | str | None = None, *, model: str | None = None, **settings: Any) -> None:
        """Loads the model of `config` (or `model`, with settings by name: max_num_seqs=64), fetching it from the Hugging Face
        hub when it is one of those. Other threads of Python go on meanwhile.

        Raises ConfigError for a wrong setting; ModelError for a model that is missing, broken or not supported;
        OutOfMemoryError when model and cache do not fit, or not beside this process's other engines.
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
        others = [engine.memory_stats() for engine in list(memory.engines) if not engine.closed]
        held = sum(m["weights"] + m["kv_cache"] + m["workspaces"] for m in others if not m["on_gpu"])
        self._core = _core.EngineCore(config._settings, held)
        memory.engines.add(self)

    # Answers, whole.

    def generate(
        self,
        prompts: Prompt | Iterable[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool | Callable[..., Any] = True,
        *,
        priority: int = 0,
    ) -> list[RequestOutput]:
        """Continues each prompt; the outputs are in the order of the prompts.

        Args:
            prompts: one or any number of them; the engine batches them. A prompt is a text, or a list of 1 to
                `max_model_len` - 1 token ids, each from 0 to `vocab_size` - 1.
            sampling_params: one for all, one for each prompt, or None for the defaults of settings and model.
            use_tqdm: show progress on standard error for more than one prompt, when that is a terminal and tqdm is
                installed. Or what is called instead, as tqdm is: ``use_tqdm(total=..., desc=..., unit=...)``.
            priority: a lower one is served first.

        Ctrl-C cancels all of it, and so does an exception of `use_tqdm`. Raises RequestError for the first prompt or
        parameter that is wrong (what was submitted before it is cancelled), EngineClosedError, EngineError.
        """
        inputs = wire.many_prompts(prompts)
        bodies = [{"prompt": p, **params} for p, params in zip(inputs, wire.sampling(sampling_params, len(inputs)))]
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
        """Answers a conversation, or each of several, through the model's chat template.

        `messages`: ``[{"role": "user", "content": "Hello"}, ...]``, or a list of such lists. `continue_final_message`: the
        answer goes on where the last message ends. The rest, and what is raised, is as in generate().
        """
        chats = wire.conversations(messages)
        extra: dict[str, Any] = {"add_generation_prompt": add_generation_prompt,
                                 "continue_final_message": continue_final_message}
        if chat_template_kwargs:
            extra["chat_template_kwargs"] = chat_template_kwargs
        bodies = [{"messages": m, **extra, **params} for m, params in zip(chats, wire.sampling(sampling_params, len(chats), True))]
        return self._run(chats, bodies, True, priority, use_tqdm)

    async def agenerate(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> RequestOutput:
        """generate() of one prompt for asyncio; being cancelled cancels the request. asyncio.gather() runs many at a time."""
        return await self._arun(prompt, {"prompt": wire.one_prompt(prompt, 0), **wire.sampling(sampling_params, 1)[0]}, False)

    async def achat(self, messages: Sequence[Message], sampling_params: SamplingParams | None = None) -> RequestOutput:
        """chat() of one conversation for asyncio."""
        chats = wire.conversations(messages)
        if len(chats) != 1:
            raise RequestError(f"messages: got {len(chats)} conversations, expected one", "invalid_argument", "messages")
        return await self._arun(chats[0], {"messages": chats[0], **wire.sampling(sampling_params, 1, True)[0]}, True)

    # Answers, as they grow.

    def stream(self, prompt: Prompt | Sequence[Message], sampling_params: SamplingParams | None = None) -> Iterator[StreamPiece]:
        """The answer in pieces, one or more tokens each, as they are generated. A list of messages is a conversation.

        The request starts with the first piece that is asked for, where its errors are raised too, as in generate();
        leaving the loop cancels what is left.
        """
        channel = _core.Channel()
        request = self._start(channel, prompt, sampling_params)
        done = False
        try:
            while not done:
                for _, choices, end in channel.take(_POLL):
                    yield from map(wire.piece, choices)
                    if end is not None:
                        done = True
                        wire.raise_error(end)
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
                            yield wire.piece(choice)
                        if end is not None:
                            done = True
                            wire.raise_error(end)
        finally:
            if not done:
                self._core.cancel(request)

    # Text and tokens.

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text, with the beginning of a sequence where the model wants one (`add_special_tokens`)."""
        if not isinstance(text, str):
            raise TypeError(f"encode: got {type(text).__name__}, expected a text")
        return self._core.encode(wire.utf8(text, "text"), add_special_tokens)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids, which may be none. Raises RequestError for one that is not in the vocabulary."""
        if not wire.is_ids(token_ids):
            raise TypeError(f"decode: got {wire.described(token_ids)}, expected a list of token ids")
        wrong = [t for t in token_ids if not 0 <= t < 1 << 31]
        if wrong:
            raise RequestError(f"token id: got {wrong[0]}, expected 0 to {self.vocab_size - 1}", "invalid_argument", "token_ids")
        return self._core.decode(list(token_ids), skip_special_tokens)

    # The engine itself.

    @property
    def max_model_len(self) -> int:
        """Tokens of the longest sequence, prompt and answer."""
        return int(self._core.facts()["max_model_len"])

    @property
    def vocab_size(self) -> int:
        """Token ids are from 0 to one less."""
        return int(self._core.facts()["vocab_size"])

    def stats(self) -> dict[str, Any]:
        """What the engine is and does: ``names``, ``device``, ``max_model_len``; requests ``running`` and ``waiting`` (sequences);
        blocks of the KV cache (``total_blocks``, ``free_blocks``, of which ``cached_blocks`` hold finished prompts); tokens
        so far (``prompt_tokens``, of which ``cached_tokens`` were not computed, ``generated_tokens``), ``steps``, ``preemptions``.
        """
        return self._core.facts()

    def memory_stats(self) -> dict[str, Any]:
        """What the engine holds, in bytes where nothing else is said:

        - ``engine``, ``device``, ``on_gpu``: whose memory it is
        - ``weights``: as they are packed
        - ``kv_cache``: of the whole pool; ``kv_cache_resident``: what of it takes memory (on a CPU what was ever used)
        - ``kv_blocks``, ``kv_blocks_used``, ``kv_blocks_cached`` (finished prompts, free for others), in blocks of ``block_size``
          tokens; ``kv_dtype``
        - ``graphs``: CUDA graphs; ``workspaces``: what steps compute in; ``pinned``: of the host, for copies to a GPU
        """
        f, held = self._core.facts(), self._core.memory()
        return {"engine": f["names"][0], "device": f["device"], "on_gpu": f["on_gpu"], **held, "kv_dtype": f["kv_dtype"],
                "block_size": f["block_size"], "kv_blocks": f["total_blocks"],
                "kv_blocks_used": f["total_blocks"] - f["free_blocks"], "kv_blocks_cached": f["cached_blocks"]}

    def memory_summary(self) -> str:
        """memory_stats() for people."""
        return memory.engine_text(self.memory_stats())

    def empty_cache(self) -> dict[str, int] | None:
        """Forgets what finished prompts left in the KV cache, and gives memory that no request needs back to the system.

        Returns ``prefix_blocks`` and ``prefix_bytes`` (forgotten; other prompts find that room) and ``freed_bytes`` (the
        system's again; 0 on a GPU, where the engine keeps what it planned with). None while requests run (after 0.1 s in
        which they may end): nothing is done.
        """
        m = self.memory_stats()
        emptied = self._core.empty_cache()
        if emptied is None:
            return None
        blocks, freed = emptied
        return {"prefix_blocks": blocks, "prefix_bytes": blocks * m["kv_cache"] // max(m["kv_blocks"], 1), "freed_bytes": freed}

    def reset_prefix_cache(self) -> bool:
        """Forgets what finished prompts left in the KV cache; False while requests run."""
        return self._core.reset_prefix_cache()

    def start_profile(self) -> None:
        """Records what the engine does, until stop_profile(). RuntimeError when it records already."""
        if not self._core.start_profile():
            raise RuntimeError("a profile is being recorded already: stop_profile() first")

    def stop_profile(self, file: str | os.PathLike[str] | None = None) -> dict[str, Any]:
        """Writes a trace for https://ui.perfetto.dev to ``file`` (left out: a new name in the current folder), and says where
        the time went.

        Returns ``file``, ``events`` and ``dropped`` (spans in the file, spans without room), ``seconds``, ``steps``, ``tokens``,
        ``rows_per_step``, ``shares`` (``name``, ``seconds``, ``percent`` of each, together 100), ``advice`` (sentences) and
        ``text``, all of it for people. RuntimeError when nothing is recorded, OSError when the file cannot be written.
        """
        stopped = self._core.stop_profile(os.fspath(file) if file is not None else "")
        if stopped is None:
            raise RuntimeError("no profile is being recorded: start_profile() first")
        report: dict[str, Any] = json.loads(stopped[0])
        if problem := report.pop("problem"):
            raise OSError(problem)
        return {**report, "text": stopped[1]}

    def close(self) -> None:
        """Ends what runs (EngineClosedError there) and gives the memory back. May be called again."""
        self._core.close()
        memory.engines.discard(self)

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._core.closed()

    def __enter__(self) -> InferenceEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError("an engine cannot be pickled or copied: another process makes its own")

    def __repr__(self) -> str:
        try:
            what = ", ".join(self._core.facts()["names"])
        except EngineClosedError:
            what = "closed" if self.closed else "of another process"
        return f"<{type(self).__name__} {what}>"

    # How it is done.

    def _start(self, channel: _core.Channel, prompt: Any, params: SamplingParams | None) -> int:
        chat = wire.is_conversation(prompt)
        body: dict[str, Any] = {"messages": list(prompt)} if chat else {"prompt": wire.one_prompt(prompt, 0)}
        body |= wire.sampling(params, 1, chat)[0]
        return self._core.submit(channel, wire.dumps(body), chat, True)[0]

    def _run(self, inputs: list[Any], bodies: list[dict[str, Any]], chat: bool, priority: int, use_tqdm: Any) -> list[RequestOutput]:
        channel = _core.Channel()
        order: dict[int, int] = {}
        token_ids: list[list[int]] = []
        outputs: list[RequestOutput | None] = [None] * len(inputs)
        bar = _progress(use_tqdm, len(inputs))
        try:
            for i, body in enumerate(bodies):
                request, ids = self._core.submit(channel, wire.dumps(body | {"priority": priority}), chat, False)
                order[request] = i
                token_ids.append(ids)
            left = len(inputs)
            while left:
                for request, choices, end in channel.take(_POLL):
                    if end is None:
                        continue  # only streams have news before
                    wire.raise_error(end)
                    i = order.pop(request)
                    outputs[i] = wire.output(request, inputs[i], token_ids[i], choices, end, bodies[i])
                    left -= 1
                    if bar is not None:
                        bar.update(1)
        finally:
            for request in order:
                self._core.cancel(request)
            if bar is not None:
                bar.close()
        return [output for output in outputs if output is not None]  # all of them

    async def _arun(self, prompt: Any, body: dict[str, Any], chat: bool) -> RequestOutput:
        channel = _core.Channel()
        request, ids = self._core.submit(channel, wire.dumps(body), chat, False)
        done = False
        try:
            with _Readable(channel) as readable:
                while True:
                    await readable.wait()
                    for _, choices, end in channel.take(0):
                        if end is None:
                            continue
                        done = True
                        wire.raise_error(end)
                        return wire.output(request, prompt, ids, choices, end, body)
        finally:
            if not done:
                self._core.cancel(request)


class LLM(InferenceEngine):
    """InferenceEngine by the name and arguments that vLLM's users know: ``LLM(model=..., max_num_seqs=64)``."""

    def __init__(self, model: str | None = None, **settings: Any) -> None:
        super().__init__(model=model, **settings)


class _Readable:
    """Waits for a channel's file in the running loop."""

    def __init__(self, channel: _core.Channel) -> None:
        import asyncio  # takes longer to import than all the rest

        self._fd, self._event, self._loop = channel.fd(), asyncio.Event(), asyncio.get_running_loop()

    def __enter__(self) -> _Readable:
        if self._fd < 0:
            raise OSError(errno.EMFILE, "no file is left for a request of asyncio: raise the limit (ulimit -n), or run fewer at once")
        self._loop.add_reader(self._fd, self._event.set)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.remove_reader(self._fd)

    async def wait(self) -> None:
        await self._event.wait()
        self._event.clear()


def _progress(use_tqdm: bool | Callable[..., Any], total: int) -> Any:
    if not use_tqdm or total < 2:
        return None
    make: Any = use_tqdm
    if not callable(make):
        if not sys.stderr.isatty():
            return None
        try:
            make = importlib.import_module("tqdm.auto").tqdm
        except ImportError:
            return None
    return make(total=total, desc="prompts", unit="prompt")
