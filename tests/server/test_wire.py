"""What servers get wrong in OpenAI's wire format, point by point, with the real client.

 1 chunks share id, created, model            test_01          14 failure in mid-stream             test_14
 2 role once, first                           test_02          15 error object                      test_15
 3 to 5, 8: tool calls, which are not built                    16 status codes                      test_16
 6 nothing added, nothing stripped            test_06          17 Retry-After                       test_17
 7 finish_reason null until one value         test_07          18 stop strings                      test_18
 9 stop and length                            test_09          19 complete UTF-8                    test_19
10, 11 usage chunk                            test_10, _usage  20, 21 chat logprobs                 test_20, test_21
12 [DONE]                                     test_12          22 completions logprobs, scoring     test_22
13 checked before the headers                 test_13          23 n choices                         test_23
                                                               24 what is accepted, routes          test_24
                                                               25 headers, flushes, models          test_25
"""
import concurrent.futures
import json
import math
import re
import time

import httpx
import openai
import pytest

HELLO = [{"role": "user", "content": "Say hello in three languages."}]


def chat(client, **fields):
    return client.chat.completions.create(**{"model": "smol", "messages": HELLO, "temperature": 0, "max_tokens": 12}
                                          | fields)


def complete(client, **fields):
    # The client's types want a finish_reason in every chunk of a completion, but OpenAI itself sends null before the
    # last one, and so do we.
    if fields.get("stream"):
        client = client.with_options(_extra_kwargs={"_strict_response_validation": False})
    return client.completions.create(**{"model": "smol", "prompt": "Once upon a time", "temperature": 0,
                                        "max_tokens": 12} | fields)


def content(chunks, index=0):
    return "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices if c.index == index)


def raw_events(server, path, body):
    """The data lines of a stream as they came."""
    with httpx.stream("POST", server.url + path, json=body, timeout=60) as reply:
        assert reply.status_code == 200
        return [line[6:] for line in reply.iter_lines() if line.startswith("data: ")], reply.headers


def test_01_chunks_share_id_created_and_model(client):
    chunks = list(chat(client, stream=True))
    assert len({(c.id, c.created, c.model) for c in chunks}) == 1
    assert {c.object for c in chunks} == {"chat.completion.chunk"}
    chunks = list(complete(client, stream=True))
    assert len({(c.id, c.created, c.model) for c in chunks}) == 1
    assert {c.object for c in chunks} == {"text_completion"}


@pytest.mark.parametrize("n", [1, 3])
def test_02_role_comes_once_and_first(client, n):
    seen = {i: [] for i in range(n)}
    for chunk in chat(client, stream=True, n=n, temperature=1, seed=1):
        for choice in chunk.choices:
            seen[choice.index].append(choice.delta.role)
    for roles in seen.values():
        assert roles[0] == "assistant" and roles[1:] == [None] * (len(roles) - 1)


@pytest.mark.parametrize("n", [1, 3])
def test_06_a_stream_gives_the_text_of_the_whole_answer(client, n):
    fields = {"n": n, "temperature": 1, "seed": 5, "max_tokens": 20}
    whole = chat(client, **fields)
    chunks = list(chat(client, stream=True, **fields))
    for choice in whole.choices:
        assert content(chunks, choice.index) == choice.message.content
    for chunk in chunks:
        for choice in chunk.choices:
            assert not (choice.finish_reason and choice.delta.content)


def test_07_finish_reason_is_null_until_one_final_value(client):
    for create in (chat, complete):
        reasons = {0: [], 1: []}
        for chunk in create(client, stream=True, n=2, temperature=1, seed=3):
            for choice in chunk.choices:
                reasons[choice.index].append(choice.finish_reason)
        for list_ in reasons.values():
            assert list_[-1] in ("stop", "length") and set(list_[:-1]) == {None}


def test_09_stop_and_length(client):
    assert chat(client, max_tokens=3).choices[0].finish_reason == "length"
    assert chat(client, max_tokens=3).usage.completion_tokens == 3
    text = complete(client, max_tokens=30).choices[0].text
    stop = text.split()[3]
    cut = complete(client, max_tokens=30, stop=stop).choices[0]
    assert cut.finish_reason == "stop" and cut.text == text[:text.index(stop)]
    limit = complete(client, max_tokens=5000, extra_body={"ignore_eos": True})
    assert limit.choices[0].finish_reason == "length" and limit.usage.total_tokens == 1024


@pytest.mark.parametrize("create", [chat, complete], ids=["10_chat", "11_completions"])
def test_usage_chunk(client, create):
    chunks = list(create(client, stream=True, stream_options={"include_usage": True}, n=2, temperature=1, seed=1))
    assert chunks[-1].choices == []
    assert all(c.usage is None and c.choices for c in chunks[:-1])
    usage = chunks[-1].usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens and usage.completion_tokens > 2
    assert all(c.usage is None for c in create(client, stream=True))


def test_10_usage_is_null_and_present_in_other_chunks(server):
    body = {"messages": HELLO, "stream": True, "max_tokens": 2, "stream_options": {"include_usage": True}}
    data, _ = raw_events(server, "/v1/chat/completions", body)
    assert all('"usage":null' in event for event in data[:-2])


@pytest.mark.parametrize("path, body", [("/v1/chat/completions", {"messages": HELLO}),
                                        ("/v1/completions", {"prompt": "a"})])
def test_12_done_is_literal(server, path, body):
    data, _ = raw_events(server, path, body | {"stream": True, "max_tokens": 2})
    assert data[-1] == "[DONE]"


@pytest.mark.parametrize("stream", [False, True])
def test_13_bad_requests_get_their_status_before_any_stream(client, stream):
    with pytest.raises(openai.BadRequestError) as error:
        chat(client, stream=stream, temperature=-1)
    assert error.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        chat(client, stream=stream, model="gpt-9")


def test_13_a_queue_timeout_is_still_a_503(launch):
    """The headers of a stream wait until the request is scheduled."""
    with launch("--max-num-seqs", 1, "--queue-timeout", 0.3, "--served-model-name", "smol") as server:
        body = {"prompt": "a", "stream": True, "max_tokens": 5000, "ignore_eos": True}
        with httpx.stream("POST", server.url + "/v1/completions", timeout=60, json=body) as running:
            lines = running.iter_lines()  # when it goes, so does the connection
            next(lines)
            for path, asked in (("/v1/completions", {"prompt": "b"}), ("/v1/chat/completions", {"messages": HELLO})):
                reply = httpx.post(server.url + path, json=asked | {"stream": True}, timeout=60)
                assert reply.status_code == 503 and reply.json()["error"]["code"] == "queue_timeout"


def test_14_failure_in_mid_stream_is_an_event(launch):
    with launch("--timeout", 1, "--served-model-name", "smol") as server:
        data, _ = raw_events(server, "/v1/completions", {"prompt": "a", "stream": True, "max_tokens": 8000,
                                                         "ignore_eos": True})
        assert data[-1] == "[DONE]"
        assert json.loads(data[-2])["error"]["code"] == "timeout"
        with server.client(_strict_response_validation=False) as client, \
                pytest.raises(openai.APIError, match="server.timeout"):
            list(client.completions.create(model="smol", prompt="a", stream=True, max_tokens=8000,
                                           extra_body={"ignore_eos": True}))
        assert httpx.get(server.url + "/health").status_code == 200


def test_15_error_object(server):
    for body in ({"messages": []}, {"messages": HELLO, "model": "x"}, {"messages": HELLO, "n": 1000}):
        error = httpx.post(server.url + "/v1/chat/completions", json=body).json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert isinstance(error["message"], str) and isinstance(error["type"], str)
        assert error["code"] is None or isinstance(error["code"], str)


def test_16_too_long_is_context_length_exceeded(client):
    with pytest.raises(openai.BadRequestError) as error:
        chat(client, messages=[{"role": "user", "content": "word " * 3000}])
    assert error.value.code == "context_length_exceeded"
    numbers = [int(n) for n in re.findall(r"\d+", error.value.message)]
    assert 1024 in numbers and any(n > 3000 for n in numbers)


def test_16_keys_bodies_and_names(launch):
    with launch("--api-key", "secret", "--max-body-bytes", 20000, "--served-model-name", "smol") as server:
        with server.client() as stranger, pytest.raises(openai.AuthenticationError):
            stranger.models.list()
        with server.client(api_key="secret") as friend:
            assert chat(friend, max_tokens=1).choices
            with pytest.raises(openai.NotFoundError, match="smol"):
                chat(friend, model="gpt-9")
            with pytest.raises(openai.APIStatusError) as error:
                chat(friend, messages=[{"role": "user", "content": "word " * 6000}])
            assert error.value.status_code == 413


def test_17_busy_is_429_with_whole_seconds(launch):
    with launch("--max-num-seqs", 1, "--max-queue", 1, "--served-model-name", "smol") as server:
        with httpx.stream("POST", server.url + "/v1/completions", timeout=60,
                          json={"prompt": "a", "stream": True, "max_tokens": 5000, "ignore_eos": True}) as running:
            next(running.iter_lines())
            reply = httpx.post(server.url + "/v1/completions", json={"prompt": "a", "n": 3}, timeout=60)
        assert reply.status_code == 429 and reply.json()["error"]["code"] == "queue_full"
        assert 0 < int(reply.headers["retry-after"]) <= 120


def test_18_stop_strings(client):
    with pytest.raises(openai.BadRequestError):
        chat(client, stop=["a", "b", "c", "d", "e"])
    text = complete(client, max_tokens=30).choices[0].text
    stop = text[8:13]
    streamed = "".join(c.choices[0].text for c in complete(client, max_tokens=30, stop=["never occurs", stop], stream=True))
    assert streamed == text[:text.index(stop)]
    kept = complete(client, max_tokens=30, stop=[stop], extra_body={"include_stop_str_in_output": True})
    assert kept.choices[0].text == text[:text.index(stop) + len(stop)]
    # Half of a stop string at the end is text after all.
    whole = complete(client, max_tokens=5).choices[0].text
    assert complete(client, max_tokens=5, stop=whole[-2:] + "never").choices[0].text == whole


def test_19_only_complete_utf8(client):
    chunks = list(chat(client, stream=True, max_tokens=40, temperature=1.8, seed=11,
                       messages=[{"role": "user", "content": "Reply with emoji only: 😀🎉🚀 日本語 हिन्दी"}]))
    content(chunks).encode()  # no lone surrogates
    # Single bytes of an emoji, one token each: text comes only when the character is whole.
    forced = complete(client, prompt="😀", max_tokens=1, extra_body={"echo": True})
    assert forced.choices[0].text.startswith("😀")


def test_20_chat_logprobs(client):
    choice = chat(client, logprobs=True, top_logprobs=2).choices[0]
    tokens = choice.logprobs.content
    assert b"".join(bytes(t.bytes) for t in tokens).decode() == choice.message.content
    for token in tokens:
        assert token.logprob <= 0 and len(token.top_logprobs) == 2
        assert token.top_logprobs[0].logprob >= token.top_logprobs[1].logprob
        assert math.isclose(token.logprob, token.top_logprobs[0].logprob, abs_tol=1e-6)  # greedy
    assert choice.logprobs.refusal is None
    bare = chat(client, logprobs=True).choices[0].logprobs.content
    assert bare and all(t.top_logprobs == [] for t in bare)
    assert chat(client).choices[0].logprobs is None


def test_21_top_logprobs_rules_and_alignment(client):
    for fields in ({"top_logprobs": 2}, {"logprobs": True, "top_logprobs": 21}, {"logprobs": True, "top_logprobs": -1}):
        with pytest.raises(openai.BadRequestError):
            chat(client, **fields)
    # Text held back because of a possible stop string keeps its logprobs.
    whole = complete(client, max_tokens=10, logprobs=1).choices[0]
    held = list(complete(client, max_tokens=10, logprobs=1, stream=True, stop=whole.text[:6] + "\0never"))
    tokens = [t for c in held for choice in c.choices if choice.logprobs for t in choice.logprobs.tokens]
    assert tokens == whole.logprobs.tokens
    assert "".join(c.choices[0].text for c in held) == whole.text


def test_22_completion_logprobs(client):
    choice = complete(client, logprobs=3).choices[0]
    logprobs = choice.logprobs
    assert "".join(logprobs.tokens) == choice.text
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == 12
    offset = 0
    for token, at, top in zip(logprobs.tokens, logprobs.text_offset, logprobs.top_logprobs):
        assert at == offset and token in top and 3 <= len(top) <= 4
        offset += len(token)


def test_22_echo(client):
    plain = complete(client).choices[0].text
    assert complete(client, echo=True).choices[0].text == "Once upon a time" + plain
    streamed = list(complete(client, echo=True, stream=True))
    assert "".join(c.choices[0].text for c in streamed) == "Once upon a time" + plain
    nothing = complete(client, echo=True, max_tokens=0)
    assert nothing.choices[0].text == "Once upon a time" and nothing.usage.completion_tokens == 0


def loose(client):
    """The client's types have no null in lists of log probabilities, but OpenAI sends it for a prompt's first token."""
    return client.with_options(_extra_kwargs={"_strict_response_validation": False})


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_22_scoring(server, client, max_tokens):
    """As lm-eval does: echo, logprobs, and one token that is thrown away, or none."""
    prompt = "The capital of France is Paris"
    ids = httpx.post(server.url + "/tokenize", json={"prompt": prompt}).json()["tokens"]
    for asked in (prompt, ids):
        reply = loose(client).completions.create(model="smol", prompt=asked, echo=True, logprobs=1, temperature=0,
                                                 max_tokens=max_tokens)
        choice, logprobs = reply.choices[0], reply.choices[0].logprobs
        assert choice.text.startswith(prompt) and choice.finish_reason == "length"
        assert len(logprobs.tokens) == len(ids) + max_tokens == len(logprobs.token_logprobs)
        assert "".join(logprobs.tokens[:len(ids)]) == prompt
        assert logprobs.token_logprobs[0] is None and logprobs.top_logprobs[0] is None
        for at, token, score, top in list(zip(logprobs.text_offset, logprobs.tokens, logprobs.token_logprobs,
                                              logprobs.top_logprobs))[1:]:
            assert choice.text[at:at + len(token)] == token
            assert score <= max(top.values()) <= 0 and top[token] == score
        assert reply.usage.completion_tokens == max_tokens
        streamed = list(loose(client).completions.create(model="smol", prompt=asked, echo=True, logprobs=1,
                                                         temperature=0, max_tokens=max_tokens, stream=True))
        scores = [x for c in streamed for o in c.choices if o.logprobs for x in o.logprobs.token_logprobs]
        assert scores == pytest.approx(logprobs.token_logprobs)


def test_22_the_scores_are_those_of_generation(client):
    """A token scores as a prompt's what it scored when it was generated."""
    made = complete(client, logprobs=0, max_tokens=6).choices[0]
    scored = loose(client).completions.create(model="smol", prompt="Once upon a time" + made.text, echo=True, logprobs=0,
                                              max_tokens=0).choices[0].logprobs
    assert scored.tokens[-6:] == made.logprobs.tokens
    assert scored.token_logprobs[-6:] == pytest.approx(made.logprobs.token_logprobs, abs=1e-3)


def test_22_the_end_of_sequence_is_scored_too(server, client):
    """Who drops the last entry of the lists never drops one of the prompt's."""
    end = httpx.post(server.url + "/tokenize", json={"prompt": "<|im_end|>"}).json()["tokens"]
    choice = loose(client).completions.create(model="smol", prompt="a b", echo=True, logprobs=1, max_tokens=5,
                                              extra_body={"allowed_token_ids": end}).choices[0]
    assert choice.finish_reason == "stop" and choice.text == "a b"
    assert choice.logprobs.tokens[-1] == "<|im_end|>" and len(choice.logprobs.tokens) == 3


def test_23_128_choices_share_one_prefill(client):
    reply = complete(client, n=128, temperature=1, seed=2, max_tokens=2)
    assert [c.index for c in reply.choices] == list(range(128))
    assert reply.usage.prompt_tokens < 10 and reply.usage.completion_tokens <= 256
    with pytest.raises(openai.BadRequestError):
        complete(client, n=129)


def test_23_n_choices(client):
    reply = chat(client, n=4, temperature=1.2, seed=9)
    assert [c.index for c in reply.choices] == [0, 1, 2, 3]
    assert len({c.message.content for c in reply.choices}) > 1
    assert reply.usage.completion_tokens > 4
    again = chat(client, n=4, temperature=1.2, seed=9)
    assert [c.message.content for c in again.choices] == [c.message.content for c in reply.choices]
    prompts = complete(client, prompt=["One two", "Red green"], n=2)
    assert [c.index for c in prompts.choices] == [0, 1, 2, 3]
    assert prompts.choices[0].text == prompts.choices[1].text != prompts.choices[2].text


def test_24_what_is_accepted(client, server):
    first, second = chat(client), chat(client)
    assert first.system_fingerprint and first.system_fingerprint == second.system_fingerprint
    assert second.usage.prompt_tokens_details.cached_tokens > 0
    assert chat(client, max_tokens=9, max_completion_tokens=2).usage.completion_tokens == 2
    parts = [{"type": "text", "text": "Say hello"}, {"type": "text", "text": "twice."}]
    assert chat(client, messages=[{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}])
    as_system = [{"role": role, "content": "Be brief."} for role in ("developer", "system")]
    assert chat(client, messages=[as_system[0], *HELLO]).choices[0].message.content == \
        chat(client, messages=[as_system[1], *HELLO]).choices[0].message.content
    neutral = {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "modalities": ["text"],
               "parallel_tool_calls": True, "store": False, "metadata": {"a": "b"}, "user": "u",
               "service_tier": "auto", "some_new_field": {"x": 1}}
    assert chat(client, extra_body=neutral)
    names = ["temperature", "top_p", "n", "stop", "seed", "logprobs", "top_logprobs", "stream", "stream_options",
             "max_completion_tokens", "logit_bias", "presence_penalty", "frequency_penalty", "user", "tools",
             "tool_choice", "response_format", "top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos"]
    body = {"messages": HELLO, "max_tokens": 2} | dict.fromkeys(names)
    assert httpx.post(server.url + "/v1/chat/completions", json=body, timeout=60).status_code == 200


@pytest.mark.parametrize("name, value", [
    ("tools", [{"type": "function", "function": {"name": "f"}}]),
    ("response_format", {"type": "json_object"}),
    ("modalities", ["audio"]),
    ("prediction", {"type": "content", "content": "x"}),
    ("structured_outputs", {"regex": "a+"}),
])
def test_24_what_is_not_built_is_said(client, name, value):
    with pytest.raises(openai.BadRequestError) as error:
        chat(client, extra_body={name: value})
    assert error.value.code == "unsupported_parameter" and error.value.param == name


def test_24_routes(server):
    missing = httpx.get(server.url + "/v1/nothing")
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "route_not_found"
    wrong = httpx.get(server.url + "/v1/chat/completions")
    assert wrong.status_code == 405 and wrong.headers["allow"] == "POST"


def test_25_headers_and_models(server, client):
    _, headers = raw_events(server, "/v1/chat/completions", {"messages": HELLO, "stream": True, "max_tokens": 1})
    assert headers["content-type"].startswith("text/event-stream")
    assert headers["cache-control"] == "no-cache" and headers["x-accel-buffering"] == "no"
    models = client.models.list()
    assert models.object == "list" and [m.id for m in models.data] == ["smol"]
    model = client.models.retrieve("smol")
    assert model.object == "model" and model.owned_by and abs(model.created - time.time()) < 86400
    assert models.data[0].max_model_len == 1024


def test_25_events_arrive_one_by_one(client):
    times = []
    for _ in complete(client, max_tokens=64, stream=True, extra_body={"ignore_eos": True}):
        times.append(time.monotonic())
    assert len(times) > 16
    # Not in one burst at the end: the middle of the stream was there long before its end.
    assert times[-1] - times[len(times) // 2] > 0.1 * (times[-1] - times[0])


def test_sampling_parameters_all_at_once(client):
    reply = chat(client, temperature=0.7, top_p=0.9, presence_penalty=0.5, frequency_penalty=0.5, seed=1,
                 logit_bias={"100": -100},
                 extra_body={"top_k": 20, "min_p": 0.01, "repetition_penalty": 1.1, "min_tokens": 3,
                             "stop_token_ids": [5], "skip_special_tokens": False, "priority": 1, "cache_salt": "s"})
    assert 3 <= reply.usage.completion_tokens <= 12


def test_prompts_as_token_ids(server, client):
    ids = httpx.post(server.url + "/tokenize", json={"prompt": "Once upon a time"}).json()["tokens"]
    text = complete(client).choices[0].text
    assert complete(client, prompt=ids).choices[0].text == text
    both = complete(client, prompt=[ids, ids]).choices
    assert [c.text for c in both] == [text, text]
    assert httpx.post(server.url + "/detokenize", json={"tokens": ids}).json()["prompt"] == "Once upon a time"


def test_several_at_once_are_what_they_are_alone(client):
    prompts = [f"The number {i} is" for i in range(8)]
    alone = [complete(client, prompt=p, max_tokens=16).choices[0].text for p in prompts]

    def one(i):
        if i % 2:
            return complete(client, prompt=prompts[i % 8], max_tokens=16).choices[0].text
        return "".join(c.choices[0].text for c in complete(client, prompt=prompts[i % 8], max_tokens=16, stream=True))

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        together = list(pool.map(one, range(32)))
    assert together == alone * 4


def test_continuous_usage(server):
    for path, body in (("/v1/chat/completions", {"messages": HELLO}), ("/v1/completions", {"prompt": "a"})):
        data, _ = raw_events(server, path, body | {
            "stream": True, "max_tokens": 4, "ignore_eos": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True}})
        counts = [json.loads(event)["usage"]["completion_tokens"] for event in data[:-1]]
        assert counts == sorted(counts) and counts[-1] == 4


def test_prompt_logprobs(server):
    for path, body in (("/v1/chat/completions", {"messages": HELLO}), ("/v1/completions", {"prompt": "One two three"})):
        reply = httpx.post(server.url + path, timeout=60,
                           json=body | {"prompt_logprobs": 2, "max_tokens": 1, "return_token_ids": True}).json()
        owner = reply if "messages" in body else reply["choices"][0]
        scores, ids = owner["prompt_logprobs"], owner["prompt_token_ids"]
        assert scores[0] is None and len(scores) == len(ids) == reply["usage"]["prompt_tokens"]
        for token, entry in zip(ids[1:], scores[1:]):
            own = entry[str(token)]
            assert own["rank"] >= 1 and own["logprob"] <= 0 and isinstance(own["decoded_token"], str)
            assert {e["rank"] for e in entry.values()} >= {1, 2} and 2 <= len(entry) <= 3


def test_token_ids_and_stop_reason(server):
    ask = {"prompt": "One two", "max_tokens": 3, "return_token_ids": True, "temperature": 0}
    choice = httpx.post(server.url + "/v1/completions", json=ask, timeout=60).json()["choices"][0]
    assert len(choice["token_ids"]) == 3 and choice["stop_reason"] is None
    data, _ = raw_events(server, "/v1/completions", ask | {"stream": True})
    chunks = [json.loads(event)["choices"][0] for event in data[:-1]]
    assert [i for c in chunks for i in c.get("token_ids", [])] == choice["token_ids"]
    assert chunks[0]["prompt_token_ids"] == choice["prompt_token_ids"]
    first = choice["token_ids"][0]
    by_id = httpx.post(server.url + "/v1/completions", json=ask | {"stop_token_ids": [first]}, timeout=60).json()
    assert by_id["choices"][0]["stop_reason"] == first and by_id["choices"][0]["finish_reason"] == "stop"
    text = choice["text"].strip()[:3]
    by_text = httpx.post(server.url + "/v1/completions", json=ask | {"stop": text}, timeout=60).json()
    assert by_text["choices"][0]["stop_reason"] == text


def test_words_and_ids_that_never_or_always_come(server, client):
    free = complete(client).choices[0].text
    word = next(w for w in free.split() if len(w) > 2)
    assert word not in complete(client, extra_body={"bad_words": [word]}).choices[0].text
    only = httpx.post(server.url + "/tokenize", json={"prompt": " yes"}).json()["tokens"][:1]
    reply = complete(client, max_tokens=3, extra_body={"allowed_token_ids": only, "return_token_ids": True})
    assert reply.choices[0].token_ids == only * 3


@pytest.mark.parametrize("fields", [
    {"typical_p": 0.5}, {"top_n_sigma": 1.5}, {"xtc_probability": 0.5, "xtc_threshold": 0.05}, {"dynatemp_range": 0.5},
    {"mirostat": 1}, {"num_speculative_tokens": 8}, {"mirostat": 2, "mirostat_tau": 3}, {"dry_multiplier": 0.8, "dry_sequence_breakers": ["\n"]},
    {"dry_multiplier": 1}, {"deterministic": True}, {"truncate_prompt_tokens": -1}, {"priority": -5},
], ids=lambda fields: "-".join(fields))
def test_samplers_answer(client, fields):
    for create in (chat, complete):
        first, second = (create(client, temperature=0.9, seed=4, extra_body=fields) for _ in range(2))
        assert first.usage.completion_tokens > 0
        assert first.choices[0].model_dump() == second.choices[0].model_dump()


def test_request_id_is_part_of_the_answers(client):
    assert chat(client, extra_body={"request_id": "mine-1"}).id == "chatcmpl-mine-1"


def test_chat_echo_and_continuation(client):
    messages = [*HELLO, {"role": "assistant", "content": "Hello, "}]
    go_on = {"continue_final_message": True, "add_generation_prompt": False}
    plain = chat(client, messages=messages, extra_body=go_on).choices[0].message.content
    echoed = chat(client, messages=messages, extra_body=go_on | {"echo": True})
    assert echoed.choices[0].message.content == "Hello, " + plain
    streamed = list(chat(client, messages=messages, stream=True, extra_body=go_on | {"echo": True}))
    assert content(streamed) == "Hello, " + plain


def test_tokenize_and_detokenize(server):
    def tokenize(**body):
        reply = httpx.post(server.url + "/tokenize", json=body)
        assert reply.status_code == 200, reply.text
        return reply.json()

    plain = tokenize(prompt="Hello there")
    assert plain["count"] == len(plain["tokens"]) and plain["max_model_len"] == 1024 and plain["token_strs"] is None
    assert tokenize(prompt="Hello there", return_token_strs=True)["token_strs"] == ["Hello", "\u0120there"]
    chat_form = tokenize(messages=HELLO, return_token_strs=True)
    assert chat_form["token_strs"][0] == "<|im_start|>"
    shorter = tokenize(messages=HELLO, add_generation_prompt=False)
    assert chat_form["tokens"][:shorter["count"]] == shorter["tokens"]
    used = httpx.post(server.url + "/v1/chat/completions", json={"messages": HELLO, "max_tokens": 1}, timeout=60).json()
    assert used["usage"]["prompt_tokens"] == chat_form["count"]
    again = httpx.post(server.url + "/detokenize", json={"tokens": chat_form["tokens"]}).json()["prompt"]
    assert tokenize(prompt=again)["tokens"] == chat_form["tokens"]


def test_templates_of_requests(launch):
    with launch("--trust-request-chat-template", "--served-model-name", "smol") as server, server.client() as client:
        reply = chat(client, extra_body={"chat_template": "{{ messages[0].content }} {{ word }}",
                                         "chat_template_kwargs": {"word": "now"}, "return_token_ids": True})
        words = httpx.post(server.url + "/detokenize", json={"tokens": reply.prompt_token_ids}).json()["prompt"]
        assert words == HELLO[0]["content"] + " now"


def test_sampling_values_of_the_settings_stand_behind_the_request(launch):
    with launch("--temperature", 0, "--max-tokens", 3, "--served-model-name", "smol") as server, server.client() as client:
        first, second = (client.completions.create(model="smol", prompt="Once upon") for _ in range(2))
        assert first.choices[0].text == second.choices[0].text and first.usage.completion_tokens == 3
        assert client.completions.create(model="smol", prompt="Once upon", max_tokens=5,
                                         extra_body={"ignore_eos": True}).usage.completion_tokens == 5
