"""vllm-router, as it comes from PyPI, before two servers: it has to spread requests, keep prefixes together, lose nothing
when a server drains, and use it again when it is back.

    router_check.py [NAME...]      spread, balance, drain, kill, cache, scale; all without a name

The router's flags are those of deploy/systemd/deepinfer-router.service. VLLM_ROUTER names the program (vllm-router on
PATH). Each server has one core of its own: at least two are needed. A line for each check; exit code 1 if one fails.
"""
import asyncio
import os
import random
import re
import shlex
import signal
import sys
import time

import httpx

from fleet import MODEL, ROOT, Load, Process, Server, expected_answers, free_port, wait_ready

UNIT = ROOT / "deploy/systemd/deepinfer-router.service"


class Router(Process):
    def __init__(self, servers, **changed):
        self.port, metrics = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        text = re.search(r"^ExecStart=((?:.*\\\n)*.*)$", UNIT.read_text(), re.MULTILINE).group(1).replace("\\\n", " ")
        values = {"${HOST}": "127.0.0.1", "${PORT}": str(self.port), "${METRICS_PORT}": str(metrics)}
        words = [values.get(word, word) for word in shlex.split(text)[1:]]
        words[words.index("$WORKERS"):] = [server.url for server in servers]
        for flag, value in changed.items():
            words[words.index("--" + flag.replace("_", "-")) + 1] = value
        super().__init__([os.environ.get("VLLM_ROUTER", "vllm-router"), *words])
        wait_ready(self.url + "/readiness", self)


def served(servers):
    return [int(server.metric("deepinfer:http_requests_total", handler="/v1/chat/completions", status="200"))
            for server in servers]


def run(load, seconds, *events):
    return asyncio.run(load.run(seconds, *events))


def two_servers():
    return Server("--threads", "1", cores="0"), Server("--threads", "1", cores="1")


def spread():
    a, b = two_servers()
    with a, b, Router([a, b]) as router:
        expected = expected_answers(a.url)
        before = served([a, b])
        load = run(Load(router.url, expected, clients=24), 10)
        counts = [now - then for now, then in zip(served([a, b]), before)]
        assert not load.lost, load.lost[:3]
        assert min(counts) > 0.1 * sum(counts), counts
        return f"{load.answered} answered right ({load.streamed} streams), by the servers {counts[0]} and {counts[1]}"


def balance():
    """power_of_two: both servers have about as much to do. (The router asks for /get_load, gets none, and counts itself.)"""
    a, b = two_servers()
    with a, b, Router([a, b], policy="power_of_two") as router:
        expected = expected_answers(a.url)
        seen = []

        def look():
            seen.append([int(server.metric("deepinfer:num_requests_running")) for server in (a, b)])

        load = run(Load(router.url, expected, clients=16), 10, *((second, look) for second in range(2, 10)))
        assert not load.lost, load.lost[:3]
        means = [sum(counts) / len(seen) for counts in zip(*seen)]
        assert min(means) > 0.6 * max(means) and max(max(counts) for counts in seen) < 16, seen
        return f"16 clients, power_of_two: {means[0]:.1f} and {means[1]:.1f} sequences at a time in the two servers"


def drain():
    """A server that gets SIGTERM under load finishes what it has; a new one at its address is used."""
    a, b = two_servers()
    with a, b, Router([a, b]) as router:
        expected = expected_answers(a.url)
        codes = []
        load = run(Load(router.url, expected, clients=16), 8, (2, lambda: codes.append(b.stop())))
        assert codes == [0], f"exit code {codes}, expected 0"
        assert not load.lost, load.lost[:3]
        with Server("--threads", "1", port=b.port, cores="1") as again:
            end = time.monotonic() + 30
            while served([again])[0] == 0:
                assert time.monotonic() < end, "the new server gets no request"
                more = run(Load(router.url, expected, clients=16), 2)
                assert not more.lost, more.lost[:3]
            return f"{load.answered} answered right while one of two drained, none lost; the server that followed is used"


def kill():
    """SIGKILL under load: what was not a stream under way is answered by the other one."""
    a, b = two_servers()
    with a, b, Router([a, b]) as router:
        expected = expected_answers(a.url)
        plain = run(Load(router.url, expected, clients=16, streams=0), 8, (2, lambda: b.stop(signal.SIGKILL)))
        with Server("--threads", "1", port=b.port, cores="1") as again:
            time.sleep(3)
            both = run(Load(router.url, expected, clients=16, streams=1), 8, (2, lambda: again.stop(signal.SIGKILL)))
        assert not plain.lost, plain.lost[:3]
        assert len(both.lost) <= 16, f"{len(both.lost)} streams lost by one kill: {both.lost[:3]}"
        return (f"{plain.answered} plain answers right, none lost; of {both.answered + len(both.lost)} streams "
                f"{len(both.lost)} broke off (the router cannot send the rest of a stream): {sorted(set(both.lost))[:2]}")


def prefix_hits(policy):
    """Part of the prompts' tokens that the servers had in their caches; 10 conversations, five turns each."""
    a, b = two_servers()
    numbers = random.Random(1)
    openings = [f"Story {i}: " + " ".join(numbers.choice("the a red old cat dog sea sky runs sleeps near under".split())
                                          for _ in range(220)) for i in range(10)]
    turns = [opening for opening in openings for _ in range(5)]
    numbers.shuffle(turns)
    with a, b, Router([a, b], policy=policy) as router, httpx.Client(timeout=120) as session:
        for number, opening in enumerate(turns):
            session.post(router.url + "/v1/completions", json={
                "model": MODEL.stem, "prompt": f"{opening} Turn {number}.", "max_tokens": 1, "temperature": 0}).raise_for_status()
        asked = sum(server.metric("deepinfer:prefix_cache_queries_total") for server in (a, b))
        return sum(server.metric("deepinfer:prefix_cache_hits_total") for server in (a, b)) / asked


def cache():
    aware, turn = prefix_hits("cache_aware"), prefix_hits("round_robin")
    assert aware > turn + 0.1, f"cache_aware {aware:.3f}, round_robin {turn:.3f}"
    return f"prompt tokens found in a server's cache: {aware:.1%} with cache_aware, {turn:.1%} with round_robin"


def cpu_seconds(servers):
    ticks = 0
    for server in servers:
        with open(f"/proc/{server.process.pid}/stat") as stat:
            ticks += sum(map(int, stat.read().rsplit(")", 1)[1].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def scale():
    """Requests a second of one server with one core, and of two. The clients and the router take from the same cores, so
    on two cores the requests that a server's CPU second answers tell more than the clock."""
    rates, efficiency = {}, {}
    for count in (1, 2):
        servers = two_servers() if count == 2 else (Server("--threads", "1", cores="0"),)
        try:
            with Router(servers) as router:
                expected = expected_answers(servers[0].url, 64)
                spent = cpu_seconds(servers)
                load = run(Load(router.url, expected, clients=16 * count, streams=0, tokens=64), 25)
                assert not load.lost, load.lost[:3]
                rates[count] = load.answered / load.seconds
                efficiency[count] = load.answered / (cpu_seconds(servers) - spent)
        finally:
            for server in servers:
                server.stop()
    return (f"{rates[1]:.2f} requests/s with one server, {rates[2]:.2f} with two: {rates[2] / rates[1]:.2f}x by the clock; "
            f"{efficiency[1]:.2f} and {efficiency[2]:.2f} a CPU second of the servers: {2 * efficiency[2] / efficiency[1]:.2f}x")


def main(names):
    checks = {check.__name__: check for check in (spread, balance, drain, kill, cache, scale)}
    failed = 0
    for name in names or checks:
        try:
            print(f"{name}: {checks[name]()}", flush=True)
        except AssertionError as error:
            failed = 1
            print(f"{name}: FAILED: {error}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
