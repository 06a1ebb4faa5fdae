"""Lines of the log: one object each in JSON, ids in each that is about a request, nothing of what clients wrote."""
import datetime
import json
import re

import httpx
import pytest

TRACE = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")
SECRET = "the quick brown pangolin"


def finished(server, request_id):
    """The line of a request, once it is there."""
    import time
    end = time.monotonic() + 20
    while time.monotonic() < end:
        for line in list(server.err):
            if line.startswith("{") and json.loads(line).get("request_id") == request_id and "status" in line:
                return json.loads(line)
        time.sleep(0.01)
    raise AssertionError("".join(server.err))


@pytest.fixture(scope="module")
def jsonl(launch, tmp_path_factory):
    events = tmp_path_factory.mktemp("logs") / "events.jsonl"
    with launch("--log-format", "json", "--log-requests", "--log-level", "debug", "--max-model-len", 512,
                "--served-model-name", "smol", "--event-log", events, ready=False) as server:
        server.events = events
        while httpx.get(server.url + "/health/ready").status_code != 200:
            pass
        yield server
        assert server.stop() == 0
        check_lines(server)


def check_lines(server):
    assert not server.out  # what collects lines of JSON gets nothing else
    for line in server.err:
        record = json.loads(line)
        assert list(record)[:3] == ["time", "level", "message"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", record["time"])
        age = datetime.datetime.now(datetime.timezone.utc) - datetime.datetime.fromisoformat(record["time"])
        assert abs(age.total_seconds()) < 600
        assert record["level"] in ("trace", "debug", "info", "warning", "error", "critical")
    assert SECRET not in "".join(server.err) + server.events.read_text()


def test_a_finished_request_has_its_line(jsonl):
    headers = {"X-Request-Id": "req-1", "traceparent": f"00-{TRACE[0]}-{TRACE[1]}-01"}
    reply = httpx.post(jsonl.url + "/v1/completions", headers=headers, timeout=60,
                       json={"prompt": SECRET, "max_tokens": 6, "ignore_eos": True, "n": 2})
    usage = reply.json()["usage"]
    assert reply.headers["x-request-id"] == "req-1"
    line = finished(jsonl, "req-1")
    assert (line["trace_id"], line["parent_id"]) == TRACE
    assert (line["method"], line["path"], line["status"], line["model"]) == ("POST", "/v1/completions", 200, "smol")
    assert line["prompt_tokens"] == usage["prompt_tokens"] and line["output_tokens"] == 12
    assert line["cached_tokens"] == usage["prompt_tokens_details"]["cached_tokens"]
    assert 0 <= line["queue_seconds"] <= line["ttft_seconds"] <= line["total_seconds"] < 60
    assert line["finish_reason"] == "length"
    adds = [json.loads(x) for x in jsonl.events.read_text().splitlines() if '"event":"add"' in x]
    assert [a["request_id"] for a in adds if a.get("request_id") == "req-1"]


def test_the_banner_is_a_line_too(jsonl):
    ready = next(json.loads(x) for x in jsonl.err if '"message":"ready"' in x)
    assert ready["url"] == jsonl.url and ready["model"] == "smol" and ready["kv_tokens"] == 16 * ready["kv_blocks"]
    assert "server.log_format json (--log-format)" in ready["settings"]


def test_a_disconnect_is_an_abort(jsonl):
    with httpx.stream("POST", jsonl.url + "/v1/completions", timeout=60, headers={"X-Request-Id": "gone"},
                      json={"prompt": SECRET, "max_tokens": 400, "ignore_eos": True, "stream": True}) as reply:
        next(reply.iter_lines())
    line = finished(jsonl, "gone")
    assert line["finish_reason"] == "abort" and line["status"] == 200 and "trace_id" not in line


def test_a_refusal_tells_its_code(jsonl):
    reply = httpx.post(jsonl.url + "/v1/completions", headers={"X-Request-Id": "bad"},
                       json={"prompt": SECRET, "max_tokens": -5})
    assert reply.status_code == 400
    line = finished(jsonl, "bad")
    assert line["status"] == 400 and line["code"] == reply.json()["error"]["code"] and "model" not in line


@pytest.mark.parametrize("parent", ["", "nonsense", f"00-{TRACE[0].upper()}-{TRACE[1]}-01", f"00-{'0' * 32}-{TRACE[1]}-01",
                                    f"00-{TRACE[0]}-{TRACE[1]}-01-more"])
def test_a_wrong_traceparent_is_none(jsonl, parent):
    name = f"trace-{len(parent)}-{abs(hash(parent))}"
    httpx.get(jsonl.url + "/health", headers={"X-Request-Id": name, "traceparent": parent})
    assert "trace_id" not in finished(jsonl, name)


def test_clients_cannot_write_lines(jsonl):
    with jsonl.connect() as raw:
        raw.sendall(b'GET /a\x1b[2Jb"%0a{} HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: a\tb\r\n\r\n')
        raw.recv(4096)
    evil = 'x\n{"time":"1970","level":"info","message":"forged"}\u2028\x1b[31m'
    reply = httpx.post(jsonl.url + "/v1/completions", json={"prompt": "a", "max_tokens": 1, evil: 1})
    line = finished(jsonl, reply.headers["x-request-id"])
    assert line["status"] == 200
    told = [json.loads(x) for x in jsonl.err if "forged" in x]
    assert [t["request_id"] for t in told] == [reply.headers["x-request-id"]]
    check_lines(jsonl)


def test_text_lines_carry_ids_and_prompts_when_asked(launch):
    with launch("--log-requests", "--log-prompts", "--max-model-len", 512) as server:
        reply = httpx.post(server.url + "/v1/completions", headers={"X-Request-Id": "t1"}, timeout=60,
                           json={"prompt": SECRET + "\nsecond", "max_tokens": 3, "ignore_eos": True})
        assert server.stop() == 0
        line = next(x for x in server.err if "request_id=t1" in x)
        assert "status=200" in line and f'prompt="{SECRET}\\u000asecond"' in line
        answer = json.dumps(reply.json()["choices"][0]["text"], ensure_ascii=False)
        assert "answer=" in line and re.sub(r"\W", "", answer) in re.sub(r"\W", "", line)
