"""What the server promises, as its users meet it: the real program, the default model.

Each promise, and the test that fails when it is broken (files of tests/unit/server, tests/unit/engine and others where
the name says so; without a file: here):

bounded queue, 429 with Retry-After, n counts         test_full_queue_is_429_and_n_counts, api_test QueueFullIs429AndOthersGoOn
503 while loading, the socket is bound first          api_test LoadingAnswersHealthAloneAndSaysWhenToRetry,
                                                      test_lifecycle test_health_answers_while_the_model_loads
queue_timeout is 503, streamed or not                 api_test TimeoutsOfWholeAnswersAre503And504,
                                                      api_test TimeoutsAre503BeforeTheStreamAndAnEventInIt
timeout is 504, in a stream an event, then [DONE]     the same two, test_timeout_of_a_stream_is_an_event
a disconnect frees its blocks within a step           test_lifecycle test_disconnect_frees_the_blocks_by_the_next_step,
                                                      test_transport test_disconnect_of_a_tls_client_...
and what was computed of its prompt stays cached      test_prefix_of_a_client_that_left_stays_cached
SIGTERM drains, POST is 503 with Connection: close    test_lifecycle test_sigterm_drains,
                                                      api_test DrainLetsRunningOnesFinishAndRefusesNewOnes
a second signal ends at once                          test_lifecycle test_second_signal_ends_at_once
exit codes 0, 2, 3, 4, 5, 6                           test_exit_code, test_lifecycle (0: each server that is stopped, 5, 6),
                                                      test_transport (2, 5)
/health: loading, ready, queue full, draining         test_lifecycle, api_test QueueFullIs429AndOthersGoOn, Drain...
/health: no heartbeat, device lost                    api_test StalledEngineIsUnhealthyAndFailsWhatItHolds,
                                                      LostDeviceIsUnhealthy, tests/emulation serve_lost_test
a stalled engine holds no request and no exit         the same, api_test WaitingForLongIsNoStall,
                                                      test_stalled_engine_holds_neither_requests_nor_the_end
a stream without news pings                           api_test StreamWithoutNewsPings
one bad request fails alone                           test_bad_requests_leave_a_stream_alone, test_bad_input test_bad_request,
                                                      api_test FaultOfAStepFailsItsRequestAloneInFixedWords,
                                                      engine_faults_test AFailedStepEndsItsSequences
out of memory ends the newest sequence alone          engine_faults_test OutOfMemoryEndsTheNewestSequenceOnly,
                                                      scheduler_test AfterMemoryRanOutStepsAreSmaller,
                                                      tests/emulation OutOfMemoryInFlightEndsOneSequenceOnly
nothing is allocated per step                         tests/ops allocation_test, tests/emulation NothingIsAllocatedPerStep
preemption loses and doubles nothing                  test_preemption_changes_no_token, equal_bits_test Preempted,
                                                      random_histories_test OutputsEqualTheOracle
a seed gives the same tokens whatever else runs       test_seed_gives_the_same_alone_and_in_a_batch,
                                                      equal_bits_test Batched, Chunked, PrefixHits, Threads
  GPU, gpu.deterministic                              tests/emulation DeterministicMeansTheSameTokensWhateverRunsBeside,
                                                      DeterministicBitsDoNotDependOnTheBatch, BitsDoNotDependOnTheStep
  a request that asks for it while it is off          params_test DeterministicNeedsItsSettingOnAGpuOnly
a model file is checked before use                    tests/unit/model gguf_test, safetensors_test, gguf_model_test;
                                                      test_broken_model_file_is_3_with_words
no idle CPU                                           test_lifecycle test_idle_server_uses_no_cpu

Vulnerability classes:

unpickling, tensors from clients; RPC                 test_one_socket_on_loopback (nothing else listens)
code from a model repository                          test_exit_code[trust_remote_code],
                                                      load_test RemoteCodeIsRefusedFromEverySource
template injection and DoS                            tests/unit/text chat_template_test; text of messages:
                                                      test_bad_input test_special_tokens_in_a_message_are_plain_text
grammars and schemas (none are compiled yet)          openai_test WrongTypesAndRangesNameTheParameter: refused
numeric parameters                                    sampling_params_test RefusesWhatIsOutOfRangeAndSaysWhat,
                                                      test_bad_input test_bad_request
API keys                                              test_every_route_but_the_open_ones_needs_a_key, test_key_file,
                                                      auth_test, api_test Keys..., OpenRoutes..., Hosts..., Preflight...
prefix cache as a side channel                        api_test KeysDoNotSharePrefixes, SpellingsOfOneKeyShareTheirPrefixes,
                                                      block_pool_test KeysDependOnTokensParentAndSalt
HTTP: sizes, slow clients, smuggling                  http_test HttpRefusal (each rule), test_transport test_limits_...,
                                                      test_200_slow_clients_hinder_nobody, test_a_client_that_reads_nothing_...
model files                                           see above
paths and archives                                    safetensors_test NamesMustNotLeadOutOfTheFolder, tests/hub
information leaks                                     test_errors_name_no_paths_and_addresses,
                                                      api_test FaultOfAStepFailsItsRequestAloneInFixedWords
"""
import concurrent.futures
import fcntl
import hashlib
import json
import os
import pathlib
import re
import subprocess
import threading

import httpx
import pytest
from server_support import post_bytes, read_events, wait_for

COMPLETIONS = "/v1/completions"
LONG = {"prompt": "Once", "max_tokens": 900, "ignore_eos": True, "stream": True}


def test_the_list_above_names_tests_that_exist():
    tests = pathlib.Path(__file__).parent.parent
    text = "\n".join(path.read_text() for path in tests.rglob("*") if path.suffix in (".cpp", ".cu", ".py", ".txt"))
    text = text.replace(__doc__, "")
    names = set(re.findall(r"\btest_[a-z0-9_]+|\b(?:[A-Z][a-z0-9]+){2,}[A-Za-z0-9]*|\b[a-z_]+_test\b", __doc__))
    assert len(names) > 50
    files = "\n".join(path.name for path in tests.rglob("*"))
    missing = [name for name in sorted(names) if name not in text and name not in files]
    assert not missing


def complete(server, **body):
    reply = httpx.post(server.url + COMPLETIONS, json=body, timeout=120)
    assert reply.status_code == 200, reply.text
    return reply.json()


def start_stream(server, **body):
    """A raw connection whose stream has begun."""
    connection = server.connect()
    connection.sendall(post_bytes(COMPLETIONS, json.dumps(LONG | body).encode()))
    assert b"200" in connection.recv(100)
    return connection


def test_full_queue_is_429_and_n_counts(launch, tmp_path):
    log = tmp_path / "events"
    with launch("--max-num-seqs", 1, "--max-queue", 3, "--max-model-len", 1024, "--event-log", log) as server:
        running = start_stream(server)
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            waiting = pool.submit(complete, server, prompt="a", max_tokens=1, n=2)
            wait_for(lambda: sum(e["event"] == "add" for e in read_events(log)) == 2)
            for stream in (False, True):
                refused = httpx.post(server.url + COMPLETIONS, json={"prompt": "a", "n": 2, "stream": stream}, timeout=60)
                assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
                assert refused.json()["error"]["code"] == "queue_full"
            assert httpx.get(server.url + "/health").status_code == 200
            assert httpx.get(server.url + "/health/ready").status_code == 200
            one = pool.submit(complete, server, prompt="a", max_tokens=1)  # a single one still fits
            wait_for(lambda: sum(e["event"] == "add" for e in read_events(log)) == 3)
            running.close()
            assert len(waiting.result()["choices"]) == 2 and len(one.result()["choices"]) == 1
        assert server.stop() == 0


def test_timeout_of_a_stream_is_an_event(launch):
    with launch("--timeout", 0.5) as server:
        with httpx.stream("POST", server.url + COMPLETIONS, json=LONG | {"max_tokens": 5000}, timeout=60) as stream:
            lines = [line for line in stream.iter_lines() if line]
        assert lines[-1] == "data: [DONE]"
        assert json.loads(lines[-2].removeprefix("data: "))["error"]["code"] == "timeout"
        assert httpx.post(server.url + COMPLETIONS, json=LONG | {"stream": False, "max_tokens": 5000},
                          timeout=60).status_code == 504
        assert server.stop() == 0


def test_stalled_engine_holds_neither_requests_nor_the_end(launch, tmp_path):
    """Its event log is a pipe that nobody reads: when it is full, the engine's thread hangs in its write."""
    pipe = tmp_path / "events"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reader, 1031, 4096)  # F_SETPIPE_SZ

    def is_healthy():
        try:
            while os.read(reader, 65536):
                pass
        except BlockingIOError:
            pass
        return httpx.get(server.url + "/health").status_code == 200

    try:
        with launch("--event-log", pipe, "--stall-timeout", 1, "--max-model-len", 1024) as server:
            for ends in (False, True):
                with httpx.stream("POST", server.url + COMPLETIONS, json=LONG, timeout=60) as stream:
                    lines = [line for line in stream.iter_lines() if line]
                assert lines[-1] == "data: [DONE]"
                assert json.loads(lines[-2].removeprefix("data: "))["error"]["code"] == "stalled"
                refused = httpx.post(server.url + COMPLETIONS, json=LONG, timeout=60)
                assert refused.status_code == 503 and refused.json()["error"]["code"] == "stalled"
                assert httpx.get(server.url + "/health").status_code == 503
                if not ends:
                    wait_for(is_healthy)
            assert server.stop(timeout=20) == 6
    finally:
        os.close(reader)


@pytest.mark.parametrize("stream", [True, False])
def test_prefix_of_a_client_that_left_stays_cached(server, events, stream):
    prompt = f"{'streamed' if stream else 'whole'} " + "word " * 100
    before = len(read_events(events))
    connection = server.connect()
    connection.sendall(post_bytes(COMPLETIONS, json.dumps(LONG | {"prompt": prompt, "stream": stream}).encode()))
    wait_for(lambda: sum(e["event"] == "step" for e in read_events(events)[before:]) > 3)
    connection.close()
    wait_for(lambda: any(e["event"] == "release" for e in read_events(events)[before:]))
    assert complete(server, prompt=prompt, max_tokens=1)["usage"]["prompt_tokens_details"]["cached_tokens"] >= 96


@pytest.mark.parametrize("args, code, words", [
    (["--port", "-1"], 2, ["server.port", "0 to 65535"]),
    (["--max-num-seq", "3"], 2, ["--max-num-seqs"]),
    (["--trust-remote-code"], 2, ["model.trust_remote_code", "never executes code"]),
    (["--open-routes", "/helth"], 2, ["server.open_routes", "/helth", "/health/ready"]),
    (["--api-key-file", "/none"], 2, ["server.api_key_file", "/none"]),
    (["--model", "/none.gguf"], 3, ["/none.gguf"]),
    (["--kv-cache-memory-bytes", "1000"], 4, ["kv_cache_memory_bytes"]),
], ids=["range", "flag", "trust_remote_code", "open_routes", "key file", "model", "memory"])
def test_exit_code(deepinfer, model_path, args, code, words):
    model = [] if "--model" in args else ["--model", model_path]
    done = subprocess.run([deepinfer, "serve", "--port", "0", *model, *args], capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done
    for word in words:
        assert word in done.stderr, done.stderr


def test_broken_model_file_is_3_with_words(deepinfer, model_path, tmp_path):
    for name, size in (("header", 1000), ("tensors", 50_000_000)):
        path = tmp_path / f"{name}.gguf"
        with open(model_path, "rb") as whole:
            path.write_bytes(whole.read(size))
        done = subprocess.run([deepinfer, "serve", "--port", "0", "--model", path], capture_output=True, text=True, timeout=60)
        assert done.returncode == 3 and path.name in done.stderr, done


def test_bad_requests_leave_a_stream_alone(server):
    body = {"prompt": "The sea", "max_tokens": 80, "ignore_eos": True, "temperature": 0, "stream": True}

    def text(lines):
        chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
        return "".join(chunk["choices"][0]["text"] for chunk in chunks)

    with httpx.stream("POST", server.url + COMPLETIONS, json=body, timeout=120) as alone:
        expected = text(alone.iter_lines())
    with httpx.stream("POST", server.url + COMPLETIONS, json=body, timeout=120) as stream:
        lines = stream.iter_lines()
        got = [next(lines)]
        for bad, status in [(b"{", 400), (b'{"prompt": []}', 400), (b'{"prompt": "a", "n": 0}', 400),
                            (b'{"prompt": [1, 99999999]}', 400), (b'{"prompt": "a", "temperature": 1e999}', 400),
                            (json.dumps({"prompt": "w " * 5000}).encode(), 400),
                            (b'{"prompt": "a", "model": "x"}', 404)]:
            assert httpx.post(server.url + COMPLETIONS, content=bad, timeout=60).status_code == status
        with server.connect() as garbage:
            garbage.sendall(b"\x00\xff\x00\xff\r\n\r\n")
            assert garbage.recv(100).startswith(b"HTTP/1.1 400 ")
        got += list(lines)
    assert text(got) == expected


def test_preemption_changes_no_token(launch, tmp_path):
    """Five answers at once in a pool that holds about two of them."""
    def answers(server):
        def one(i):
            reply = complete(server, prompt=f"Story {i}: once upon a time", max_tokens=120, temperature=0, ignore_eos=True,
                             logprobs=0)
            choice = reply["choices"][0]
            return choice["text"], choice["logprobs"]["token_logprobs"]

        with concurrent.futures.ThreadPoolExecutor(5) as pool:
            return list(pool.map(one, range(5)))

    log = tmp_path / "events"
    with launch("--max-model-len", 256) as large:
        expected = answers(large)
    # A block of SmolLM2-135M: 30 layers x 2 x 3 heads x 64 x 16 tokens x 2 bytes = 368,640 bytes; 18 of them.
    with launch("--max-model-len", 256, "--kv-cache-memory-bytes", 18 * 368_640, "--event-log", log) as tiny:
        got = answers(tiny)
        assert tiny.stop() == 0
    assert sum(e["event"] == "preempt" for e in read_events(log)) > 0
    assert got == expected


def test_seed_gives_the_same_alone_and_in_a_batch(server):
    body = {"prompt": "My favourite", "max_tokens": 40, "temperature": 1.2, "top_p": 0.9, "seed": 7, "logprobs": 2,
            "ignore_eos": True}

    def choice(reply):
        return reply["choices"][0]["text"], reply["choices"][0]["logprobs"]

    alone = choice(complete(server, **body))
    stop = threading.Event()

    def crowd(i):
        while not stop.is_set():
            complete(server, prompt="noise " * (1 + 17 * i), max_tokens=30, temperature=1, ignore_eos=True, n=2)

    threads = [threading.Thread(target=crowd, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            assert choice(complete(server, **body)) == alone
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert choice(complete(server, **body | {"seed": 8})) != alone


def test_one_socket_on_loopback(server):
    inodes = set()
    for file in os.listdir(f"/proc/{server.process.pid}/fd"):
        try:
            link = os.readlink(f"/proc/{server.process.pid}/fd/{file}")
        except FileNotFoundError:
            continue
        if found := re.fullmatch(r"socket:\[(\d+)\]", link):
            inodes.add(found.group(1))
    listening = []
    for table in ("tcp", "tcp6", "udp", "udp6"):
        with open(f"/proc/{server.process.pid}/net/{table}", encoding="utf-8") as file:
            rows = [line.split() for line in file][1:]
        listening += [row[1] for row in rows if row[9] in inodes and (row[3] == "0A" or table.startswith("udp"))]
    assert listening == [f"0100007F:{server.port:04X}"]


def test_every_route_but_the_open_ones_needs_a_key(launch):
    with launch("--api-key", "secret") as server:
        for path in ("/health", "/health/ready", "/version"):
            assert httpx.get(server.url + path).status_code == 200
        for method, path in [("GET", "/v1/models"), ("GET", "/v1/models/x"), ("POST", COMPLETIONS),
                             ("POST", "/v1/chat/completions"), ("POST", "/tokenize"), ("POST", "/detokenize"),
                             ("GET", "/v1/gpu/info"), ("GET", "/nowhere"), ("PUT", "/v1/models")]:
            reply = httpx.request(method, server.url + path)
            assert reply.status_code == 401 and reply.headers["www-authenticate"] == "Bearer", path
        assert httpx.get(server.url + "/v1/models", headers={"Authorization": "Bearer secret"}).status_code == 200
        assert server.stop() == 0


def test_key_file(launch, tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"# ours\nplain-key\nsha256:{hashlib.sha256(b'hashed-key').hexdigest()}\n")
    path.chmod(0o644)
    with launch("--api-key-file", path, "--open-routes", "/v1/models") as server:
        def status(key, route="/v1/gpu/info"):
            return httpx.get(server.url + route, headers={"Authorization": f"Bearer {key}"}).status_code

        assert [status(key) for key in ("plain-key", "hashed-key", "# ours", "wrong")] == [200, 200, 401, 401]
        assert httpx.get(server.url + "/v1/models").status_code == 200  # open by the setting
        assert httpx.get(server.url + "/health").status_code == 401  # and so no longer open
        text = "".join(server.out + server.err)
        assert "every user of this machine can read" in text and "plain-key" not in text
        assert "$API_KEY" in text
        assert server.stop() == 0


def test_errors_name_no_paths_and_addresses(server, model_path):
    seen = []
    for method, path, content in [("POST", COMPLETIONS, b"{"), ("POST", COMPLETIONS, b'{"prompt": "a", "model": "../etc"}'),
                                  ("POST", "/v1/chat/completions", b'{"messages": [{"role": "king"}]}'),
                                  ("POST", "/tokenize", b"[]"), ("POST", "/detokenize", b'{"tokens": [-1]}'),
                                  ("GET", "/../../etc/passwd", b""), ("GET", "/v1/models/%2e%2e%2f", b""),
                                  ("DELETE", "/health", b""), ("POST", COMPLETIONS, b'{"prompt": [99999999]}')]:
        reply = httpx.request(method, server.url + path, content=content)
        assert reply.status_code in (400, 404, 405), (path, reply.text)
        seen.append(reply.text)
    for text in seen:
        assert str(model_path.parent) not in text and not re.search(r"0x[0-9a-f]{4}|/(root|home|usr|src|work)/", text), text
