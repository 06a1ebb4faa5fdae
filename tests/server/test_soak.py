"""Random clients for a while: afterwards blocks, files, threads and memory are as before. bench/server/soak.py is the long form."""
import asyncio
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "bench/server"))
from soak import soak  # noqa: E402

SECONDS, SEED = 15, 20261


def test_nothing_is_left_after_random_clients(launch, tiny_model):
    with launch("--max-model-len", 2048, "--max-num-seqs", 16, "--kv-cache-memory-bytes", 4 << 20,
                model=tiny_model) as server:
        wrong = asyncio.run(soak(server.process.pid, server.port, SECONDS, 12, SEED))
        assert wrong == [], f"seed {SEED}"
        assert server.stop() == 0
