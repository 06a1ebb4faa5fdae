import asyncio
import asyncio
import gc
import signal
import threading
import time

import pytest

from deepinfer import LLM, CancelledError, Config, EngineClosedError, InferenceEngine, SamplingParams
from python_support import idle, script

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


def test_no_prompts_give_no_outputs(engine):
    assert engine.generate([]) == []


def test_closing_ends_what_runs(model):
    engine = LLM(model=model, max_model_len=2048, device="cpu")
    threading.Timer(0.3, engine.close).start()
    with pytest.raises((EngineClosedError, CancelledError)):
        engine.generate(["Once"] * 4, SamplingParams(max_tokens=2000, ignore_eos=True))


def test_two_engines(engine, model):
    with LLM(model=model, max_model_len=128, device="cpu") as other:
        assert other.generate("One and", GREEDY)[0].text == engine.generate("One and", GREEDY)[0].text


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


def test_ten_thousand_prompts_share_the_engine(engine):
    params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
    steps = engine.stats()["steps"]
    outputs = engine.generate([[100 + i % 1000] for i in range(10000)], params)
    assert [o.prompt for o in outputs] == [[100 + i % 1000] for i in range(10000)]
    assert [o.token_ids for o in outputs[:1000]] == [o.token_ids for o in outputs[9000:]]
    # 16 sequences a step, but for the first ones and the last.
    assert engine.stats()["steps"] - steps < 10000 / 16 * 1.2


def test_other_threads_run_while_it_generates(engine):
    count, stop = 0, threading.Event()

    def spin():
        nonlocal count
        while not stop.is_set():
            count += 1
            time.sleep(0.001)

    thread = threading.Thread(target=spin)
    thread.start()
    begin = time.monotonic()
    engine.generate(["Once"] * 32, SamplingParams(max_tokens=30, ignore_eos=True))
    seconds = time.monotonic() - begin
    stop.set()
    thread.join()
    # Where the lock was kept there would be next to none; a busy machine gives fewer than 1,000 a second.
    assert count > 50 * seconds


def test_the_class_and_its_alias(model):
    config = Config(model=model, max_model_len=128, device="cpu")
    config.gpu.max_num_seqs = 5
    with InferenceEngine(config) as one, LLM(model=model, max_num_seqs=5, max_model_len=128, device="cpu") as two:
        assert issubclass(LLM, InferenceEngine) and one.config.gpu.max_num_seqs == two.config.gpu.max_num_seqs == 5
        assert one.max_model_len == two.max_model_len == 128
        assert one.generate("One", GREEDY)[0].text == two.generate("One", GREEDY)[0].text
    assert one.closed and two.closed


def test_an_exception_leaves_the_block_clean(model):
    with pytest.raises(ZeroDivisionError):
        with LLM(model=model, max_model_len=128, device="cpu") as engine:
            next(engine.stream("Once", SamplingParams(max_tokens=100, ignore_eos=True)))
            1 / 0
    assert engine.closed
