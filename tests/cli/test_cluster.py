"""Ranks in processes of their own: they answer as one, and end together."""
import concurrent.futures
import json
import os
import pathlib
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

import pytest

MODEL = pathlib.Path(__file__).parents[1] / "golden/tiny_llama/base"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Cluster:
    """Rank 0 at a port of HTTP, others beside it."""

    def __init__(self, deepinfer, folder):
        self.deepinfer, self.folder, self.processes = deepinfer, folder, []
        self.token = folder / "token"
        self.token.write_text("0123456789abcdef0123456789abcdef\n")
        self.master, self.http = free_port(), free_port()

    def start(self, rank, *args, size=2, stages=1, stall=20, token=None):
        log = open(self.folder / f"rank{rank}.log", "w")
        env = {k: v for k, v in os.environ.items() if not k.startswith("DEEPINFER_")}
        self.processes.append(subprocess.Popen(
            [self.deepinfer, "serve", "--device", "cpu", "--model", MODEL, "--port", str(self.http), "--threads", "1",
             "--tensor-parallel-size", str(size // stages), "--pipeline-parallel-size", str(stages), "--nnodes",
             str(size), "--node-rank", str(rank), "--master-port", str(self.master), "--token-file",
             token or self.token, "--stall-timeout", str(stall), *map(str, args)],
            stdout=log, stderr=subprocess.STDOUT, env=env))
        return self.processes[-1]

    def log(self, rank):
        return (self.folder / f"rank{rank}.log").read_text()

    def ready(self):
        for _ in range(600):
            try:
                return urllib.request.urlopen(f"http://127.0.0.1:{self.http}/health/ready", timeout=5).status == 200
            except OSError:
                assert self.processes[0].poll() is None, self.log(0)
                time.sleep(0.1)
        raise AssertionError("not ready: " + self.log(0))

    def ask(self, tokens=12):
        body = {"prompt": "One, two, three", "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}/v1/completions", json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        return json.load(urllib.request.urlopen(request, timeout=60))["choices"][0]["text"]


@pytest.fixture
def cluster(deepinfer, tmp_path):
    made = Cluster(deepinfer, tmp_path)
    yield made
    for process in made.processes:
        process.kill()
        process.wait()


def test_two_processes_answer_as_one_and_end_together(cluster):
    cluster.start(0)
    cluster.start(1)
    cluster.ready()
    text = cluster.ask()
    assert len(text) > 0 and cluster.ask() == text
    cluster.processes[0].send_signal(signal.SIGTERM)
    assert cluster.processes[0].wait(60) == 0, cluster.log(0)
    assert cluster.processes[1].wait(60) == 0, cluster.log(1)
    assert "rank 0 has ended" in cluster.log(1)


@pytest.mark.parametrize("size", [2, 4])
def test_stages_in_processes_have_the_text_of_one(cluster, size):
    for rank in range(size):
        cluster.start(rank, size=size, stages=2)
    cluster.ready()
    text = cluster.ask()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:  # each stage has a step of its own
        assert list(pool.map(lambda _: cluster.ask(), range(4))) == [text] * 4
    cluster.processes[0].send_signal(signal.SIGTERM)
    for rank, process in enumerate(cluster.processes):
        assert process.wait(60) == 0, cluster.log(rank)
    assert "layers 1 to 1" in cluster.log(size - 1) and "rank 0 has ended" in cluster.log(size - 1)
    if size == 4:  # sums over two ranks have an order of their own
        return
    cluster.processes.clear()
    cluster.start(0, size=1)
    cluster.ready()
    assert cluster.ask() == text


@pytest.mark.parametrize("stages", [1, 2])
def test_a_killed_rank_ends_the_others_with_a_message(cluster, stages):
    cluster.start(0, stages=stages)
    cluster.start(1, stages=stages)
    cluster.ready()
    cluster.ask()
    cluster.processes[1].kill()
    start = time.monotonic()
    with pytest.raises((urllib.error.HTTPError, OSError)):
        cluster.ask()
    assert cluster.processes[0].wait(60) == 4, cluster.log(0)
    assert time.monotonic() - start < 40
    assert "the group of ranks has ended" in cluster.log(0)


@pytest.mark.parametrize("stages", [1, 2])
def test_a_stopped_rank_ends_the_others_in_time(cluster, stages):
    cluster.start(0, stages=stages, stall=5)
    cluster.start(1, stages=stages, stall=5)
    cluster.ready()
    cluster.ask()
    cluster.processes[1].send_signal(signal.SIGSTOP)
    start = time.monotonic()
    with pytest.raises((urllib.error.HTTPError, OSError)):
        cluster.ask()
    assert cluster.processes[0].wait(60) == 4, cluster.log(0)
    assert time.monotonic() - start < 25
    assert "the group of ranks has ended" in cluster.log(0)


@pytest.mark.parametrize("stages", [1, 2])
def test_a_killed_leader_ends_the_others(cluster, stages):
    cluster.start(0, stages=stages)
    cluster.start(1, stages=stages)
    cluster.ready()
    cluster.processes[0].kill()
    assert cluster.processes[1].wait(60) == 4, cluster.log(1)
    assert "the group of ranks has ended" in cluster.log(1)


def test_ranks_that_differ_refuse_each_other_with_what_differs(cluster):
    cluster.start(0)
    cluster.start(1, "--max-num-seqs", 7)
    assert [p.wait(60) for p in cluster.processes] == [2, 2], cluster.log(0) + cluster.log(1)
    assert "gpu.max_num_seqs" in cluster.log(0) + cluster.log(1)


def test_who_does_not_know_the_token_is_turned_away(cluster, tmp_path):
    other = tmp_path / "other"
    other.write_text("f" * 32)
    cluster.start(0)
    stranger = cluster.start(1, token=other)
    assert stranger.wait(60) != 0
    assert cluster.processes[0].poll() is None, cluster.log(0)
    cluster.start(1)
    cluster.ready()
    assert cluster.ask(4)


@pytest.mark.parametrize("args, words", [
    (["--nnodes", 2, "--node-rank", 2, "--tensor-parallel-size", 2], ["cluster.node_rank: got 2, expected 0 to 1"]),
    (["--nnodes", 2], ["gpu.tensor_parallel_size: got 1, expected 2"]),
    (["--nnodes", 3, "--tensor-parallel-size", 2, "--pipeline-parallel-size", 2],
     ["cluster.nnodes: got 3, expected 4", "gpu.tensor_parallel_size 2 x gpu.pipeline_parallel_size 2"]),
    (["--nnodes", 9, "--pipeline-parallel-size", 9, "--token-file", "/nowhere"], ["expected at most 2", "2 layers"]),
    (["--nnodes", 2, "--tensor-parallel-size", 2], ["cluster.token_file", "openssl rand"]),
    (["--nnodes", 2, "--tensor-parallel-size", 2, "--token-file", "/nowhere"], ["cluster.token_file: /nowhere"]),
    (["--nnodes", 5, "--tensor-parallel-size", 5, "--token-file", "/nowhere"], ["expected at most 4"]),
])
def test_wrong_settings_are_2(deepinfer, args, words):
    done = subprocess.run([deepinfer, "serve", "--device", "cpu", "--port", "0", "--model", MODEL, *map(str, args)],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    for word in words:
        assert word in done.stderr
