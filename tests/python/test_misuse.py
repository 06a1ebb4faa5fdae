"""What is wrong, or comes at the wrong time: an error of Python that says so, and an engine that goes on."""
import asyncio
import multiprocessing
import os
import pickle
import threading

import pytest

from deepinfer import (LLM, CancelledError, Config, ConfigError, DeepInferError, EngineClosedError, ModelError, OutOfMemoryError,
                       RequestError, SamplingParams)
from python_support import idle, script

GREEDY = SamplingParams(temperature=0, max_tokens=8)


@pytest.mark.parametrize("prompts, match", [([""], "prompt"), ([3.5], r"prompts\[0\]: got float"), (["a", None], r"prompts\[1\]: got NoneType"),
                                            (7, "prompts: got int"), (b"x", "prompts: got bytes"), ([[]], r"prompts\[0\]: got an empty list"),
                                            ([[1, -1]], "prompt"), ([True], "got bool"), ([["a"]], r"prompts\[0\]: got list"),
                                            ([{"text": "a"}], "got NoneType"), ({"prompt": 3}, "got int"), (["a\ud800"], "lone surrogate"),
                                            ([[10**30]], "prompt"), (None, "prompts: got NoneType"), ([b"x"], r"prompts\[0\]: got bytes"), ([[10**9]], "prompt"), (["x " * 4000], "context")])
def test_bad_prompts(engine, prompts, match):
    with pytest.raises(RequestError, match=match):
        engine.generate(prompts, GREEDY)
    assert idle(engine)


@pytest.mark.parametrize("params, match", [({"temperature": -1}, "temperature"), ({"top_p": 2}, "top_p"), ({"n": 0}, "n"),
                                           ({"stop": [3]}, "stop"), ({"max_tokens": 0}, "max_tokens"),
                                           ({"temperature": "hot"}, "temperature"), ({"seed": object()}, "got object"),
                                           ({"stop": "\udcff"}, "lone surrogate"), ({"max_tokens": float("nan")}, "JSON|max_tokens"),
                                           ({"logit_bias": {"x": 1}}, "logit_bias")])
def test_bad_parameters(engine, params, match):
    with pytest.raises(RequestError, match=match):
        engine.generate("x", SamplingParams(**params))


def test_wrong_numbers_and_types_of_parameters(engine):
    with pytest.raises(RequestError, match="got 1, expected one for each of the 2"):
        engine.generate(["a", "b"], [GREEDY])
    with pytest.raises(TypeError, match="expected SamplingParams"):
        engine.generate("a", {"temperature": 0})
    with pytest.raises(RequestError, match="expected one for each of the 1"):
        engine.generate("a", [])
    with pytest.raises(TypeError, match="prompt is no sampling parameter"):
        SamplingParams(prompt="a")
    with pytest.raises(TypeError, match="did you mean temperature"):
        SamplingParams(tempratur=1)
    params = SamplingParams(top_k=3)
    with pytest.raises(AttributeError, match="did you mean max_tokens"):
        params.max_token = 3
    with pytest.raises(AttributeError, match="did you mean top_k"):
        params.topk
    assert params.top_k == 3 and params.top_p is None and params.clone() == pickle.loads(pickle.dumps(params)) == params


def test_texts_and_ids(engine):
    for ids in ([-1], [engine.vocab_size], [1 << 40]):
        with pytest.raises(RequestError, match=f"expected 0 to {engine.vocab_size - 1}"):
            engine.decode(ids)
    for wrong in ("abc", ["a"], 3, None, [1.5], [True]):
        with pytest.raises(TypeError, match="expected a list of token ids"):
            engine.decode(wrong)
    for wrong in (b"x", None, 3, ["a"]):
        with pytest.raises(TypeError, match="expected a text"):
            engine.encode(wrong)
    with pytest.raises(RequestError, match="lone surrogate"):
        engine.encode("a\udc80")
    assert engine.encode("") == [] and engine.decode([]) == ""


@pytest.mark.parametrize("messages", ["hi", 3, None, [], [{}], [{"content": "x"}], ["hi"], [[{"role": "user", "content": "x"}], "hi"], b"x"])
def test_what_is_no_conversation(engine, messages):
    with pytest.raises(RequestError, match="messages"):
        assert engine.chat(messages, GREEDY) == []  # none given: none answered
        raise RequestError("messages: an empty list is no error")
    assert idle(engine)


@pytest.mark.parametrize("message", [{"role": "user", "content": 3}, {"role": 7, "content": "x"}, {"role": "user"}])
def test_a_wrong_message(engine, message):
    with pytest.raises(RequestError):
        engine.chat([message], GREEDY)


def test_a_wrong_prompt_among_many_stops_all(engine):
    with pytest.raises(RequestError, match=r"prompts\[9999\]"):
        engine.generate([*["a"] * 9999, None], GREEDY)
    with pytest.raises(RequestError):
        engine.generate([*[[100]] * 5000, [10**9]], SamplingParams(max_tokens=100, ignore_eos=True))
    assert idle(engine)


def test_prompts_that_raise(engine):
    def prompts():
        yield "a"
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        engine.generate(prompts(), GREEDY)
    assert len(engine.generate((p for p in ("a", "b")), GREEDY)) == 2


def test_progress_and_an_exception_in_it(engine):
    seen = []

    class Bar:
        def __init__(self, total, **_):
            self.total = total

        def update(self, n):
            seen.append(n)
            if len(seen) == 3:
                raise ValueError("enough")

        def close(self):
            seen.append("closed")

    with pytest.raises(ValueError, match="enough"):
        engine.generate(["a"] * 20, SamplingParams(max_tokens=50, ignore_eos=True), use_tqdm=Bar)
    assert seen == [1, 1, 1, "closed"] and idle(engine)


@pytest.mark.parametrize("where", ["made", "closed"])
def test_an_exception_at_the_ends_of_progress(engine, where):
    class Bar:
        def __init__(self, **_):
            if where == "made":
                raise ValueError("no bar")

        def update(self, n):
            pass

        def close(self):
            if where == "closed":
                raise ValueError("no end")

    with pytest.raises(ValueError, match="no bar|no end"):
        engine.generate(["a"] * 3, GREEDY, use_tqdm=Bar)
    assert idle(engine)


def test_a_callback_may_ask_the_engine(engine):
    class Bar:
        def __init__(self, **_):
            pass

        def update(self, n):
            assert engine.generate("b", GREEDY)[0].text

        def close(self):
            pass

    assert len(engine.generate(["a"] * 4, GREEDY, use_tqdm=Bar)) == 4


def test_an_exception_while_it_streams(engine):
    with pytest.raises(KeyError):
        for piece in engine.stream("Once", SamplingParams(max_tokens=400, ignore_eos=True)):
            raise KeyError(piece.text)
    assert idle(engine)


def test_an_exception_in_asyncio(engine):
    async def main():
        async for _ in engine.astream("Once", SamplingParams(max_tokens=400, ignore_eos=True)):
            raise KeyError("enough")

    with pytest.raises(KeyError):
        asyncio.run(main())

    async def wrong(call):
        with pytest.raises(RequestError):
            await call

    for call in (lambda: engine.agenerate(3), lambda: engine.agenerate(["a", "b"]), lambda: engine.achat("hi"), lambda: engine.achat([])):
        asyncio.run(wrong(call()))
    assert idle(engine)


def test_a_closed_engine(model):
    engine = LLM(model=model, max_model_len=128, device="cpu")
    assert not engine.closed and engine.max_model_len == 128
    engine.close()
    engine.close()
    assert engine.closed and "closed" in repr(engine)
    for call in (lambda: engine.generate("x"), lambda: list(engine.stream("x")), lambda: engine.encode("x"), lambda: engine.stats(),
                 lambda: engine.max_model_len, lambda: engine.decode([1]), lambda: engine.memory_summary(), lambda: engine.empty_cache(),
                 lambda: engine.chat([{"role": "user", "content": "x"}]), lambda: asyncio.run(engine.agenerate("x"))):
        with pytest.raises(EngineClosedError, match="closed"):
            call()


def test_a_stream_that_outlives_its_engine(model):
    engine = LLM(model=model, max_model_len=512, device="cpu")
    stream = engine.stream("Once", SamplingParams(max_tokens=400, ignore_eos=True))
    next(stream)
    engine.close()
    with pytest.raises((EngineClosedError, CancelledError)):
        list(stream)


def test_closing_from_many_threads(model):
    engine = LLM(model=model, max_model_len=512, device="cpu")
    failures = []

    def ask():
        try:
            while True:
                engine.generate(["a", "b"], GREEDY)
                engine.stats(), engine.memory_stats(), engine.encode("x"), engine.empty_cache()
        except (EngineClosedError, CancelledError):
            pass
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    closers = [threading.Timer(0.3, engine.close) for _ in range(2)]
    for t in threads + closers:
        t.start()
    for t in threads + closers:
        t.join(60)
        assert not t.is_alive()
    assert failures == [] and engine.closed


def test_an_engine_is_not_copied(engine):
    with pytest.raises(TypeError, match="cannot be pickled or copied"):
        pickle.dumps(engine)


def test_errors_of_loading(tmp_path, model):
    with pytest.raises(ModelError, match="nowhere"):
        LLM(model=str(tmp_path / "nowhere.gguf"))
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + b"\0" * 50)
    with pytest.raises(ModelError, match="broken.gguf"):
        LLM(model=str(tmp_path / "broken.gguf"))
    with pytest.raises(OutOfMemoryError):
        LLM(model=model, kv_cache_memory_bytes=1 << 50)
    with pytest.raises(ConfigError, match="max_num_seqs"):
        LLM(model=model, max_num_seqs=0)
    with pytest.raises(ConfigError, match="did you mean max_num_seqs"):
        LLM(model=model, max_num_seq=3)
    for wrong in (3, ["a"], {"model": model}):
        with pytest.raises(TypeError, match="expected a Config or a model's name"):
            LLM.__mro__[1](wrong)


def test_two_engines_that_do_not_fit(engine, model):
    limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    half = limit * 6 // 10
    try:
        first = LLM(model=model, max_model_len=128, kv_cache_memory_bytes=half, device="cpu")
    except OutOfMemoryError:
        pytest.skip("this process may use less than six tenths of the machine's memory")
    with first:
        with pytest.raises(OutOfMemoryError, match=r"other engines of this process.*kv_cache_memory_bytes to (\d+)") as e:
            LLM(model=model, max_model_len=128, kv_cache_memory_bytes=half, device="cpu")
        fitting = int(str(e.value).split("kv_cache_memory_bytes to ")[1].split()[0])
        with LLM(model=model, max_model_len=128, kv_cache_memory_bytes=fitting, device="cpu") as second:
            assert second.generate("One", GREEDY)[0].text == first.generate("One", GREEDY)[0].text
    with LLM(model=model, max_model_len=128, kv_cache_memory_bytes=half, device="cpu"):
        pass  # the first one's memory is free again


def forked(engine, model, stream, queue):
    said = []
    for call in (lambda: engine.generate("x"), lambda: engine.encode("x"), lambda: engine.stats(), lambda: next(stream),
                 lambda: list(engine.stream("x")), lambda: asyncio.run(engine.agenerate("x")), lambda: engine.empty_cache()):
        try:
            call()
            said.append("no error")
        except EngineClosedError as e:
            said.append(str(e))
    stream.close()
    engine.close()
    said.append(repr(engine))
    with LLM(model=model, max_model_len=128, device="cpu") as own:
        said.append(own.generate("x", GREEDY)[0].text)
    queue.put(said)


def test_fork(engine, model):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    stream = engine.stream("Once", SamplingParams(max_tokens=100, ignore_eos=True))
    next(stream)
    process = context.Process(target=forked, args=(engine, model, stream, queue))
    process.start()
    *errors, shown, text = queue.get(timeout=60)
    assert all("forked process needs an engine of its own" in e for e in errors), errors
    assert len(errors) == 7 and "of another process" in shown
    assert text == engine.generate("x", GREEDY)[0].text
    stream.close()
    process.join(20)
    assert process.exitcode == 0
    assert engine.generate("x", GREEDY)


def test_a_forked_child_ends_cleanly(model):
    process = script("""
        import os, sys
        from deepinfer import LLM
        engine = LLM(model=sys.argv[1], max_model_len=128, device="cpu")
        child = os.fork()
        if child == 0:
            sys.exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), engine.generate("x")[0].finish_reason, flush=True)
        """, model)
    out, err = process.communicate(timeout=60)
    assert out in ("7 stop\n", "7 length\n") and process.returncode == 0, err


def test_every_error_has_its_base():
    for kind, base in ((ConfigError, ValueError), (ModelError, DeepInferError), (OutOfMemoryError, MemoryError), (RequestError, ValueError),
                       (EngineClosedError, RuntimeError)):
        assert issubclass(kind, base) and issubclass(kind, DeepInferError)
    with pytest.raises(RequestError) as e:
        raise RequestError("text", "context_length", "prompt")
    assert (e.value.code, e.value.param, str(e.value)) == ("context_length", "prompt", "text")
    assert isinstance(Config(), Config)
