"""How bytes reach the server: TLS, a Unix socket, limits from the settings; what is wrong with them ends the program."""
import http.client
import json
import os
import socket
import ssl
import stat
import subprocess
import threading
import time

import httpx
import pytest
from server_support import post_bytes, read_events, wait_for

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
BODY = {"prompt": "Once", "max_tokens": 8, "ignore_eos": True}


def openssl(*args):
    subprocess.run(["openssl", *map(str, args)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    """good.pem and good.key for localhost and 127.0.0.1; other.key; locked.key, which needs a password."""
    folder = tmp_path_factory.mktemp("pki")
    for name in ("good", "other"):
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", 2, "-subj",
                "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", folder / f"{name}.key",
                "-out", folder / f"{name}.pem")
    openssl("pkey", "-in", folder / "good.key", "-aes256", "-passout", "pass:x", "-out", folder / "locked.key")
    (folder / "text.pem").write_text("not a certificate\n")
    return folder


@pytest.fixture(scope="module")
def tls(launch, pki, events):
    with launch("--ssl-certfile", pki / "good.pem", "--ssl-keyfile", pki / "good.key", "--header-timeout", 2,
                "--max-model-len", 1024, "--event-log", events) as server:
        yield server
        assert server.stop() == 0


def context(pki):
    return ssl.create_default_context(cafile=str(pki / "good.pem"))


def test_https(tls, pki):
    assert tls.url.startswith("https://127.0.0.1:")
    with httpx.Client(base_url=tls.url, verify=context(pki), timeout=60) as client:
        assert client.get("/health").json() == {"status": "ok"}
        assert len(client.post("/v1/completions", json=BODY).json()["choices"][0]["text"]) > 0
        large = client.post("/v1/completions", json={"prompt": "word " * 200_000})
        assert large.json()["error"]["code"] == "context_length_exceeded"
        with client.stream("POST", "/v1/completions", json=BODY | {"stream": True}) as stream:
            assert [line for line in stream.iter_lines() if line][-1] == "data: [DONE]"
    with tls.client(http_client=httpx.Client(verify=context(pki))) as client:
        assert client.models.list().data


def test_https_pipelined_requests_and_odd_record_sizes(tls, pki):
    with context(pki).wrap_socket(tls.connect(), server_hostname="localhost") as connection:
        request = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
        connection.sendall(request * 3)
        for byte in request[:-1]:
            connection.sendall(bytes([byte]))
        connection.sendall(request[-1:])
        got = b""
        while got.count(b"HTTP/1.1 200") < 4 or not got.endswith(b"}"):
            got += connection.recv(4096)


def test_the_printed_curl_line_for_https_works(tls):
    text = "".join(tls.out)
    done = subprocess.run(["bash", "-c", text[text.index("curl "):].strip() + " --silent --fail"], capture_output=True,
                          text=True, timeout=120)
    assert done.returncode == 0, done


@pytest.mark.parametrize("version, good", [(ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True),
                                           (ssl.TLSVersion.TLSv1_3, True)])
def test_tls_versions(tls, pki, version, good):
    wanted = context(pki)
    wanted.set_ciphers("ALL:@SECLEVEL=0")
    wanted.minimum_version = wanted.maximum_version = version
    connection = tls.connect()
    try:
        with wanted.wrap_socket(connection, server_hostname="localhost") as session:
            assert good, session.version()
            session.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert session.recv(100).startswith(b"HTTP/1.1 200 ")
    except ssl.SSLError:
        assert not good
    finally:
        connection.close()


def test_plain_http_to_the_tls_port_is_told_so(tls):
    reply = httpx.get(tls.url.replace("https", "http") + "/health")
    assert reply.status_code == 400 and "https://" in reply.json()["error"]["message"]


def test_handshakes_that_never_end_hinder_nobody(tls, pki):
    silent = [tls.connect() for _ in range(50)]
    half = [tls.connect() for _ in range(50)]
    for connection in half:
        connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
    start = time.monotonic()
    assert httpx.get(tls.url + "/health", verify=context(pki)).status_code == 200
    assert time.monotonic() - start < 1
    for connection in half + silent:  # dropped after --header-timeout
        assert connection.recv(100) == b""
        connection.close()
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("stream", [True, False])
def test_disconnect_of_a_tls_client_frees_its_blocks_by_the_next_step(tls, pki, events, stream):
    def new():
        return read_events(events)[before:]

    before = len(read_events(events))
    body = json.dumps(BODY | {"stream": stream, "max_tokens": 1000}).encode()
    connection = context(pki).wrap_socket(tls.connect(), server_hostname="localhost")
    connection.sendall(post_bytes("/v1/completions", body))
    wait_for(lambda: sum(e["event"] == "step" for e in new()) > 5)
    connection.close()
    wait_for(lambda: any(e["event"] == "release" for e in new()))
    names = [e["event"] for e in new()]
    assert names[names.index("cancel"):names.index("release")].count("step") <= 1
    assert [e["reason"] for e in new() if e["event"] == "finish"] == ["cancelled"]


@pytest.mark.parametrize("certificate, key, words", [
    ("good.pem", None, ["ssl_keyfile", "both"]),
    (None, "good.key", ["ssl_certfile", "both"]),
    ("none.pem", "good.key", ["ssl_certfile", "none.pem", "No such file"]),
    ("good.pem", "none.key", ["ssl_keyfile", "none.key", "No such file"]),
    ("text.pem", "good.key", ["ssl_certfile", "text.pem", "no certificate"]),
    ("good.pem", "text.pem", ["ssl_keyfile", "text.pem", "no private key"]),
    ("good.pem", "other.key", ["ssl_keyfile", "other.key", "not the key of the certificate"]),
    ("good.pem", "locked.key", ["ssl_keyfile", "locked.key", "encrypted"]),
    (".", "good.key", ["ssl_certfile", "directory"]),
])
def test_wrong_tls_files_are_2(deepinfer, model_path, pki, certificate, key, words):
    args = [f"--ssl-{name}={pki / file}" for name, file in (("certfile", certificate), ("keyfile", key)) if file]
    done = subprocess.run([deepinfer, "serve", "--port", "0", "--model", model_path, *args], capture_output=True, text=True,
                          timeout=60, stdin=subprocess.DEVNULL)
    assert done.returncode == 2, done
    for word in words:
        assert word in done.stderr, done.stderr


def unix_client(path, **options):
    return httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://any.example", timeout=60, **options)


def test_unix_socket(launch, tmp_path):
    path = tmp_path / "a b.sock"
    with launch("--uds", path) as server:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o660 and stat.S_ISSOCK(os.stat(path).st_mode)
        with unix_client(path) as client:  # the Host allow-list is for names that browsers resolve to loopback
            assert client.get("/health").status_code == 200
            with client.stream("POST", "/v1/completions", json=BODY | {"stream": True}) as stream:
                assert [line for line in stream.iter_lines() if line][-1] == "data: [DONE]"
        text = "".join(server.out)
        assert f"unix:{path}" in text
        done = subprocess.run(["bash", "-c", text[text.index("curl "):].strip() + " --silent --fail"], capture_output=True,
                              text=True, timeout=120)
        assert done.returncode == 0, done
        assert server.stop() == 0
    assert not path.exists()


def test_unix_socket_beside_host_and_port(launch, tmp_path, pki):
    path = tmp_path / "s"
    with launch("--uds", path, "--port", 9, "--ssl-certfile", pki / "good.pem", "--ssl-keyfile", pki / "good.key") as server:
        assert "server.host and server.port are not used" in "".join(server.err)
        with context(pki).wrap_socket(server.connect(), server_hostname="localhost") as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
        server.process.kill()  # leaves its file behind
        server.wait()
    assert path.exists()
    with launch("--uds", path) as server:  # which the next one replaces
        with unix_client(path) as client:
            assert client.get("/health").status_code == 200
        assert server.stop() == 0
    assert not path.exists()


def run_serve(deepinfer, model_path, *args):
    return subprocess.run([deepinfer, "serve", "--model", model_path, *map(str, args)], capture_output=True, text=True,
                          timeout=60)


def test_unix_socket_in_use_is_5(launch, deepinfer, model_path, tmp_path):
    path = tmp_path / "s"
    with launch("--uds", path) as server:
        done = run_serve(deepinfer, model_path, "--uds", path)
        assert done.returncode == 5 and str(path) in done.stderr
        with unix_client(path) as client:  # and the first one is still there
            assert client.get("/health").status_code == 200
        assert server.stop() == 0


def test_paths_that_cannot_be_a_unix_socket_are_2(deepinfer, model_path, tmp_path):
    file = tmp_path / "file"
    file.write_text("precious")
    for path, words in [(file, "not a socket"), (tmp_path / ("x" * 108), "at most 107"),
                        (tmp_path / "none" / "s", "cannot listen")]:
        done = run_serve(deepinfer, model_path, "--uds", path)
        assert done.returncode == 2 and words in done.stderr and "server.uds" in done.stderr, done
    assert file.read_text() == "precious"


def test_second_signal_removes_the_socket_file_too(launch, tmp_path):
    path = tmp_path / "s"
    with launch("--uds", path) as server:
        with server.connect() as connection:
            body = b'{"prompt": "Once", "max_tokens": 8000, "ignore_eos": true, "stream": true}'
            connection.sendall(post_bytes("/v1/completions", body))
            connection.recv(10)
            server.process.terminate()
            wait_for(lambda: "second signal" in "".join(server.err))
            assert server.stop() == 6
    assert not path.exists()


@pytest.fixture(scope="module")
def narrow(launch):
    """Every limit far below its default."""
    with launch("--max-connections", 20, "--max-header-bytes", 1024, "--max-body-bytes", 2000, "--header-timeout", 1,
                "--body-timeout", 1.5, "--idle-timeout", 2.5, "--write-timeout", 1, "--max-model-len", 1024) as server:
        yield server
        assert server.stop() == 0


def answer_to(server, data, timeout=30):
    """The status (0: closed without a word) and the seconds until then."""
    start = time.monotonic()
    with server.connect() as connection:
        connection.settimeout(timeout)
        connection.sendall(data)
        got = connection.recv(4096)
    return int(got[9:12]) if got else 0, time.monotonic() - start


@pytest.mark.parametrize("data, status, least, most", [
    (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 900 + b"\r\n\r\n", 200, 0, 5),
    (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 1024 + b"\r\n\r\n", 431, 0, 5),
    (HEAD + b"Content-Length: 2001\r\n\r\n", 413, 0, 5),
    (HEAD + b"Transfer-Encoding: chunked\r\n\r\n7d1\r\n" + b"x" * 2001 + b"\r\n0\r\n\r\n", 413, 0, 5),
    (HEAD + b"Content-Length: 2000\r\n\r\n" + b"x" * 2000, 400, 0, 5),
    (b"GET /health HTTP/1.1\r\nHo", 408, 0.9, 6),
    (HEAD + b"Content-Length: 10\r\n\r\n{", 408, 1.4, 20),
    (b"", 0, 2.4, 30),
], ids=["head", "431", "413", "413 chunked", "body", "slow head", "slow body", "idle"])
def test_limits_come_from_the_settings(narrow, data, status, least, most):
    got, seconds = answer_to(narrow, data)
    assert got == status
    assert least <= seconds <= most


def test_more_connections_than_the_setting_get_503(narrow):
    time.sleep(2.1)  # those that were refused before linger for at most two seconds
    held = [narrow.connect() for _ in range(20)]
    for connection in held:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
    assert answer_to(narrow, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")[0] == 503
    for connection in held:
        connection.close()


def test_a_client_that_reads_nothing_is_dropped(narrow):
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect((narrow.host, narrow.port))
        # Answers are small beside the buffers of the system: ask for many, read none.
        request = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000
        connection.settimeout(20)
        with pytest.raises((ConnectionError, TimeoutError)) as stopped:
            while True:
                connection.sendall(request)
        assert not isinstance(stopped.value, TimeoutError), "the server neither read nor closed"


def test_200_slow_clients_hinder_nobody(launch):
    """Slow heads, slow bodies and slow readers, a byte now and then, beside quick requests."""
    with launch("--max-model-len", 512) as server:
        stop = threading.Event()

        def dribble(index):
            connection = server.connect()
            kind = index % 3
            try:
                if kind == 2:  # asks for much and reads a byte a second
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
                    connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50)
                if kind == 1:
                    connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\n")
                if kind == 0:
                    connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ")
                while not stop.wait(0.5):
                    connection.recv(1) if kind == 2 else connection.sendall(b"x")
            except OSError:
                pass
            finally:
                connection.close()

        threads = [threading.Thread(target=dribble, args=(i,)) for i in range(200)]
        for thread in threads:
            thread.start()
        try:
            time.sleep(1)
            worst = 0
            connection = http.client.HTTPConnection(server.host, server.port, timeout=20)
            end = time.monotonic() + 5
            while time.monotonic() < end:
                start = time.monotonic()
                connection.request("GET", "/health")
                assert connection.getresponse().read()
                worst = max(worst, time.monotonic() - start)
            assert worst < 1, worst
            assert httpx.post(server.url + "/v1/completions", json=BODY, timeout=60).status_code == 200
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert server.stop() == 0
