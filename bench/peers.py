"""Programs to compare with, as servers and as tools, and the table of what was measured. Used by bench/*/*.py."""
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request

LOWER_IS_BETTER = ("ttft", "itl", "ready", "rss", "idle")


def say(text):
    print(text, file=sys.stderr, flush=True)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Peer:
    """How one program is called."""

    ready_path = "/health"
    keep = False  # one server for the whole run, stopped while others are measured: its start takes minutes

    def __init__(self, args):
        self.model, self.threads = args.model, str(args.threads)
        self.env = dict(os.environ)

    def run(self, command):
        done = subprocess.run(command, env=self.env, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{command[0]} failed with {done.returncode}:\n{done.stderr[-2000:]}")
        return done.stdout


class DeepInfer(Peer):
    name = "deepinfer"
    ready_path = "/health/ready"

    def __init__(self, args):
        super().__init__(args)
        self.program = args.deepinfer

    def offline(self):
        out = json.loads(self.run([self.program, "bench", "--model", self.model, "--threads", self.threads,
                                   "--repeat", "1", "--log-level", "error"]))
        return {r["test"]: r["tokens_per_second"] for r in out["results"]}

    def serve(self, port, streams, context):
        return [self.program, "serve", "--model", self.model, "--threads", self.threads, "--port", str(port),
                "--max-model-len", str(context), "--log-level", "error"]


class LlamaCpp(Peer):
    name = "llama.cpp"

    def __init__(self, args):
        super().__init__(args)
        self.folder = args.llama
        self.env["LD_LIBRARY_PATH"] = args.llama

    def offline(self):
        common = ["-m", self.model, "-t", self.threads]
        out = json.loads(self.run([f"{self.folder}/llama-bench", *common, "-p", "512", "-n", "128", "-r", "1",
                                   "-o", "json"]))
        result = {("prefill_512" if r["n_prompt"] else "decode_128"): r["avg_ts"] for r in out}
        for n in (8, 32):
            text = self.run([f"{self.folder}/llama-batched-bench", *common, "-npp", "128", "-ntg", "128", "-npl", str(n),
                             "-c", str(n * 256), "--output-format", "jsonl"])
            line = next(json.loads(row) for row in text.splitlines() if row.startswith("{"))
            result[f"batch_{n}"] = line["speed_tg"]
        return result

    def serve(self, port, streams, context):
        return [f"{self.folder}/llama-server", "-m", self.model, "-t", self.threads, "--port", str(port),
                "-np", str(streams), "-c", str(max(context, streams * 256)), "--no-webui", "--log-disable"]


class Vllm(Peer):
    """vLLM's CPU build; its model is a folder (it reads no GGUF of this kind): the default model's bf16 twin."""

    name = "vllm"
    keep = True

    def __init__(self, args):
        super().__init__(args)
        self.folder, self.model = args.vllm, args.vllm_model
        # Of two CPUs it would keep one for its scheduler, which costs it half of its speed.
        cpus = sorted(os.sched_getaffinity(0))[:int(self.threads)]
        self.env |= {"VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1",
                     "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cpus))}

    def serve(self, port, streams, context):
        return [f"{self.folder}/bin/vllm", "serve", self.model, "--port", str(port), "--max-model-len", str(context),
                "--max-num-seqs", "128", "--no-enable-log-requests"]


class Server:
    kept = {}

    def __init__(self, peer, streams, context=2048):
        self.peer = peer
        if peer in Server.kept:
            self.__dict__ = Server.kept[peer].__dict__
            os.killpg(self.process.pid, signal.SIGCONT)
            return
        self.port = free_port()
        start = time.perf_counter()
        self.process = subprocess.Popen(peer.serve(self.port, streams, context), env=peer.env,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                        start_new_session=peer.keep)
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{peer.ready_path}", timeout=1):
                    break
            except OSError:
                if self.process.poll() is not None:
                    sys.exit(f"{peer.name}: the server ended with {self.process.returncode}")
                time.sleep(0.002)
        self.ready = time.perf_counter() - start
        if peer.keep:
            Server.kept[peer] = self

    def rss(self):
        with open(f"/proc/{self.process.pid}/status") as f:
            return int(re.search(r"VmRSS:\s+(\d+)", f.read())[1]) / 1024

    def idle_cpu(self, seconds=5):
        """Of one core, without requests."""
        def ticks():
            with open(f"/proc/{self.process.pid}/stat") as f:
                return sum(map(int, f.read().rsplit(")", 1)[1].split()[11:13]))

        start = ticks()
        time.sleep(seconds)
        return 100 * (ticks() - start) / os.sysconf("SC_CLK_TCK") / seconds

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if not self.peer.keep:
            self.stop()
        else:  # vLLM keeps a core busy when it is idle
            os.killpg(self.process.pid, signal.SIGSTOP)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()

    @staticmethod
    def stop_kept():
        for server in Server.kept.values():
            os.killpg(server.process.pid, signal.SIGCONT)
            server.stop()


class Table:
    """Medians of what was measured, the first peer's beside the others', each with its ratio."""

    def __init__(self, names):
        self.names, self.values = names, {}

    def add(self, test, name, value):
        self.values.setdefault(test, {}).setdefault(name, []).append(value)

    def print(self):
        others = self.names[1:]
        say(f"\n{'':34}{self.names[0]:>12}" + "".join(f"{n:>12}{'ratio':>9}" for n in others))
        rows = {}
        for test, runs in self.values.items():
            median = {name: statistics.median(values) for name, values in runs.items()}
            ours, ratios = median[self.names[0]], {}
            for name in others:
                better, worse = (median[name], ours) if test.startswith(LOWER_IS_BETTER) else (ours, median[name])
                ratios[name] = round(better / worse, 3) if worse else None
            say(f"{test:34}{ours:12.2f}" + "".join(
                f"{median[n]:12.2f}" + (f"{ratios[n]:8.2f}x" if ratios[n] is not None else f"{'-':>9}") for n in others))
            rows[test] = {"median": median, "ratio": ratios, "runs": runs}
        return rows


def alternate(peers, rounds, what):
    """Each round lets another one go first."""
    for r in range(rounds):
        yield from peers[r % len(peers):] + peers[:r % len(peers)]
        say(f"{what}: round {r + 1}/{rounds}")
