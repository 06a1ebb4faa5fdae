#!/usr/bin/env python3
"""Records what a running vLLM answers to requests of every kind, good and bad: status, fields and types.

    vllm_answers.py URL [OUT]          OUT: tests/server/data/vllm_answers.json

Needs only Python. vLLM serves SmolLM2-135M-Instruct (tools/make_twin.py makes its folder) under the name "m" with a context
of 512 tokens:

    vllm serve FOLDER --served-model-name m --max-model-len 512

tests/server/test_vllm_answers.py sends the same requests to deepinfer and compares.
"""
import json
import pathlib
import sys
import urllib.error
import urllib.request

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
HI = [{"role": "user", "content": "Say hello."}]
IDS = [28120, 339]  # any two ids
LONG = "word " * 3000

# Asked of both forms: name, fields. "prompt" or "messages", model and max_tokens come from BASE.
BOTH = [
    ("plain", {}),
    ("stream", {"stream": True}),
    ("stream with usage", {"stream": True, "stream_options": {"include_usage": True}}),
    ("stream with continuous usage", {"stream": True, "stream_options": {"include_usage": True,
                                                                          "continuous_usage_stats": True}}),
    ("two choices", {"n": 2, "temperature": 1, "seed": 1}),
    ("two choices streamed", {"n": 2, "temperature": 1, "seed": 1, "stream": True}),
    ("stop string", {"stop": "e", "max_tokens": 40}),
    ("stop strings", {"stop": ["e", "zzz"], "max_tokens": 40}),
    ("stop token", {"allowed_token_ids": [30], "stop_token_ids": [30]}),
    ("stop token streamed", {"allowed_token_ids": [30], "stop_token_ids": [30], "stream": True}),
    ("token ids", {"return_token_ids": True}),
    ("token ids streamed", {"return_token_ids": True, "stream": True}),
    ("prompt_logprobs", {"prompt_logprobs": 2}),
    ("prompt_logprobs 0", {"prompt_logprobs": 0}),
    ("samplers", {"temperature": 0.8, "top_p": 0.9, "top_k": 20, "min_p": 0.01, "presence_penalty": 0.5,
                  "frequency_penalty": 0.5, "repetition_penalty": 1.1, "seed": 7, "min_tokens": 2}),
    ("temperature 0", {"temperature": 0}),
    ("logit_bias", {"logit_bias": {"30": 5}}),
    ("allowed_token_ids", {"allowed_token_ids": [30, 31]}),
    ("bad_words", {"bad_words": ["hello"]}),
    ("truncated prompt", {"truncate_prompt_tokens": 3}),
    ("ignore_eos", {"ignore_eos": True}),
    ("special tokens in the text", {"skip_special_tokens": False, "spaces_between_special_tokens": False}),
    ("unknown field", {"a_new_field": 1}),
    ("neutral values", {"user": "u", "use_beam_search": False, "length_penalty": 1.0}),
    ("nulls", dict.fromkeys(["temperature", "top_p", "seed", "logit_bias", "stream_options", "presence_penalty",
                             "frequency_penalty", "user", "top_k", "min_p"])),
    ("request_id", {"request_id": "mine"}),
    ("cache_salt", {"cache_salt": "salt"}),
    ("no model", {"model": None}),
    ("unknown model", {"model": "nobody"}),
    ("unknown model streamed", {"model": "nobody", "stream": True}),
    ("temperature negative", {"temperature": -1}),
    ("temperature text", {"temperature": "hot"}),
    ("temperature of 3", {"temperature": 3}),
    ("bad temperature streamed", {"temperature": -1, "stream": True}),
    ("top_p zero", {"top_p": 0}),
    ("top_p large", {"top_p": 2}),
    ("top_k below", {"top_k": -2}),
    ("min_p large", {"min_p": 2}),
    ("n zero", {"n": 0}),
    ("n with temperature 0", {"n": 2, "temperature": 0}),
    ("max_tokens negative", {"max_tokens": -1}),
    ("max_tokens beyond the context", {"max_tokens": 5000}),
    ("presence_penalty large", {"presence_penalty": 3}),
    ("repetition_penalty zero", {"repetition_penalty": 0}),
    ("min_tokens above max_tokens", {"min_tokens": 9, "max_tokens": 4}),
    ("stop of numbers", {"stop": [1]}),
    ("five stop strings", {"stop": ["a1", "b1", "c1", "d1", "e1"]}),
    ("stop empty", {"stop": ""}),
    ("stream_options without stream", {"stream_options": {"include_usage": True}}),
    ("prompt_logprobs streamed", {"prompt_logprobs": 1, "stream": True}),
    ("prompt_logprobs of 21", {"prompt_logprobs": 21}),
    ("prompt_logprobs of all", {"prompt_logprobs": -1}),
    ("logit_bias of no token", {"logit_bias": {"99999999": 1}}),
    ("logit_bias of a word", {"logit_bias": {"word": 1}}),
    ("allowed_token_ids empty", {"allowed_token_ids": []}),
    ("allowed_token_ids of no token", {"allowed_token_ids": [99999999]}),
    ("bad_words empty", {"bad_words": [""]}),
    ("cache_salt empty", {"cache_salt": ""}),
    ("seed text", {"seed": "x"}),
    ("truncation below", {"truncate_prompt_tokens": -2}),
    ("truncation beyond the context", {"truncate_prompt_tokens": 100000}),
    ("stream text", {"stream": "perhaps"}),
    ("stop_token_ids text", {"stop_token_ids": "x"}),
    ("response_format text", {"response_format": {"type": "text"}}),
]
CHATS = [
    ("logprobs", {"logprobs": True}),
    ("top_logprobs", {"logprobs": True, "top_logprobs": 2}),
    ("top_logprobs streamed", {"logprobs": True, "top_logprobs": 2, "stream": True}),
    ("tokens as ids", {"logprobs": True, "top_logprobs": 1, "return_tokens_as_token_ids": True}),
    ("max_completion_tokens", {"max_completion_tokens": 2, "max_tokens": 5}),
    ("parts", {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]}),
    ("developer", {"messages": [{"role": "developer", "content": "Be brief."}, *HI]}),
    ("tools none", {"tool_choice": "none"}),
    ("reasoning_effort", {"reasoning_effort": "low"}),
    ("reasoning_effort unknown", {"reasoning_effort": "huge"}),
    ("chat_template_kwargs", {"chat_template_kwargs": {"enable_thinking": False}}),
    ("documents", {"documents": [{"title": "t", "text": "x"}]}),
    ("no generation prompt", {"add_generation_prompt": False}),
    ("continued message", {"messages": [*HI, {"role": "assistant", "content": "Well,"}],
                           "add_generation_prompt": False, "continue_final_message": True}),
    ("continued message and generation prompt", {"messages": [*HI, {"role": "assistant", "content": "Well,"}],
                                                 "add_generation_prompt": True, "continue_final_message": True}),
    ("echo", {"messages": [*HI, {"role": "assistant", "content": "Well,"}], "echo": True}),
    ("echo streamed", {"messages": [*HI, {"role": "assistant", "content": "Well,"}], "echo": True, "stream": True}),
    ("messages empty", {"messages": []}),
    ("messages missing", {"messages": None}),
    ("messages text", {"messages": "hi"}),
    ("message text", {"messages": ["hi"]}),
    ("role missing", {"messages": [{"content": "hi"}]}),
    ("role unknown", {"messages": [{"role": "king", "content": "hi"}]}),
    ("content missing", {"messages": [{"role": "user"}]}),
    ("content number", {"messages": [{"role": "user", "content": 5}]}),
    ("an image", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}),
    ("too long", {"messages": [{"role": "user", "content": LONG}]}),
    ("too long streamed", {"messages": [{"role": "user", "content": LONG}], "stream": True}),
    ("max_tokens zero", {"max_tokens": 0}),
    ("top_logprobs alone", {"top_logprobs": 2}),
    ("top_logprobs of 21", {"logprobs": True, "top_logprobs": 21}),
    ("logprobs number", {"logprobs": 5}),
    ("chat_template", {"chat_template": "{{ messages }}"}),
    ("tools wrong", {"tools": "x"}),
]
COMPLETIONS = [
    ("token ids as prompt", {"prompt": IDS}),
    ("two prompts", {"prompt": ["One", "Two"]}),
    ("two prompts streamed", {"prompt": ["One", "Two"], "stream": True}),
    ("two prompts of ids", {"prompt": [IDS, [30]], "n": 2, "temperature": 1, "seed": 3}),
    ("logprobs", {"logprobs": 2}),
    ("logprobs 0", {"logprobs": 0}),
    ("logprobs streamed", {"logprobs": 1, "stream": True}),
    ("tokens as ids", {"logprobs": 1, "return_tokens_as_token_ids": True}),
    ("echo", {"echo": True}),
    ("echo streamed", {"echo": True, "stream": True}),
    ("echo of ids", {"echo": True, "prompt": IDS}),
    ("echo with logprobs", {"echo": True, "logprobs": 1, "max_tokens": 1}),
    ("echo with logprobs alone", {"echo": True, "logprobs": 1, "max_tokens": 0}),
    ("echo with logprobs streamed", {"echo": True, "logprobs": 1, "max_tokens": 2, "stream": True}),
    ("scoring as lm-eval does", {"prompt": [IDS + [30, 31]], "temperature": 0, "max_tokens": 1, "logprobs": 1,
                                 "seed": 1234, "echo": True}),
    ("add_special_tokens", {"add_special_tokens": False}),
    ("prompt missing", {"prompt": None}),
    ("prompt of no text", {"prompt": ""}),
    ("prompt empty", {"prompt": []}),
    ("prompt number", {"prompt": 5}),
    ("prompt mixed", {"prompt": ["a", 1]}),
    ("prompt of no token", {"prompt": [99999999]}),
    ("prompt of a negative id", {"prompt": [-1]}),
    ("too long", {"prompt": LONG}),
    ("max_tokens zero", {"max_tokens": 0}),
    ("logprobs of 21", {"logprobs": 21}),
    ("logprobs boolean", {"logprobs": True}),
    ("suffix", {"suffix": "x"}),
]
OTHER = [
    ("malformed JSON", "POST", CHAT, '{"messages": ['),
    ("an array", "POST", CHAT, "[1]"),
    ("an empty body", "POST", CHAT, ""),
    ("malformed completion", "POST", COMPLETION, "{"),
    ("tokenize", "POST", "/tokenize", {"prompt": "Hello there"}),
    ("tokenize with strings", "POST", "/tokenize", {"prompt": "Hello there", "return_token_strs": True}),
    ("tokenize nothing", "POST", "/tokenize", {"prompt": ""}),
    ("tokenize messages", "POST", "/tokenize", {"messages": HI}),
    ("tokenize messages with strings", "POST", "/tokenize", {"messages": HI, "return_token_strs": True}),
    ("tokenize messages without prompt", "POST", "/tokenize", {"messages": HI, "add_generation_prompt": False}),
    ("tokenize continued", "POST", "/tokenize",
     {"messages": [*HI, {"role": "assistant", "content": "Well,"}], "add_generation_prompt": False,
      "continue_final_message": True}),
    ("tokenize kwargs", "POST", "/tokenize", {"messages": HI, "chat_template_kwargs": {"x": True}}),
    ("tokenize long", "POST", "/tokenize", {"prompt": LONG[:4000]}),
    ("tokenize without prompt", "POST", "/tokenize", {}),
    ("tokenize a number", "POST", "/tokenize", {"prompt": 5}),
    ("tokenize for nobody", "POST", "/tokenize", {"model": "nobody", "prompt": "x"}),
    ("detokenize", "POST", "/detokenize", {"tokens": IDS}),
    ("detokenize nothing", "POST", "/detokenize", {"tokens": []}),
    ("detokenize without tokens", "POST", "/detokenize", {}),
    ("detokenize text", "POST", "/detokenize", {"tokens": "x"}),
    ("detokenize a negative id", "POST", "/detokenize", {"tokens": [-1]}),
    ("detokenize no token", "POST", "/detokenize", {"tokens": [99999999]}),
    ("models", "GET", "/v1/models", None),
    ("no route", "GET", "/v1/nothing", None),
    ("wrong method", "GET", CHAT, None),
    ("wrong method on health", "POST", "/health", {}),
    ("version", "GET", "/version", None),
]
BASE = {CHAT: {"model": "m", "messages": HI, "max_tokens": 4},
        COMPLETION: {"model": "m", "prompt": "Once upon a time", "max_tokens": 4}}


def cases():
    """name, method, path, body (text or None)"""
    for path, form, rows in ((CHAT, "chat", BOTH + CHATS), (COMPLETION, "completion", BOTH + COMPLETIONS)):
        for name, fields in rows:
            yield f"{form}: {name}", "POST", path, json.dumps(BASE[path] | fields)
    for name, method, path, body in OTHER:
        yield name, method, path, body if body is None or isinstance(body, str) else json.dumps(body)


def ask(url, method, path, body):
    """status, media type, text"""
    request = urllib.request.Request(url + path, method=method, data=None if body is None else body.encode(),
                                     headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=600) as reply:
            return reply.status, reply.headers.get_content_type(), reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers.get_content_type(), error.read().decode()


# Objects whose keys are data: token texts and token ids (chat has lists of objects with names under the first one).
MAPS = ("top_logprobs", "prompt_logprobs")


def merge(a, b):
    """The shape that covers both."""
    if a == b or b is None:
        return a
    if a is None:
        return b
    if isinstance(a, dict) and isinstance(b, dict):
        return {key: merge(a.get(key), b.get(key)) for key in a | b}
    if isinstance(a, list) and isinstance(b, list):
        return [merge(a[0], b[0])] if a and b else a or b
    if isinstance(a, str) and isinstance(b, str):
        return "|".join(sorted(set(a.split("|")) | set(b.split("|"))))
    if a == "null" or b == "null":  # a value that may be missing
        return b if a == "null" else a
    return "mixed"


def shape(value, key=""):
    """Types in the place of values; lists have the shape that covers their items."""
    if isinstance(value, dict):
        if key in MAPS and "token" not in value:
            covered = None
            for item in value.values():
                covered = merge(covered, shape(item))
            return {"*": covered}
        return {name: shape(item, name) for name, item in value.items()}
    if isinstance(value, list):
        covered = None
        for item in value:
            covered = merge(covered, shape(item, key))
        return [] if covered is None else [covered]
    return {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}[type(value)]


def answer(status, kind, text):
    """What the golden file keeps."""
    out = {"status": status, "type": kind}
    if kind == "text/event-stream":
        data = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
        out["done"] = bool(data) and data[-1] == "[DONE]"
        events = None
        for event in data:
            if event != "[DONE]":
                events = merge(events, shape(json.loads(event)))
        out["shape"] = events
    elif kind == "application/json" and text:
        value = json.loads(text)
        out["shape"] = shape(value)
        if isinstance(value, dict) and "choices" in value:
            out["finish"] = sorted({choice["finish_reason"] for choice in value["choices"]})
            out["choices"] = len(value["choices"])
    return out


def main():
    root = pathlib.Path(__file__).resolve().parents[2]
    out = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else root / "tests/server/data/vllm_answers.json"
    url = sys.argv[1].rstrip("/")
    version = json.loads(ask(url, "GET", "/version", None)[2])["version"]
    rows = []
    for name, method, path, body in cases():
        rows.append({"name": name} | answer(*ask(url, method, path, body)))
        print(rows[-1]["status"], name, flush=True)
    text = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    out.write_text(f'{{"vllm": "{version}", "answers": [\n{text}\n]}}\n')


if __name__ == "__main__":
    main()
