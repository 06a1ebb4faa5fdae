#!/usr/bin/env python3
"""Sends a file of requests in OpenAI's batch format to a server, several at a time. Needs the package openai.

    batch.py IN.jsonl OUT.jsonl [--url URL] [--api-key KEY] [--at-once N]

A line of IN: {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [...]}}. OUT gets a
line for each as it ends, in OpenAI's format of results; custom_id tells which is which. Stopped in between, the same command
goes on: what OUT has already is not asked again. `deepinfer batch` does the same without a server.
"""
import argparse
import asyncio
import json
import pathlib
import sys
import uuid

import httpx
import openai


def read_requests(path):
    """The lines of IN; a wrong one ends the program before anything is sent."""
    requests, seen = [], set()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            request = json.loads(line)
            name, url, body = request["custom_id"], request["url"], request["body"]
        except (ValueError, KeyError, TypeError) as e:
            sys.exit(f"{path}:{number}: {type(e).__name__} {e}, expected an object with custom_id, url and body")
        if name in seen:
            sys.exit(f"{path}:{number}: custom_id {name!r} was there before, expected one for each line")
        seen.add(name)
        requests.append((name, url.removeprefix("/v1"), body))
    return requests


def done_before(path):
    """The custom_ids of OUT. A last line that was cut off is removed, so that its request is sent again."""
    if not path.exists():
        return set()
    text = path.read_bytes()
    whole = text[:text.rfind(b"\n") + 1]
    if whole != text:
        path.write_bytes(whole)
    return {json.loads(line)["custom_id"] for line in whole.splitlines()}


async def answer(client, name, url, body):
    """One line of OUT."""
    result = {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": name, "response": None, "error": None}
    try:
        reply = await client.post(url, body=body, cast_to=httpx.Response)
    except openai.APIStatusError as e:  # the server refused it: that is its answer
        reply = e.response
    except openai.APIConnectionError as e:
        return result | {"error": {"code": "connection", "message": str(e)}}
    return result | {"response": {"status_code": reply.status_code, "request_id": reply.headers.get("x-request-id"),
                                  "body": reply.json()}}


async def run(options):
    requests = read_requests(options.input)
    before = done_before(options.output)
    left = [request for request in requests if request[0] not in before]
    print(f"{len(requests)} requests, {len(requests) - len(left)} of them done before", file=sys.stderr)
    failed = 0
    slots = asyncio.Semaphore(options.at_once)
    async with openai.AsyncOpenAI(base_url=options.url, api_key=options.api_key, max_retries=5, timeout=3600) as client:
        with options.output.open("a", encoding="utf-8") as out:
            async def one(request):
                async with slots:
                    return await answer(client, *request)

            for next_done in asyncio.as_completed([one(request) for request in left]):
                line = await next_done
                failed += line["error"] is not None or line["response"]["status_code"] != 200
                out.write(json.dumps(line, ensure_ascii=False) + "\n")
                out.flush()
    print(f"{len(left) - failed} answered, {failed} failed", file=sys.stderr)
    return 1 if failed else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", type=pathlib.Path, metavar="IN.jsonl")
    parser.add_argument("output", type=pathlib.Path, metavar="OUT.jsonl")
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--api-key", default="none")
    parser.add_argument("--at-once", type=int, default=32, help="requests at a time [%(default)s]")
    sys.exit(asyncio.run(run(parser.parse_args())))


if __name__ == "__main__":
    main()
