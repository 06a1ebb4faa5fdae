"""deploy/ray with Ray from PyPI: it starts, answers as the server alone does, goes from one engine to two while requests
run, and loses none of them when an engine's server or the engine itself is killed.

    ray_check.py        in an environment with ray[serve] and httpx, beside the built program (DEEPINFER_BIN)

A line for each step; exit code 1 at the first that fails. It starts a Ray of its own and ends it.
"""
import asyncio
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import httpx
import yaml

from fleet import MODEL, PROGRAM, ROOT, Load, Server, expected_answers, free_port

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ["PYTHONPATH"] = str(ROOT / "deploy/ray")  # of the workers

import ray  # noqa: E402
from ray import serve  # noqa: E402
from ray.serve.context import _get_global_client  # noqa: E402
from ray.serve.schema import ServeDeploySchema  # noqa: E402

NAME = "deepinfer"


def engines():
    """Process ids of the engines' servers, by their command lines."""
    out = subprocess.run(["pgrep", "-f", f"^{PROGRAM} serve .*--uds"], text=True, capture_output=True).stdout
    return [int(line) for line in out.split()]


def parent(pid):
    return int(pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def wait(condition, what, timeout=180):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"not within {timeout} s: {what}"
        time.sleep(0.1)


def deploy(engines_wanted):
    """What `serve deploy` does with serve.yaml, with our program, model and number of engines in it."""
    config = yaml.safe_load((ROOT / "deploy/ray/serve.yaml").read_text())
    application = config["applications"][0]
    application["args"] |= {"program": PROGRAM, "arguments": ["--model", str(MODEL)], "drain_timeout": 20, "retry_for": 120}
    next(d for d in application["deployments"] if d["name"] == "Engine")["num_replicas"] = engines_wanted
    _get_global_client().deploy_apps(ServeDeploySchema(**config))
    wait(lambda: serve.status().applications[NAME].status == "RUNNING" and running() == engines_wanted,
         f"{engines_wanted} engines")


def running():
    engine = serve.status().applications[NAME].deployments.get("Engine")
    return engine.replica_states.get("RUNNING", 0) if engine else 0


def lossless(load, what):
    assert not load.lost, f"{what}: {len(load.lost)} lost: {load.lost[:3]}"
    print(f"{what}: {load.answered} answers right ({load.streamed} streams) in {load.seconds:.1f} s, none lost", flush=True)


def left(url):
    """A client that goes away: its sequence ends too, in the server behind the engine behind the ingress."""
    def sequences():
        text = httpx.get(url + "/metrics", timeout=30).text
        return int(float(re.search(r"^deepinfer:num_requests_running\{.* (\S+)$", text, re.MULTILINE).group(1)))

    body = {"prompt": "Once", "max_tokens": 8000, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", url + "/v1/completions", json=body, timeout=60) as stream:
        lines = stream.iter_lines()  # kept: its end would close the connection
        next(lines)
        wait(lambda: sequences() == 1, "the stream's sequence runs", 20)
    began = time.monotonic()
    wait(lambda: sequences() == 0, "the sequence of a client that left ends", 20)
    print(f"a client that leaves: its sequence ended after {time.monotonic() - began:.2f} s", flush=True)


def check(url):
    with Server("--threads", "1") as server:
        expected = expected_answers(server.url)
        alone = asyncio.run(Load(server.url, expected, clients=8).run(6))
    began = time.monotonic()
    deploy(1)
    print(f"start: one engine answers after {time.monotonic() - began:.1f} s", flush=True)
    reply = httpx.get(url + "/health/ready")
    assert reply.status_code == 200, reply.text
    wrong = httpx.post(url + "/v1/chat/completions", json={"messages": "no"}, timeout=60)
    assert wrong.status_code == 400 and wrong.json()["error"]["code"] == "invalid_value", wrong.text
    assert expected_answers(url) == expected, "the application says something else than the server"
    left(url)
    one = asyncio.run(Load(url, expected, clients=8).run(6))
    lossless(one, f"one engine ({alone.answered / alone.seconds:.1f} requests/s without Ray, {one.answered / one.seconds:.1f} with)")

    before = engines()
    load = asyncio.run(Load(url, expected, clients=12).run(10, (1, lambda: deploy(2))))
    assert set(before) <= set(engines()), "the engine that was there was replaced"
    lossless(load, "from one engine to two under load")

    first = engines()
    assert len(first) == 2, first
    load = asyncio.run(Load(url, expected, clients=12).run(12, (2, lambda: os.kill(first[0], signal.SIGKILL))))
    lossless(load, "a server killed under load")
    wait(lambda: running() == 2 and len(engines()) == 2, "a new engine")
    print("another engine took its place", flush=True)

    second = engines()
    replica = parent(second[1])
    load = asyncio.run(Load(url, expected, clients=12).run(12, (2, lambda: os.kill(replica, signal.SIGKILL))))
    lossless(load, "a replica killed under load")
    wait(lambda: not pathlib.Path(f"/proc/{second[1]}").exists(), "the killed replica's server ends too")
    wait(lambda: running() == 2 and len(engines()) == 2, "a new engine")

    load = asyncio.run(Load(url, expected, clients=8).run(8, (1, lambda: deploy(1))))
    lossless(load, "from two engines to one under load")
    wait(lambda: running() == 1 and len(engines()) == 1, "one engine")


def main():
    port = free_port()
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=bool(os.environ.get("RAY_LOG")), _metrics_export_port=free_port())
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port, "request_timeout_s": 660})
        check(f"http://127.0.0.1:{port}")
    except AssertionError as error:
        print(f"FAILED: {error}", flush=True)
        return 1
    finally:
        serve.shutdown()
        ray.shutdown()
    wait(lambda: not engines(), "all servers end with Ray", 60)
    print("all servers ended with Ray")
    return 0


if __name__ == "__main__":
    sys.exit(main())
