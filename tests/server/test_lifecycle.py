"""From the first line of output to the exit code: readiness, signals, disconnects, the port, the printed curl line."""
import json
import signal
import socket
import subprocess
import threading
import time

import httpx
import pytest
from server_support import read_events, wait_for


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("how", ["close", "reset", "half"])
def test_disconnect_frees_the_blocks_by_the_next_step(server, events, stream, how):
    before = len(read_events(events))
    body = json.dumps({"prompt": "Once", "max_tokens": 1000, "ignore_eos": True, "stream": stream, "n": 2}).encode()
    connection = server.connect()
    connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    def new():
        return read_events(events)[before:]

    wait_for(lambda: sum(e["event"] == "step" for e in new()) > 5)
    if how == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    if how == "half":
        connection.shutdown(socket.SHUT_WR)
    else:
        connection.close()
    wait_for(lambda: sum(e["event"] == "release" for e in new()) == 2)
    connection.close()
    log = new()
    cancel = next(i for i, e in enumerate(log) if e["event"] == "cancel")
    last_release = max(i for i, e in enumerate(log) if e["event"] == "release")
    assert sum(e["event"] == "step" for e in log[cancel:last_release]) <= 1
    assert {e["reason"] for e in log if e["event"] == "finish"} == {"cancelled"}
    # Free again: as many as there were before this request's first step, but for what the prefix cache keeps usable.
    first_step = next(e for e in log if e["event"] == "step")
    assert log[last_release]["free_blocks"] >= first_step["free_blocks"]


def test_stop_string_ends_its_choice_in_the_engine(server, events):
    before = len(read_events(events))
    text = httpx.post(server.url + "/v1/completions", timeout=60,
                      json={"prompt": "Once upon a time", "temperature": 0, "max_tokens": 12}).json()["choices"][0]["text"]
    reply = httpx.post(server.url + "/v1/completions", timeout=120,
                       json={"prompt": "Once upon a time", "temperature": 0, "max_tokens": 900, "ignore_eos": True,
                             "stop": text[5:10]}).json()
    assert reply["choices"][0]["finish_reason"] == "stop"
    wait_for(lambda: any(e["event"] == "finish" and e["reason"] == "cancelled" for e in read_events(events)[before:]))
    finish = [e for e in read_events(events)[before:] if e["event"] == "finish"][-1]
    assert finish["tokens"] < 100


def test_the_printed_curl_line_works_as_printed(launch):
    with launch() as server:
        text = "".join(server.out)
        command = text[text.index("curl "):].strip()
        done = subprocess.run(["bash", "-c", command + " --silent --fail"], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done
        assert json.loads(done.stdout)["choices"][0]["message"]["content"]


def test_health_answers_while_the_model_loads(launch):
    with launch(ready=False) as server:
        assert httpx.get(server.url + "/health").status_code == 200
        statuses = set()

        def ready():
            reply = httpx.get(server.url + "/health/ready")
            statuses.add(reply.status_code)
            return reply.status_code == 200

        wait_for(ready, 60)
        assert statuses <= {200, 503}
        assert server.stop() == 0


def test_port_in_use_is_5_and_says_where(deepinfer, model_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run([deepinfer, "serve", "--port", str(port), "--model", model_path], capture_output=True,
                              text=True, timeout=60)
    assert done.returncode == 5
    assert f"127.0.0.1:{port}" in done.stderr and "--port" in done.stderr


def test_model_that_is_missing_is_3(deepinfer, tmp_path):
    done = subprocess.run([deepinfer, "serve", "--port", "0", "--model", tmp_path / "none.gguf"], capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 3 and "none.gguf" in done.stderr


def long_stream(server, lines, tokens=200):
    body = {"prompt": "Once", "max_tokens": tokens, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", server.url + "/v1/completions", json=body, timeout=120) as reply:
        for line in reply.iter_lines():
            lines.append(line)


def test_sigterm_drains(launch):
    with launch() as server:
        lines = []
        reader = threading.Thread(target=long_stream, args=(server, lines))
        reader.start()
        wait_for(lambda: len(lines) > 4)
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: "finishing running requests" in "".join(server.err))
        assert httpx.get(server.url + "/health").status_code == 200
        assert httpx.get(server.url + "/health/ready").status_code == 503
        refused = httpx.post(server.url + "/v1/completions", json={"prompt": "a"})
        assert refused.status_code == 503 and refused.headers["connection"] == "close"
        reader.join()
        assert "data: [DONE]" in lines
        assert server.wait() == 0


def test_drain_that_expires_is_6(launch):
    with launch("--drain-timeout", 0.3) as server:
        lines = []

        def read():
            with pytest.raises(httpx.RemoteProtocolError):
                long_stream(server, lines, 5000)

        reader = threading.Thread(target=read)
        reader.start()
        wait_for(lambda: len(lines) > 4)
        assert server.stop() == 6
        reader.join()
        assert "data: [DONE]" not in lines


def test_second_signal_ends_at_once(launch):
    with launch() as server:
        connection = server.connect()
        body = b'{"prompt": "Once", "max_tokens": 8000, "ignore_eos": true, "stream": true}'
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
                           + body)
        connection.recv(10)
        server.process.send_signal(signal.SIGINT)
        wait_for(lambda: "second signal" in "".join(server.err))
        start = time.monotonic()
        assert server.stop(signal.SIGINT) == 6
        assert time.monotonic() - start < 5
        connection.close()


def test_api_keys_from_the_environment(launch):
    with launch("--served-model-name", "smol", env={"DEEPINFER_API_KEY": "secret-one"}) as server:
        assert httpx.get(server.url + "/v1/models").status_code == 401
        with server.client(api_key="secret-one") as client:
            assert client.models.list().data[0].id == "smol"
        assert httpx.get(server.url + "/health").status_code == 200
        assert "secret-one" not in "".join(server.out + server.err)
        assert "$API_KEY" in "".join(server.out)


def test_idle_server_uses_no_cpu(launch):
    with launch() as server:
        httpx.post(server.url + "/v1/completions", json={"prompt": "a", "max_tokens": 4}, timeout=60)

        def ticks():
            with open(f"/proc/{server.process.pid}/stat", encoding="utf-8") as file:
                fields = file.read().rsplit(")", 1)[1].split()
            return int(fields[11]) + int(fields[12])

        time.sleep(1)
        before = ticks()
        time.sleep(4)
        assert ticks() - before <= 4  # of 400 hundredths of a second
