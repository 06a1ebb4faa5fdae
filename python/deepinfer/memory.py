"""What the engines of this process hold, and how to make them give back what nobody uses."""
from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine import InferenceEngine

engines: weakref.WeakSet[InferenceEngine] = weakref.WeakSet()  # those that are open


def memory_stats() -> dict[str, Any]:
    """What memory_summary() tells, as numbers, in bytes where nothing else is said:

    - ``engines``: what `InferenceEngine.memory_stats()` says of each open engine
    - ``host_resident``, ``host_peak``: of this process now and at most so far; all engines, Python and libraries
    """
    host = {"VmRSS": 0, "VmHWM": 0}
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        for line in status:
            name, _, rest = line.partition(":")
            if name in host:
                host[name] = int(rest.split()[0]) * 1024
    return {"engines": [engine.memory_stats() for engine in _open()],
            "host_resident": host["VmRSS"], "host_peak": host["VmHWM"]}


def memory_summary() -> str:
    """What the open engines of this process hold, for people: weights, blocks of the KV cache (in use, cached, free), CUDA
    graphs, workspaces, memory of the host.

    Takes the place of torch.cuda.memory_summary(). memory_stats() has the numbers.
    """
    stats = memory_stats()
    texts = [engine_text(engine) for engine in stats["engines"]] or ["no engine is open"]
    texts.append(f"{'this process':30}{_mib(stats['host_resident'])} resident, {stats['host_peak'] / 2**20:.1f} MiB at most so far")
    return "\n".join(texts)


def empty_cache() -> dict[str, Any]:
    """Makes every open engine give back what nobody uses, as InferenceEngine.empty_cache() does, then the C library what is
    free in its heap.

    Takes the place of torch.cuda.empty_cache(). Returns the sums:

    - ``prefix_blocks``, ``prefix_bytes``: of finished prompts in the KV caches, forgotten; other prompts find that room
    - ``freed_bytes``: given back to the system; 0 on a GPU, where the engine keeps what it planned with
    - ``busy``: names of engines that run requests and were left as they are
    """
    out: dict[str, Any] = {"prefix_blocks": 0, "prefix_bytes": 0, "freed_bytes": 0, "busy": []}
    for engine in _open():
        emptied = engine.empty_cache()
        if emptied is None:
            out["busy"].append(engine.stats()["names"][0])
            continue
        for key, value in emptied.items():
            out[key] += value
    import ctypes  # for this alone

    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        pass  # a C library without it keeps what it has
    return out


def _open() -> list[InferenceEngine]:
    return [engine for engine in list(engines) if not engine.closed]


def _mib(size: float) -> str:
    return f"{size / 2**20:10.1f} MiB"


def engine_text(m: dict[str, Any]) -> str:
    """Lines about one engine."""
    free = m["kv_blocks"] - m["kv_blocks_used"] - m["kv_blocks_cached"]
    lines = [f"{m['engine']} on {m['device']}",
             f"{'  weights':30}{_mib(m['weights'])}",
             f"{'  KV cache, ' + m['kv_dtype']:30}{_mib(m['kv_cache'])}, {m['kv_cache_resident'] / 2**20:.1f} MiB of it in memory",
             f"{'    blocks':30}{m['kv_blocks']:10} of {m['block_size']} tokens: {m['kv_blocks_used']} in use, "
             f"{m['kv_blocks_cached']} cached, {free} free"]
    if m["on_gpu"]:
        lines.append(f"{'  CUDA graphs':30}{_mib(m['graphs'])}")
    lines.append(f"{'  workspaces':30}{_mib(m['workspaces'])}")
    if m["on_gpu"]:
        lines.append(f"{'  pinned memory of the host':30}{_mib(m['pinned'])}")
    return "\n".join(lines)
