#!/usr/bin/env python3
"""Golden data of the dequantization oracles: blocks of bytes, and what the `gguf` package makes of them.

    dequantize.py [--check]                    writes, or compares with, tests/golden/dequantize.bin
    dequantize.py --compare TOOL FILE.gguf...  every tensor of real files, against `TOOL FILE.gguf`, which
                                               prints "NAME SHA256" of each tensor's float32 values

Needs numpy and gguf. The file: for every case a name (8 bytes, zero padded), two u32 (bytes of input, number
of floats), the input, the floats. Little-endian. Cases named F16ALL and BF16ALL hold no floats: their input is
the SHA-256 of the float32 values of all 65,536 bit patterns that are not NaN, in order.

What the blocks cover: every nibble and every signed byte at every place; scales that are zero, negative,
subnormal, the smallest and largest of fp16, infinite and not a number; random blocks.
"""

import argparse
import hashlib
import pathlib
import struct
import subprocess
import sys

import gguf
import numpy as np

TYPES = {name: gguf.GGMLQuantizationType[name] for name in ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q8_0")}
OUT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden" / "dequantize.bin"
SPECIAL_F16 = [0x0000, 0x8000, 0x0001, 0x8001, 0x0200, 0x03FF, 0x83FF, 0x0400, 0x8400, 0x1400, 0x3555, 0xB555,
               0x3C00, 0xBC00, 0x3C01, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00]
SPECIAL_F32 = [0x00000000, 0x80000000, 0x00000001, 0x807FFFFF, 0x00800000, 0x3F800000, 0xBF800001, 0x7F7FFFFF,
               0xFF7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000]


def f16(bits):
    return struct.pack("<H", bits)


def nibble_blocks():
    """16 runs of 16 bytes in which every place sees every low and every high nibble."""
    return [bytes((((i + r) & 15) | (((i * 7 + r) & 15) << 4)) for i in range(16)) for r in range(16)]


def byte_blocks():
    """Eight runs of 32 in which all 256 byte values occur."""
    return [bytes(range(r * 32, r * 32 + 32)) for r in range(8)]


def inputs(name, rng):
    nibbles, signed = nibble_blocks(), byte_blocks()
    if name == "F32":
        return np.array(SPECIAL_F32, "<u4").tobytes() + rng.integers(0, 2**32, 20, dtype=np.uint32).tobytes()
    if name == "F16":
        return np.array(SPECIAL_F16 + [0x7C01, 0xFFFF, 0x3800, 0x0155], "<u2").tobytes()
    if name == "BF16":
        return (np.array(SPECIAL_F32, "<u4") >> 16).astype("<u2").tobytes() + bytes(range(40))
    blocks = []
    if name == "Q4_0":
        blocks = [f16(s) + nibbles[i % 16] for i, s in enumerate(SPECIAL_F16)]
        blocks += [f16(0x2E66) + n for n in nibbles]
        blocks += [f16(int(rng.integers(0, 0x7C00))) + rng.bytes(16) for _ in range(16)]
    if name == "Q4_1":
        blocks = [f16(s) + f16(SPECIAL_F16[(i * 7 + 3) % 20]) + nibbles[i % 16] for i, s in enumerate(SPECIAL_F16)]
        blocks += [f16(0x2E66) + f16(0xB123) + n for n in nibbles]
        blocks += [f16(int(rng.integers(0x1000, 0x4000))) + f16(int(rng.integers(0x9000, 0xC000))) + rng.bytes(16)
                   for _ in range(32)]
    if name == "Q8_0":
        blocks = [f16(s) + signed[i % 8] for i, s in enumerate(SPECIAL_F16)]
        blocks += [f16(0x2E66) + b for b in signed]
        blocks += [f16(int(rng.integers(0, 0x7C00))) + rng.bytes(32) for _ in range(16)]
    return b"".join(blocks)


def dequantize(raw, qtype):
    with np.errstate(all="ignore"):
        return gguf.quants.dequantize(np.frombuffer(raw, np.uint8), qtype).astype("<f4", copy=False)


def case(name, raw, values):
    return struct.pack("<8sII", name.encode(), len(raw), len(values)) + raw + values.tobytes()


def make():
    rng = np.random.default_rng(20240611)
    out = b""
    for name, qtype in TYPES.items():
        raw = inputs(name, rng)
        out += case(name, raw, dequantize(raw, qtype))
    for name in ("F16", "BF16"):
        values = dequantize(np.arange(65536, dtype="<u2").tobytes(), TYPES[name])
        digest = hashlib.sha256(values[~np.isnan(values)].tobytes()).digest()
        out += case(name + "ALL", digest, np.empty(0, "<f4"))
    return out


def compare(tool, path):
    """Every tensor of one file; returns the number of those that differ."""
    lines = subprocess.run([tool, path], check=True, capture_output=True, text=True).stdout.splitlines()
    ours = dict(line.rsplit(" ", 1) for line in lines)
    tensors = gguf.GGUFReader(path).tensors
    wrong, kinds = [], {}
    for t in tensors:
        values = np.ascontiguousarray(gguf.quants.dequantize(t.data, t.tensor_type), "<f4")
        kinds[t.tensor_type.name] = kinds.get(t.tensor_type.name, 0) + 1
        if ours.get(t.name) != hashlib.sha256(values.tobytes()).hexdigest():
            wrong.append(t.name)
    print(f"{path}: {len(tensors)} tensors {kinds}, {len(wrong)} differ", *wrong[:5])
    return len(wrong) + (len(ours) != len(tensors))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the file instead of writing it")
    parser.add_argument("--compare", nargs="+", metavar=("TOOL", "FILE"), help="compare whole GGUF files")
    args = parser.parse_args()
    if args.compare:
        sys.exit(1 if sum(compare(args.compare[0], p) for p in args.compare[1:]) else 0)
    data = make()
    if args.check:
        if not OUT.exists() or OUT.read_bytes() != data:
            sys.exit(f"{OUT} differs from what the gguf package gives now")
        print(f"{OUT.name}: equal, {len(data)} bytes")
    else:
        OUT.write_bytes(data)
        print(f"{OUT.name}: {len(data)} bytes")


if __name__ == "__main__":
    main()
