import asyncio
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

import deepinfer
from deepinfer import (LLM, CancelledError, Config, ConfigError, EngineClosedError, InferenceEngine, ModelError, OutOfMemoryError,
                       RequestError, SamplingParams)

GREEDY = SamplingParams(temperature=0, max_tokens=8)


def test_generate_keeps_the_order(engine):
    prompts = [f"The number {i} is" for i in range(40)]
    outputs = engine.generate(prompts=prompts, sampling_params=GREEDY)
    assert [o.prompt for o in outputs] == prompts
    alone = engine.generate(prompts[17], GREEDY)[0]
    assert outputs[17].text == alone.text and outputs[17].token_ids == alone.token_ids
    assert all(o.finish_reason in ("stop", "length") and len(o.token_ids) <= 8 for o in outputs)
    assert outputs[3].metrics.completion_tokens == len(outputs[3].token_ids)
    assert 0 <= outputs[3].metrics.time_to_first_token <= outputs[3].metrics.total_time


def test_token_ids_and_text_are_the_same_prompt(engine):
    ids = engine.encode("Once upon a time")
    by_ids, by_text = engine.generate([ids, "Once upon a time"], GREEDY)
    assert by_ids.token_ids == by_text.token_ids and by_text.prompt_token_ids == ids
    assert engine.decode(ids) == "Once upon a time"


def test_parameters_for_each_prompt(engine):
    outputs = engine.generate(["A", "B"], [SamplingParams(max_tokens=2, ignore_eos=True), SamplingParams(max_tokens=5, ignore_eos=True, n=3)])
    assert [len(o.outputs) for o in outputs] == [1, 3]
    assert [len(c.token_ids) for o in outputs for c in o.outputs] == [2, 5, 5, 5]
    assert [c.index for c in outputs[1].outputs] == [0, 1, 2]


def test_logprobs(engine):
    out = engine.generate("The sky is", SamplingParams(temperature=0, max_tokens=4, logprobs=3, prompt_logprobs=2))[0]
    assert [t.token_id for t in out.logprobs] == out.token_ids
    assert all(t.top[0] == (t.token_id, t.logprob) and len(t.top) == 3 for t in out.logprobs)
    assert out.prompt_logprobs[0] is None and len(out.prompt_logprobs) == len(out.prompt_token_ids)
    assert [t.token_id for t in out.prompt_logprobs[1:]] == out.prompt_token_ids[1:]
    assert engine.generate("x", GREEDY)[0].logprobs is None


def test_stop_strings(engine):
    whole = engine.generate("1 2 3 4", SamplingParams(temperature=0, max_tokens=20))[0]
    stop = whole.text[3:6]
    out = engine.generate("1 2 3 4", SamplingParams(temperature=0, max_tokens=20, stop=[stop]))[0].outputs[0]
    assert (out.finish_reason, out.stop_reason) == ("stop", stop) and out.text == whole.text[:whole.text.index(stop)]


def test_chat(engine):
    one = engine.chat([{"role": "user", "content": "Say hi"}], GREEDY)
    many = engine.chat([[{"role": "user", "content": "Say hi"}], [{"role": "user", "content": "Say bye"}]], GREEDY)
    assert len(one) == 1 and one[0].text == many[0].text and len(many) == 2
    assert engine.chat([{"role": "user", "content": "Say hi"}], SamplingParams(temperature=0, max_tokens=2, logprobs=2))[0].logprobs[0].top


def test_a_stream_is_the_answer_in_pieces(engine):
    whole = engine.generate("Once upon", SamplingParams(temperature=0, max_tokens=30))[0]
    pieces = list(engine.stream("Once upon", SamplingParams(temperature=0, max_tokens=30)))
    assert "".join(p.text for p in pieces) == whole.text
    assert [t for p in pieces for t in p.token_ids] == whole.token_ids
    assert pieces[-1].finish_reason == whole.finish_reason and len(pieces) > 5
    assert "".join(p.text for p in engine.stream([{"role": "user", "content": "Hi"}], GREEDY))


def idle(engine, seconds=20):
    for _ in range(seconds * 100):
        if engine.stats()["running"] + engine.stats()["waiting"] == 0:
            return True
        threading.Event().wait(0.01)
    return False


def test_leaving_a_stream_cancels_it(engine):
    for piece in engine.stream("Once", SamplingParams(max_tokens=400, ignore_eos=True)):
        break
    gc.collect()
    assert idle(engine)
    generated = engine.stats()["generated_tokens"]
    threading.Event().wait(0.1)
    assert engine.stats()["generated_tokens"] == generated


def test_asyncio(engine):
    async def streamed(i):
        return "".join([p.text async for p in engine.astream(f"Number {i}", GREEDY)])

    async def main():
        texts = await asyncio.gather(*(streamed(i) for i in range(10)))
        whole = await asyncio.gather(*(engine.agenerate(f"Number {i}", GREEDY) for i in range(10)))
        assert texts == [o.text for o in whole]
        chat = await engine.achat([{"role": "user", "content": "Hi"}], GREEDY)
        assert chat.text == engine.chat([{"role": "user", "content": "Hi"}], GREEDY)[0].text
        task = asyncio.create_task(engine.agenerate("Once", SamplingParams(max_tokens=400, ignore_eos=True)))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert idle(engine)


def test_several_threads(engine):
    want = [engine.generate(f"Item {i}", GREEDY)[0].text for i in range(8)]
    got = [None] * 8

    def work(i):
        got[i] = engine.generate(f"Item {i}", GREEDY)[0].text

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert got == want


@pytest.mark.parametrize("prompts, match", [([""], "prompt"), ([3.5], r"prompts\[0\]: got float"), (["a", None], r"prompts\[1\]: got NoneType"),
                                            (7, "prompts: got int"), (b"x", "prompts: got bytes"), ([[]], r"prompts\[0\]: got an empty list"),
                                            ([[1, -1]], "prompt"), ([[10**9]], "prompt"), (["x " * 4000], "context")])
def test_bad_prompts(engine, prompts, match):
    with pytest.raises(RequestError, match=match):
        engine.generate(prompts, GREEDY)
    assert idle(engine)


def test_no_prompts_give_no_outputs(engine):
    assert engine.generate([]) == []


@pytest.mark.parametrize("params, match", [({"temperature": -1}, "temperature"), ({"top_p": 2}, "top_p"), ({"n": 0}, "n"),
                                           ({"stop": [3]}, "stop"), ({"max_tokens": 0}, "max_tokens")])
def test_bad_parameters(engine, params, match):
    with pytest.raises(RequestError, match=match):
        engine.generate("x", SamplingParams(**params))


def test_wrong_numbers_and_types_of_parameters(engine):
    with pytest.raises(RequestError, match="got 1, expected one for each of the 2"):
        engine.generate(["a", "b"], [GREEDY])
    with pytest.raises(TypeError, match="expected SamplingParams"):
        engine.generate("a", {"temperature": 0})
    with pytest.raises(RequestError, match="vocabulary|expected 0 to"):
        engine.decode([-1])


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


def test_a_closed_engine(model):
    engine = LLM(model=model, max_model_len=128, device="cpu")
    assert not engine.closed and engine.max_model_len == 128
    assert model.rsplit("/", 1)[-1].split(".gguf")[0] in deepinfer.memory_summary()
    engine.close()
    engine.close()
    assert engine.closed and "closed" in repr(engine)
    for call in (lambda: engine.generate("x"), lambda: list(engine.stream("x")), lambda: engine.encode("x"), lambda: engine.stats(),
                 lambda: engine.max_model_len):
        with pytest.raises(EngineClosedError, match="closed"):
            call()


def test_closing_ends_what_runs(model):
    engine = LLM(model=model, max_model_len=2048, device="cpu")
    threading.Timer(0.3, engine.close).start()
    with pytest.raises((EngineClosedError, CancelledError)):
        engine.generate(["Once"] * 4, SamplingParams(max_tokens=2000, ignore_eos=True))


def test_two_engines(engine, model):
    with LLM(model=model, max_model_len=128, device="cpu") as other:
        assert other.generate("One and", GREEDY)[0].text == engine.generate("One and", GREEDY)[0].text
        deepinfer.empty_cache()


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


def forked(engine, queue):
    try:
        engine.generate("x")
    except EngineClosedError as e:
        queue.put(str(e))


def test_fork(engine):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=forked, args=(engine, queue))
    process.start()
    assert "forked process needs an engine of its own" in queue.get(timeout=20)
    process.join(20)
    assert process.exitcode == 0
    assert engine.generate("x", GREEDY)


def script(text, *args, **options):
    path = os.pathsep.join(sys.path)
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(text), *args], env=os.environ | {"PYTHONPATH": path},
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            # A shell's background job hands down that SIGINT is ignored, and Python keeps to that.
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **options)


def test_ctrl_c(model):
    process = script("""
        import sys
        from deepinfer import LLM, SamplingParams
        engine = LLM(model=sys.argv[1], max_model_len=2048, device="cpu")
        print("ready", flush=True)
        try:
            engine.generate(["Once"] * 64, SamplingParams(max_tokens=2000, ignore_eos=True))
        except KeyboardInterrupt:
            for _ in range(500):
                if engine.stats()["running"] == 0: break
                import time; time.sleep(0.01)
            print("stopped", engine.stats()["running"], flush=True)
        """, model)
    assert process.stdout.readline() == "ready\n"
    threading.Event().wait(0.3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert out == "stopped 0\n" and process.returncode == 0, err


def test_an_engine_that_is_never_closed_ends_with_the_program(model):
    process = script("""
        import sys
        from deepinfer import LLM, SamplingParams
        engine = LLM(model=sys.argv[1], max_model_len=128, device="cpu")
        print(len(engine.generate("x", SamplingParams(max_tokens=3, ignore_eos=True))[0].token_ids))
        stream = engine.stream("y", SamplingParams(max_tokens=100, ignore_eos=True))
        next(stream)
        """, model)
    out, err = process.communicate(timeout=60)
    assert (out, process.returncode) == ("3\n", 0), err


def test_import_needs_nothing_else():
    process = script("""
        import sys, deepinfer
        print([m for m in ("numpy", "torch", "tqdm") if m in sys.modules])
        """)
    assert process.communicate(timeout=30)[0] == "[]\n"


def test_the_command_line():
    for command in (["-m", "deepinfer", "--version"], ["-m", "deepinfer.server", "--help"]):
        done = subprocess.run([sys.executable, *command], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
                              capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
    assert "--max-num-seqs" in done.stdout
    assert isinstance(Config(), Config) and issubclass(LLM, InferenceEngine)
