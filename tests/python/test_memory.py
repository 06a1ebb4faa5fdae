import re
import time

import deepinfer
from deepinfer import LLM, SamplingParams


def test_what_an_engine_holds(model):
    with LLM(model=model, max_model_len=512, kv_cache_memory_bytes=64 << 20, device="cpu") as engine:
        before = engine.memory_stats()
        assert before["kv_cache"] <= 64 << 20 and before["kv_cache"] > 60 << 20
        assert 50 << 20 < before["weights"] < 300 << 20
        assert before["kv_blocks_used"] == before["kv_blocks_cached"] == 0
        assert before["graphs"] == before["pinned"] == 0 and before["on_gpu"] is False
        engine.generate([f"{i} " * 100 for i in range(20)], SamplingParams(max_tokens=20, ignore_eos=True))
        for _ in range(200):  # an answer is complete a moment before its engine is at rest
            after = engine.memory_stats()
            if after["kv_blocks_used"] == 0:
                break
            time.sleep(0.01)
        assert after["kv_blocks_cached"] > 20 and after["kv_blocks_used"] == 0
        assert after["kv_cache_resident"] > before["kv_cache_resident"] and after["kv_cache_resident"] <= after["kv_cache"]
        assert after["workspaces"] > 0

        text = engine.memory_summary()
        assert "weights" in text and f"{after['kv_blocks_cached']} cached" in text and "CUDA" not in text
        whole = deepinfer.memory_summary()
        assert text in whole and re.search(r"this process +\d+\.\d MiB resident", whole)
        stats = deepinfer.memory_stats()
        assert after["engine"] in [m["engine"] for m in stats["engines"]]
        assert stats["host_peak"] >= stats["host_resident"] > after["weights"]

        emptied = engine.empty_cache()
        assert emptied["prefix_blocks"] == after["kv_blocks_cached"]
        assert emptied["prefix_bytes"] == emptied["prefix_blocks"] * after["kv_cache"] // after["kv_blocks"]
        assert emptied["freed_bytes"] >= after["kv_cache_resident"]
        now = engine.memory_stats()
        assert now["kv_blocks_cached"] == 0 and now["kv_cache_resident"] < after["kv_cache_resident"] / 10
        assert deepinfer.memory_stats()["host_resident"] < stats["host_resident"] - emptied["freed_bytes"] / 2
        # What was given back comes again.
        assert engine.generate("1 2 3", SamplingParams(temperature=0, max_tokens=8))[0].text
    assert after["engine"] not in [m["engine"] for m in deepinfer.memory_stats()["engines"] if m["kv_cache"] == after["kv_cache"]]


def test_the_answers_stay_the_same(engine):
    params = SamplingParams(temperature=0, max_tokens=20, logprobs=1)
    first = engine.generate(["Once upon a time there was"] * 3, params)
    assert engine.empty_cache() is not None
    second = engine.generate(["Once upon a time there was"] * 3, params)
    assert [o.token_ids for o in first] == [o.token_ids for o in second]
    assert [[t.logprob for t in o.logprobs] for o in first] == [[t.logprob for t in o.logprobs] for o in second]


def test_busy_engines_are_left_alone(engine):
    stream = engine.stream("Once", SamplingParams(max_tokens=300, ignore_eos=True))
    next(stream)
    assert engine.empty_cache() is None and engine.reset_prefix_cache() is False
    out = deepinfer.empty_cache()
    assert out["busy"] == engine.stats()["names"][:1] and out["prefix_blocks"] == 0
    stream.close()


def test_without_an_engine():
    from python_support import script
    process = script("""
        import deepinfer
        print(deepinfer.memory_summary().splitlines()[0], deepinfer.empty_cache(), deepinfer.memory_stats()["engines"])
        """)
    out, err = process.communicate(timeout=30)
    assert out == "no engine is open {'prefix_blocks': 0, 'prefix_bytes': 0, 'freed_bytes': 0, 'busy': []} []\n", err
