#!/usr/bin/env python3
"""Checks the direction of includes between the folders of src/ (docs/ARCHITECTURE.md, "Direction").

check_includes.py [ROOT]      prints file:line and the rule that each wrong include breaks; exit code 1 if any
check_includes.py --self-test checks that each rule catches a violation of it
"""
import pathlib
import re
import sys
import tempfile

# What a folder may include besides itself. A name that ends in .h is that one header.
ALLOWED = {
    "base": [],
    "config": ["base"],
    "tensor": ["base"],
    "ops": ["tensor", "base", "profile", "backend/cpu.h", "backend/cuda.h", "comm"],
    # Headers of the backend without CUDA's own headers in them: what the engine's runner needs.
    "backend": ["tensor", "base", "ops/params.h", "ops/linear_weight.h", "ops/pack_source.h", "backend/cuda/device_batch.h"],
    "backend/cpu": ["backend/cpu_kernels.h", "backend/cpu.h"],
    # emulation/emulator.h: the tests' stand-in for a card, behind DEEPINFER_EMULATION.
    "backend/cuda": ["backend/cuda.h", "backend/cuda_gpu.h", "backend/cuda_error.h", "backend/cuda_step.h",
                     "backend/cuda_rates.h", "emulation/emulator.h"],
    "backend/no_cuda": ["backend/cuda.h", "backend/cuda_gpu.h", "backend/cuda_error.h", "backend/cuda_step.h",
                        "backend/cuda_rates.h", "backend/cuda/sample.h", "backend/cuda/staging.h"],
    "device": ["base", "config"],
    "hub": ["base", "config"],
    "profile": ["base"],
    "comm": ["tensor", "base"],
    "quant": ["ops", "tensor", "base"],
    "text": ["base"],
    "model": ["quant", "ops", "tensor", "base", "comm", "text"],
    "quantize": ["model", "quant", "ops", "tensor", "base", "text"],
    "engine": ["model", "quant", "ops", "tensor", "base", "config", "comm", "text", "device", "profile",
               "backend/cpu_kernels.h", "backend/cuda_gpu.h", "backend/cuda_error.h", "backend/cuda_step.h",
               "backend/cuda_rates.h", "backend/cuda/device_batch.h", "backend/cuda/sample.h",
               "backend/cuda/staging.h"],
    "doctor": ["engine", "model", "quant", "ops", "tensor", "text", "device", "hub", "config", "base"],
    "server": ["engine", "model", "text", "config", "base", "device", "profile"],
    "tune": ["engine", "model", "text", "config", "base"],
    "cli": ["server", "tune", "doctor", "engine", "quantize", "model", "quant", "ops", "tensor", "text", "config", "base", "device", "hub",
            "profile", "backend/cpu_kernels.h", "backend/cuda_gpu.h"],
}
# Public headers that describe a layer belong to those who may see it; result.h and version.h to everybody.
PUBLIC = {
    "deepinfer/config.h": ["config", "device", "engine", "doctor", "tune", "server", "cli"],
    "deepinfer/engine.h": ["engine", "tune", "server", "cli"],
}
# System headers that only some folders may know.
SYSTEM = [
    (r"boost/(beast|asio)", ["server", "cli"], "HTTP is the server's business"),
    (r"(cuda|cublas|nccl|nvml|cupti)\w*\.h|cuda/", ["backend/cuda"], "CUDA headers stay in backend/cuda"),
    (r"nvtx", ["backend/cuda", "profile"], "ranges for NVIDIA's tools are the profiler's business"),
    (r"gloo/", ["comm"], "ranks talk through a Communicator"),
    (r"curl/", ["hub"], "what is fetched over the network is the hub's business"),
    (r"regex$", [], "std::regex overflows the stack on long input: use a scanner or PCRE2"),
]
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^">]+)[">]')


def folder_of(path):
    """The folder whose rules hold: 'backend/cpu' for src/backend/cpu/x.cpp, else the first part."""
    parts = path.split("/")
    return "/".join(parts[:2]) if parts[0] == "backend" and len(parts) > 2 else parts[0]


def check_quoted(folder, name):
    group = folder.split("/")[0]
    if group == "include":
        return None if name.startswith("deepinfer/") else "an installed header includes installed headers only"
    if name.startswith("deepinfer/"):
        users = PUBLIC.get(name)
        return None if users is None or group in users else f"{name} belongs to {', '.join(users)}"
    target = folder_of(name)
    if target == folder:
        return None
    allowed = ALLOWED[group] + (ALLOWED.get(folder, []) if folder != group else [])
    if group == "backend" and target.startswith("backend") and name not in allowed:
        return "a backend does not know another backend"
    if name in allowed or target.split("/")[0] in allowed:
        return None
    return f"{group} may include {', '.join(allowed) or 'nothing'} only"


def check_system(folder, name):
    for pattern, users, reason in SYSTEM:
        if re.match(pattern, name) and not any(folder == u or folder.startswith(u + "/") for u in users):
            return reason
    return None


def check_file(root, path):
    relative = path.relative_to(root)
    folder = "include" if relative.parts[0] == "include" else folder_of("/".join(relative.parts[1:]))
    if folder.split("/")[0] not in ALLOWED and folder != "include":
        return [f"{relative}:1: folder src/{folder} has no rule: add it to ALLOWED in tools/check_includes.py"]
    errors = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        match = INCLUDE.match(line)
        if not match:
            continue
        quoted, name = match.group(1) == '"', match.group(2)
        reason = check_quoted(folder, name) if quoted and "/" in name else None
        if quoted and "/" not in name:
            reason = "write the path from src/ or include/, not a bare file name"
        reason = reason or check_system(folder, name)
        if reason:
            errors.append(f'{relative}:{number}: #include "{name}": {reason}')
    return errors


def check_tree(root):
    suffixes = {".h", ".cpp", ".cu", ".cuh"}
    files = [p for d in ("include", "src") for p in sorted((root / d).rglob("*")) if p.suffix in suffixes]
    return len(files), [error for path in files for error in check_file(root, path)]


def self_test():
    wrong = [
        ("src/base/a.h", '#include "tensor/tensor.h"'),
        ("src/tensor/a.h", '#include "ops/ops.h"'),
        ("src/config/a.h", '#include "engine/llm.h"'),
        ("src/backend/cpu/a.cpp", '#include "ops/ops.h"'),
        ("src/backend/cpu/a.cpp", '#include "backend/no_cuda/b.h"'),
        ("src/backend/cpu/a.cpp", '#include "backend/cuda.h"'),
        ("src/backend/cpu.h", '#include "ops/ops.h"'),
        ("src/ops/a.cpp", '#include "backend/cpu/kernels.h"'),
        ("src/model/a.cpp", '#include "backend/cpu.h"'),
        ("src/model/a.cpp", '#include "engine/llm.h"'),
        ("src/text/a.cpp", '#include "model/checkpoint.h"'),
        ("src/quant/a.cpp", '#include "model/weights.h"'),
        ("src/engine/a.cpp", '  #  include "server/http.h"'),
        ("src/engine/a.cpp", "#include <boost/beast/http.hpp>"),
        ("src/ops/a.cpp", "#include <cuda_runtime.h>"),
        ("src/engine/a.cpp", '#include "hub/pull.h"'),
        ("src/hub/a.cpp", '#include "engine/llm.h"'),
        ("src/server/a.cpp", "#include <curl/curl.h>"),
        ("src/ops/a.cpp", '#include "deepinfer/engine.h"'),
        ("src/text/a.cpp", "#include <regex>"),
        ("src/text/a.cpp", '#include "tokenizer.h"'),
        ("src/new_folder/a.cpp", "#include <vector>"),
        ("include/deepinfer/a.h", '#include "base/check.h"'),
    ]
    right = [
        ("src/backend/cpu/a.cpp", '#include "ops/params.h"\n#include "backend/cpu/b.h"\n#include "backend/cpu.h"'),
        ("src/backend/no_cuda/a.cpp", '#include "backend/cuda.h"'),
        ("src/ops/a.cpp", '#include "backend/cpu.h"\n#include "deepinfer/result.h"'),
        ("src/server/a.cpp", '#include <boost/beast/http.hpp>\n#include "engine/llm.h"'),
        ("src/backend/cuda/a.cu", "#include <cuda_runtime.h>"),
        ("src/hub/a.cpp", '#include <curl/curl.h>\n#include "base/paths.h"'),
        ("src/cli/a.cpp", '#include "server/server.h"\n#include "deepinfer/config.h"'),
    ]
    failed = []
    for expected, cases in ((1, wrong), (0, right)):
        for name, text in cases:
            with tempfile.TemporaryDirectory() as folder:
                path = pathlib.Path(folder, name)
                path.parent.mkdir(parents=True)
                path.write_text("// first line\n" + text + "\n", encoding="utf-8")
                _, errors = check_tree(pathlib.Path(folder))
                if len(errors) != expected or (expected and "new_folder" not in name and ":2:" not in errors[0]):
                    failed.append(f"self-test: {name}: {text}: expected {expected} error, got {errors}")
    return len(wrong) + len(right), failed


def main():
    if sys.argv[1:] == ["--self-test"]:
        count, errors = self_test()
        print(*errors, f"include rules, self-test: {count} cases, {len(errors)} failed", sep="\n")
    else:
        root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent.parent)
        count, errors = check_tree(root)
        print(*errors, f"include rules: {count} files, {len(errors)} wrong includes", sep="\n")
    return 1 if errors else 0


sys.exit(main())
