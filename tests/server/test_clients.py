"""The very requests that lm-eval, LangChain and guidellm send (recorded by tests/clients/run.py --record), and what these
clients read from the answers. The clients themselves run in .ci/full."""
import json
import pathlib

import httpx
import pytest

REQUESTS = json.loads((pathlib.Path(__file__).parent / "data/client_requests.json").read_text())


def name_of(request):
    body = request["body"] or {}
    words = [request["client"], request["path"].removeprefix("/v1/"), *("stream" for _ in [0] if body.get("stream")),
             *("echo" for _ in [0] if body.get("echo"))]
    return " ".join(words)


def check_stream(reply, body):
    assert reply.headers["content-type"].startswith("text/event-stream")
    data = [line[6:] for line in reply.text.splitlines() if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    events = [json.loads(event) for event in data[:-1]]
    finishes = [c["finish_reason"] for e in events for c in e["choices"] if c["finish_reason"]]
    assert len(finishes) == body.get("n", 1) and set(finishes) <= {"stop", "length"}
    if (body.get("stream_options") or {}).get("include_usage"):
        assert events[-1]["usage"]["completion_tokens"] > 0


def check_scores(choices, prompts):
    """As lm-eval reads them: the lists without their last entry are the prompt's."""
    assert [choice["index"] for choice in choices] == list(range(len(prompts)))
    for choice, prompt in zip(choices, prompts):
        scores, tops = choice["logprobs"]["token_logprobs"], choice["logprobs"]["top_logprobs"]
        assert len(scores[:-1]) == len(tops[:-1]) == len(prompt)
        assert all(score <= max(top.values()) for score, top in zip(scores[1:], tops[1:]))


@pytest.mark.parametrize("request_", REQUESTS, ids=name_of)
def test_request_of_a_client(server, request_):
    body = request_["body"]
    reply = httpx.request(request_["method"], server.url + request_["path"], json=body, timeout=120)
    assert reply.status_code == 200, reply.text
    if not body or "model" not in body:
        return
    if body.get("stream"):
        check_stream(reply, body)
        return
    choices = reply.json()["choices"]
    assert all(choice["finish_reason"] in ("stop", "length") for choice in choices)
    if body.get("echo") and body.get("logprobs"):
        check_scores(choices, body["prompt"])


def test_every_client_is_there():
    assert {request["client"] for request in REQUESTS} == {"lm-eval", "langchain", "guidellm"}
