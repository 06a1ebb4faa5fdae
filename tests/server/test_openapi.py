"""/openapi.json: schemathesis sends what the description allows and what it forbids; neither finds a fault."""
import os
import re
import subprocess

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode

EXAMPLES = int(os.environ.get("DEEPINFER_SCHEMATHESIS_EXAMPLES", "25"))


@pytest.fixture(scope="module")
def tiny_server(launch, tiny_model):
    """A model that answers at once."""
    with launch("--max-model-len", 2048, "--max-queue", 4096, "--served-model-name", "tiny",
                model=tiny_model) as running:
        yield running
        assert running.stop() == 0


@pytest.fixture(scope="module")
def document(tiny_server):
    return httpx.get(tiny_server.url + "/openapi.json").json()


@schemathesis.hook
def map_body(context, body):
    """Rules between fields that JSON Schema cannot say; and answers that end soon."""
    if not isinstance(body, dict) or context.operation.label not in ("POST /v1/completions", "POST /v1/chat/completions"):
        return body
    body = dict(body)
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    # An integer may be written 94810.0; and the context is an end too.
    if isinstance(body.get("min_tokens"), (int, float)) and not isinstance(body["min_tokens"], bool):
        body["min_tokens"] = min(body["min_tokens"], limit if isinstance(limit, (int, float)) else 8, 1000)
    if isinstance(body.get("bad_words"), list):  # 64 tokens at most, which are bytes at worst
        body["bad_words"] = [w[:15] if isinstance(w, str) and len(w) <= 256 else w for w in body["bad_words"]]
    if isinstance(body.get("logit_bias"), dict) and all(re.fullmatch("[0-9]+", k) for k in body["logit_bias"]):
        body["logit_bias"] = {str(int(k) % 100): v for k, v in body["logit_bias"].items()}
    if isinstance(body.get("truncate_prompt_tokens"), (int, float)) and body["truncate_prompt_tokens"] > 2000:
        body["truncate_prompt_tokens"] = 2000  # the context is the limit
    if body.get("continue_final_message") is True:
        body.pop("continue_final_message")
    if body.get("model") != "tiny":
        body.pop("model", None)
    return body


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["allowed", "forbidden"])
def test_no_finding(tiny_server, mode):
    findings = []
    for result in schemathesis.openapi.from_url(tiny_server.url + "/openapi.json").get_all_operations():
        operation = result.ok()
        if mode == GenerationMode.NEGATIVE and not operation.body:
            continue  # nothing of it can be wrong

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
                  phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck))
        def check(case):
            case.call_and_validate(timeout=60)

        try:
            check()
        except Exception as fault:  # of any check: the next operations are looked at too
            findings.append(f"{operation.label}: {fault}")
    assert not findings, "\n\n".join(findings)


def test_every_route_is_described(document, deepinfer, model_path):
    """The program names its routes when it is given one that does not exist."""
    done = subprocess.run([deepinfer, "serve", "--model", model_path, "--open-routes", "/no-such-route"],
                          capture_output=True, text=True, timeout=60)
    routes = {r.strip() for r in re.search("expected of (.*)", done.stderr)[1].split(",")}
    described = {path.removesuffix("{model}") for path in document["paths"]}
    assert routes - described == {"/openapi.json"}
    assert described <= routes


def test_described_methods_are_those_of_the_routes(document, tiny_server):
    for path, operations in document["paths"].items():
        allow = httpx.options(tiny_server.url + path.replace("{model}", "tiny")).headers["allow"].split(", ")
        assert {m.upper() for m in operations} == set(allow) - {"HEAD", "OPTIONS"}, path


def test_a_key_is_asked_for_where_the_description_says_so(launch, tiny_model):
    with launch("--api-key", "secret", model=tiny_model) as server:
        document = httpx.get(server.url + "/openapi.json", headers={"Authorization": "Bearer secret"}).json()
        assert document["security"] == [{"key": []}]
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                status = httpx.request(method, server.url + path.replace("{model}", "tiny")).status_code
                assert (status == 401) == ("security" not in operation), path
