"""DeepInfer as a Ray Serve application: as many servers as wanted, one address, nothing lost when one of them dies.

    serve run deploy/ray/serve.yaml          (beside this file; `pip install "ray[serve]"`)

Client -> Ray's HTTP proxy -> Ingress -> one of the Engines -> its `deepinfer serve`, a process of its own behind a Unix
socket. Ray chooses the engine with fewer requests of two. Ingress sends a request again, to another engine, when its
engine dies or says that it does not serve (loading, draining, stalled, device lost). An answer that is no stream is
passed on when it is complete, so the client never sees the first try. A stream that breaks off is asked for again and
goes on where it was if the request says what it will say (temperature 0, or a seed; one choice); else it ends with an
error event. Requests change nothing in a server, so a second try does no harm.

What a dying Ingress or proxy carries is lost: run several Ingress replicas, on several machines.
"""
import asyncio
import json
import logging
import os
import shutil
import signal
import subprocess
import tempfile
import time

import aiohttp
import ray.exceptions
from ray import serve
from ray.serve.exceptions import BackPressureError, RayServeException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from replay import ELSEWHERE, Broken, Replay, is_repeatable

log = logging.getLogger("ray.serve")

# Of one connection, not of the request.
HOP_BY_HOP = {"connection", "host", "content-length", "transfer-encoding", "keep-alive", "te", "trailer", "upgrade", "date"}
# A piece of a stream costs Ray about a millisecond, whatever is in it: tokens that come sooner travel together.
PIECE_SECONDS = 0.02


class EngineGone(Exception):
    """The server behind this engine is dead, or does not serve."""


RETRIED = (EngineGone, Broken, ray.exceptions.RayActorError, ray.exceptions.ObjectLostError, RayServeException)


@serve.deployment(name="Engine", max_ongoing_requests=256, health_check_period_s=2, health_check_timeout_s=10,
                  graceful_shutdown_timeout_s=60)
class Engine:
    """One `deepinfer serve`. Its end is this replica's end, and the other way round."""

    async def __init__(self, command, load_timeout, drain_timeout):
        self.drain_timeout = drain_timeout
        self.folder = tempfile.mkdtemp(prefix="deepinfer-")
        socket = os.path.join(self.folder, "api.sock")
        # A killed replica takes its server along, however it died.
        guard = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
        self.process = subprocess.Popen([*guard, *command, "--uds", socket, "--drain-timeout", str(drain_timeout)])
        self.client = aiohttp.ClientSession(connector=aiohttp.UnixConnector(socket, limit=0), auto_decompress=False,
                                            timeout=aiohttp.ClientTimeout(total=None, connect=10))
        end = time.monotonic() + load_timeout
        while not await self._is_ready():
            if self.process.poll() is not None:
                raise EngineGone(f"deepinfer serve ended with exit code {self.process.returncode}; its log says why")
            if time.monotonic() > end:
                self.process.kill()
                raise EngineGone(f"not ready after {load_timeout} s: raise load_timeout")
            await asyncio.sleep(0.05)

    async def _is_ready(self):
        try:
            async with self.client.get("http://localhost/health/ready") as reply:
                return reply.status == 200
        except aiohttp.ClientError:
            return False  # the socket is not there yet

    async def check_health(self):
        if self.process.poll() is not None:
            raise EngineGone(f"deepinfer serve ended with exit code {self.process.returncode}")
        async with self.client.get("http://localhost/health", timeout=aiohttp.ClientTimeout(total=8)) as reply:
            if reply.status != 200:
                raise EngineGone(f"/health says {reply.status}: {await reply.text()}")

    def pid(self):
        return self.process.pid

    async def forward(self, method, target, headers, body):
        """Yields (status, headers), then the body's pieces as they come. EngineGone: ask another one."""
        try:
            async with self.client.request(method, "http://localhost" + target, headers=headers, data=body) as reply:
                if reply.status == 503:
                    text = await reply.read()
                    if error_code(text) in ELSEWHERE:
                        raise EngineGone(text.decode(errors="replace"))
                    yield reply.status, list(reply.headers.items())
                    yield text
                    return
                yield reply.status, list(reply.headers.items())
                if not reply.headers.get("Content-Type", "").startswith("text/event-stream"):
                    yield await reply.read()
                    return
                async for piece in reply.content.iter_any():
                    yield piece
                    await asyncio.sleep(PIECE_SECONDS)
        except aiohttp.ClientError as error:
            raise EngineGone(f"{type(error).__name__}: {error}") from error

    def __del__(self):
        process = getattr(self, "process", None)
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(self.drain_timeout + 5)
            except subprocess.TimeoutExpired:
                process.kill()
        shutil.rmtree(getattr(self, "folder", ""), ignore_errors=True)


def error_code(body):
    try:
        return json.loads(body)["error"]["code"]
    except (ValueError, KeyError, TypeError):
        return None


@serve.deployment(name="Ingress", max_ongoing_requests=4096, health_check_period_s=5)
class Ingress:
    """Passes requests on to the engines, more than once where that is needed."""

    def __init__(self, engine, retry_for):
        self.engine = engine.options(stream=True)
        self.retry_for = retry_for

    async def __call__(self, request: Request):
        target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        headers = [(k, v) for k, v in request.headers.items() if k.lower() not in HOP_BY_HOP]
        arguments = (request.method, target, headers, await request.body())
        end = time.monotonic() + self.retry_for
        while True:
            pieces = self.engine.forward.remote(*arguments)
            try:
                status, reply_headers = await anext(pieces)
                kept = {k: v for k, v in reply_headers if k.lower() not in HOP_BY_HOP}
                if kept.get("Content-Type", "").startswith("text/event-stream"):
                    return StreamingResponse(self._stream(pieces, arguments), status, kept)
                return Response(b"".join([piece async for piece in pieces]), status, kept)
            except BackPressureError:
                return failure(429, "all engines are full", "queue_full")
            except RETRIED as error:
                pieces.cancel()
                if time.monotonic() > end:
                    log.error("%s %s: no engine answered within %s s: %s", request.method, target, self.retry_for, error)
                    return failure(503, f"no engine answered within {self.retry_for} s", "unavailable")
                log.warning("%s %s: tried again: %s", request.method, target, type(error).__name__)
                await asyncio.sleep(0.05)

    async def _stream(self, pieces, arguments):
        replay = Replay() if is_repeatable(arguments[3]) else None
        while True:
            try:
                if replay is None:
                    async for piece in pieces:
                        yield piece
                    return
                replay.begin()
                async for piece in pieces:
                    out = replay.events(piece)
                    if out:
                        yield out
                    if replay.broken:
                        raise replay.broken
                if replay.done:
                    return
                raise EngineGone("the stream ended without its end")
            except RETRIED as error:
                pieces.cancel()
                if replay is not None and replay.done:
                    return
                if replay is None:
                    log.error("%s: a stream broke off: %s", arguments[1], type(error).__name__)
                    body = {"error": {"message": "the engine died while it answered; send the request again",
                                      "type": "service_unavailable", "param": None, "code": "unavailable"}}
                    yield b"data: " + json.dumps(body).encode() + b"\n\ndata: [DONE]\n\n"
                    return
                log.warning("%s: a stream goes on with another engine: %s", arguments[1], type(error).__name__)
            pieces = await self._again(arguments, time.monotonic() + self.retry_for)
            if pieces is None:
                yield b'data: {"error":{"message":"no engine answers","type":"service_unavailable","param":null,' \
                      b'"code":"unavailable"}}\n\ndata: [DONE]\n\n'
                return

    async def _again(self, arguments, end):
        """The pieces of a new try, after its status; None when none comes in time."""
        while time.monotonic() < end:
            pieces = self.engine.forward.remote(*arguments)
            try:
                status, _ = await anext(pieces)
                if status == 200:
                    return pieces
            except RETRIED:
                pass
            pieces.cancel()
            await asyncio.sleep(0.05)
        return None


def failure(status, message, code):
    return JSONResponse({"error": {"message": message, "type": "service_unavailable", "param": None, "code": code}}, status,
                        {"Retry-After": "1"})


def build(args: dict):
    """The application of serve.yaml, where the numbers of Engines and Ingresses stand too. Its args, all optional:

    program        deepinfer, as the machines find it
    arguments      what `deepinfer serve` gets: ["--model", "/models/x.gguf", "--config", ...]
    cpus, gpus     of an engine, for Ray's placement; with cpus the server gets --threads, with gpus Ray names its cards
    load_timeout   seconds until an engine has to be ready (600)
    drain_timeout  seconds that running requests have when an engine is stopped (30)
    retry_for      seconds for which a request is tried again (60)
    """
    args = dict(args)
    cpus, gpus = args.pop("cpus", 1), args.pop("gpus", 0)
    drain = args.pop("drain_timeout", 30)
    command = [args.pop("program", "deepinfer"), "serve", *map(str, args.pop("arguments", []))]
    if not gpus:
        command += ["--device", "cpu", "--threads", str(max(1, int(cpus)))]
    engine = Engine.options(ray_actor_options={"num_cpus": cpus, "num_gpus": gpus}, graceful_shutdown_timeout_s=drain + 15)
    ingress = Ingress.options(ray_actor_options={"num_cpus": 0}, graceful_shutdown_timeout_s=drain + 30)
    load, retry_for = args.pop("load_timeout", 600), args.pop("retry_for", 60)
    if args:
        raise ValueError(f"unknown args {', '.join(sorted(args))}: the docstring of build() names the known ones")
    return ingress.bind(engine.bind(command, load, drain), retry_for)
