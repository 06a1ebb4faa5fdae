"""GET /metrics of a live server: what known requests add is exact, and dashboards made for vLLM find their names."""
import json
import threading
import time

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

REASONS = ("stop", "length", "abort", "error")
ENGINE = {
    "gauge": {"num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "cache_config_info",
              "lora_requests_info"},
    "counter": {"prompt_tokens", "generation_tokens", "prompt_tokens_cached", "request_success", "num_preemptions",
                "prefix_cache_queries", "prefix_cache_hits", "spec_decode_num_drafts", "spec_decode_num_draft_tokens",
                "spec_decode_num_accepted_tokens"},
    "histogram": {"time_to_first_token_seconds", "inter_token_latency_seconds",
                  "request_time_per_output_token_seconds", "e2e_request_latency_seconds", "request_queue_time_seconds",
                  "request_inference_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds",
                  "request_prompt_tokens", "request_generation_tokens", "request_params_n",
                  "request_params_max_tokens", "iteration_tokens_total"},
}
OURS = {"deepinfer:build_info", "deepinfer:http_requests", "deepinfer:requests_rejected"}
FIRST_TOKEN = [.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560]
TOKEN = [.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80]
LATENCY = [.3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680]
LENGTH = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]  # of a context of 1024


class Scrape:
    """The samples of one reply: scrape["deepinfer:prompt_tokens_total"], scrape[name, "reason", "queue_full"]."""

    def __init__(self, server):
        reply = httpx.get(server.url + "/metrics")
        assert reply.status_code == 200
        assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        self.text = reply.text
        assert self.text.endswith("\n")
        self.families = list(text_string_to_metric_families(self.text))
        self.samples = [s for f in self.families for s in f.samples]

    def __getitem__(self, key):
        name, *labels = (key,) if isinstance(key, str) else key
        wanted = dict(zip(labels[::2], labels[1::2]))
        found = [s.value for s in self.samples if s.name == name and wanted.items() <= s.labels.items()]
        assert len(found) <= 1, (key, found)
        return found[0] if found else 0.0

    def engine(self):
        """What does not depend on when it was asked: every count, no gauge and no time."""
        return {(s.name, tuple(sorted(s.labels.items()))): s.value for s in self.samples
                if not s.name.startswith("deepinfer:http") and "usage" not in s.name and "num_requests" not in s.name}


class Change:
    """with Change(server) as change: ...; then change["name"] is what the block added."""

    def __init__(self, server):
        self.server = server

    def __enter__(self):
        self.before = Scrape(self.server)
        return self

    def __exit__(self, *_):
        self.after = Scrape(self.server)

    def __getitem__(self, key):
        return self.after[key] - self.before[key]


def complete(server, **body):
    body = {"prompt": "Once upon a time", "max_tokens": 5, "temperature": 0, "ignore_eos": True} | body
    return httpx.post(server.url + "/v1/completions", json=body, timeout=120)


def wait_for(server, condition, timeout=20):
    end = time.monotonic() + timeout
    while not condition(scrape := Scrape(server)):
        assert time.monotonic() < end, scrape.text
        time.sleep(0.02)


def test_every_family_under_both_names(server):
    scrape = Scrape(server)
    types = {f.name: f.type for f in scrape.families}
    expected = {f"{prefix}:{name}": kind for kind, names in ENGINE.items() for name in names
                for prefix in ("deepinfer", "vllm")}
    assert {k: v for k, v in types.items() if k not in OURS} == expected
    assert OURS <= types.keys()
    for family in scrape.families:
        assert family.documentation
        for sample in family.samples:
            if family.name.partition(":")[2] in ("cache_config_info", "lora_requests_info") or family.name in OURS:
                continue
            assert sample.labels["model_name"] == "smol" and sample.labels["engine"] == "0"
    info = next(s for s in scrape.samples if s.name == "vllm:cache_config_info")
    assert info.value == 1 and info.labels["block_size"] == "16" and int(info.labels["num_gpu_blocks"]) >= 64
    reasons = {s.labels["finished_reason"] for s in scrape.samples if s.name == "vllm:request_success_total"}
    assert reasons == set(REASONS)


@pytest.mark.parametrize("name, bounds", [
    ("time_to_first_token_seconds", FIRST_TOKEN), ("inter_token_latency_seconds", TOKEN),
    ("request_time_per_output_token_seconds", TOKEN), ("e2e_request_latency_seconds", LATENCY),
    ("request_queue_time_seconds", LATENCY), ("request_inference_time_seconds", LATENCY),
    ("request_prefill_time_seconds", LATENCY), ("request_decode_time_seconds", LATENCY),
    ("request_prompt_tokens", LENGTH), ("request_generation_tokens", LENGTH), ("request_params_max_tokens", LENGTH),
    ("request_params_n", [1, 2, 5, 10, 20]),
    ("iteration_tokens_total", [1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384])])
def test_buckets(server, name, bounds):
    scrape = Scrape(server)
    for prefix in ("deepinfer", "vllm"):
        found = [(s.labels["le"], s.value) for s in scrape.samples if s.name == f"{prefix}:{name}_bucket"]
        assert [float(le) for le, _ in found] == [*bounds, float("inf")]
        counts = [count for _, count in found]
        assert counts == sorted(counts) and counts[-1] == scrape[f"{prefix}:{name}_count"]
        # As Python's client writes them: a query for le="1.0" finds them.
        assert all(le == "+Inf" or "." in le for le, _ in found)


def test_a_completion_is_counted_exactly(server):
    with Change(server) as change:
        reply = complete(server, prompt=list(range(100, 140)), n=2, max_tokens=7)
        usage = reply.json()["usage"]
    assert usage["prompt_tokens"] == 40 and usage["completion_tokens"] == 14
    for prefix in ("deepinfer", "vllm"):
        assert change[f"{prefix}:prompt_tokens_total"] == 80  # of two sequences
        assert change[f"{prefix}:generation_tokens_total"] == 14
        assert change[f"{prefix}:prefix_cache_queries_total"] == 80
        assert change[f"{prefix}:prefix_cache_hits_total"] == change[f"{prefix}:prompt_tokens_cached_total"] == 32
        for reason in REASONS:
            assert change[f"{prefix}:request_success_total", "finished_reason", reason] == 2 * (reason == "length")
        for name in ENGINE["histogram"] - {"inter_token_latency_seconds", "iteration_tokens_total",
                                           "request_params_n"}:
            assert change[f"{prefix}:{name}_count"] == 2, name
        assert change[f"{prefix}:inter_token_latency_seconds_count"] == 12
        assert change[f"{prefix}:request_params_n_count"] == 1 and change[f"{prefix}:request_params_n_sum"] == 2
        assert change[f"{prefix}:request_params_max_tokens_sum"] == 14
        assert change[f"{prefix}:request_prompt_tokens_sum"] == 80
        assert change[f"{prefix}:request_generation_tokens_sum"] == 14
        # Computed: 40 tokens of one prompt, 8 of the other, and each generated one but the last.
        assert change[f"{prefix}:iteration_tokens_total_sum"] == 40 + 8 + 12
    assert change["deepinfer:http_requests_total", "handler", "/v1/completions", "status", "200"] == 1


def test_cached_tokens_agree_with_usage(server):
    prompt = list(range(300, 365))
    complete(server, prompt=prompt)
    with Change(server) as change:
        details = complete(server, prompt=prompt).json()["usage"]["prompt_tokens_details"]
    assert change["vllm:prompt_tokens_cached_total"] == change["vllm:prefix_cache_hits_total"] == 64
    assert details["cached_tokens"] == 64


def test_a_stop_string_is_a_stop(server):
    text = complete(server, max_tokens=12).json()["choices"][0]["text"]
    with Change(server) as change:
        reply = complete(server, max_tokens=900, stop=text[5:10]).json()
        assert reply["choices"][0]["finish_reason"] == "stop"
        wait_for(server, lambda s: s["vllm:num_requests_running"] == 0)
    assert change["vllm:request_success_total", "finished_reason", "stop"] == 1
    assert change["vllm:request_success_total", "finished_reason", "abort"] == 0


def test_an_abort_is_counted_and_not_timed(server):
    with Change(server) as change:
        with httpx.stream("POST", server.url + "/v1/completions", timeout=60,
                          json={"prompt": "Once", "max_tokens": 1000, "ignore_eos": True, "stream": True}) as reply:
            lines = reply.iter_lines()  # kept: its end would close the connection
            next(lines)
            wait_for(server, lambda s: s["vllm:num_requests_running"] == 1 and s["vllm:kv_cache_usage_perc"] > 0
                     and s["vllm:generation_tokens_total"] > change.before["vllm:generation_tokens_total"])
        wait_for(server, lambda s: s["vllm:num_requests_running"] == 0)
    assert change["vllm:request_success_total", "finished_reason", "abort"] == 1
    assert change["vllm:prompt_tokens_total"] == 1
    for name in ("e2e_request_latency_seconds", "request_prompt_tokens", "request_generation_tokens",
                 "request_params_n"):
        assert change[f"vllm:{name}_count"] == 0
    assert change["vllm:time_to_first_token_seconds_count"] == 1


def test_http_statuses_by_handler(server):
    paths = [("POST", "/v1/completions", "/v1/completions", 400, "{}x"), ("GET", "/health", "/health", 200, None),
             ("GET", "/v1/completions", "/v1/completions", 405, None), ("GET", "/no/such/%0aroute", "none", 404, None),
             ("GET", "/v1/models/nobody", "/v1/models/", 404, None),
             ("HEAD", "/metrics", "/metrics", 200, None)]
    for method, path, handler, status, body in paths:
        with Change(server) as change:
            assert httpx.request(method, server.url + path, content=body).status_code == status
        # Between the two scrapes, the first itself.
        own = handler == "/metrics"
        assert change["deepinfer:http_requests_total", "handler", handler, "status", str(status)] == 1 + own, path
    with Change(server) as change:
        with server.connect() as raw:
            raw.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 40000 + b"\r\n\r\n")
            assert raw.recv(100).startswith(b"HTTP/1.1 431")
    assert change["deepinfer:http_requests_total", "handler", "none", "status", "431"] == 1
    assert change["deepinfer:requests_rejected_total", "reason", "headers_too_large"] == 1


def test_counters_never_fall_and_names_agree(server):
    stop, faults = threading.Event(), []

    def watch():
        before = Scrape(server)
        while not stop.is_set():
            after = Scrape(server)
            for family in after.families:
                if family.type not in ("counter", "histogram"):
                    continue
                for sample in family.samples:
                    old = before[(sample.name, *(x for pair in sample.labels.items() for x in pair))]
                    if sample.value < old:
                        faults.append((sample, old))
            before = after

    watcher = threading.Thread(target=watch)
    watcher.start()
    workers = [threading.Thread(target=complete, args=(server,), kwargs={"n": n, "max_tokens": 30, "stream": n > 2})
               for n in range(1, 5)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    stop.set()
    watcher.join()
    assert not faults
    families = Scrape(server).engine()
    ours = {(n.removeprefix("deepinfer:"), k): v for (n, k), v in families.items() if n.startswith("deepinfer:")
            and "build_info" not in n and "rejected" not in n}
    theirs = {(n.removeprefix("vllm:"), k): v for (n, k), v in families.items() if n.startswith("vllm:")}
    assert ours == theirs


def test_a_full_queue_is_a_rejection(launch):
    with launch("--max-num-seqs", 1, "--max-queue", 1, "--served-model-name", 'a"b\\c') as server:
        threads = [threading.Thread(target=complete, args=(server,), kwargs={"max_tokens": 1500}) for _ in range(2)]
        threads[0].start()
        wait_for(server, lambda s: s["vllm:num_requests_running"] == 1)
        threads[1].start()
        wait_for(server, lambda s: s["vllm:num_requests_waiting"] == 1)
        assert complete(server).status_code == 429
        scrape = Scrape(server)
        assert scrape["deepinfer:requests_rejected_total", "reason", "queue_full"] == 1
        assert scrape["deepinfer:http_requests_total", "status", "429"] == 1
        assert scrape["vllm:num_requests_waiting", "model_name", 'a"b\\c'] == 1
        with server.client() as client, pytest.raises(openai.RateLimitError):
            client.completions.create(model='a"b\\c', prompt="a", max_tokens=1)
        for thread in threads:
            thread.join()


def test_without_vllm_names_and_while_loading(launch):
    with launch("--vllm-metric-names=false", ready=False) as server:
        first = Scrape(server)  # most likely the model is still loading
        assert first["deepinfer:build_info"] == 1
        wait_for(server, lambda s: "deepinfer:num_requests_running" in s.text)
        assert "vllm:" not in Scrape(server).text


def test_reset_prefix_cache(server):
    prompt = list(range(500, 540))
    complete(server, prompt=prompt)
    reply = httpx.post(server.url + "/reset_prefix_cache")
    assert (reply.status_code, reply.content) == (200, b"")
    with Change(server) as change:
        complete(server, prompt=prompt)
    assert change["vllm:prefix_cache_hits_total"] == 0
    assert httpx.get(server.url + "/reset_prefix_cache").status_code == 405
    with httpx.stream("POST", server.url + "/v1/completions", timeout=60,
                      json={"prompt": "Once", "max_tokens": 1000, "ignore_eos": True, "stream": True}) as stream:
        lines = stream.iter_lines()  # kept: its end would close the connection
        next(lines)
        refused = httpx.post(server.url + "/reset_prefix_cache")
        assert refused.status_code == 409 and refused.json()["error"]["code"] == "requests_running"
        refused = httpx.post(server.url + "/reset_prefix_cache?reset_running_requests=true")
        assert refused.status_code == 400
    with Change(server) as change:
        complete(server, prompt=prompt)
    assert change["vllm:prefix_cache_hits_total"] == 32


def test_version(server):
    reply = httpx.get(server.url + "/version").json()
    assert list(reply) == ["version"]
    assert Scrape(server)["deepinfer:build_info", "version", reply["version"]] == 1
    json.dumps(reply)
