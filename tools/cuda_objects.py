#!/usr/bin/env python3
"""What nvcc made, for the CUDA stage of test.sh.

cuda_objects.py BUILD_DIR            a line for each object of di_cuda: seconds, size, cards; slowest first
cuda_objects.py BUILD_DIR --expect 80 89 90 120 ptx80
                                     exit code 1 unless the program has code for each of them
"""
import argparse
import collections
import pathlib
import struct
import sys

FATBIN_MAGIC = 0xBA55ED50
PTX, ELF = 1, 2


def sections(data):
    """Name, bytes of each section of an ELF64 file."""
    if data[:5] != b"\x7fELF\x02":
        raise ValueError("not a 64-bit ELF file")
    offset, = struct.unpack_from("<Q", data, 0x28)
    size, count, names_index = struct.unpack_from("<HHH", data, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", data, offset + i * size) for i in range(count)]
    names = headers[names_index][4]
    for name, kind, _, _, start, length in headers:
        end = data.index(b"\0", names + name)
        if kind != 8:  # NOBITS has no bytes in the file
            yield data[names + name:end].decode(), data[start:start + length]


def cards(path):
    """How many images of which card a file holds: {'90': 3, 'ptx80': 3}. Fat binaries are a header of 16 bytes, then
    entries: kind, header size, padded size, ..., at 28 the number of the card."""
    found = collections.Counter()
    for name, data in sections(path.read_bytes()):
        if name != ".nv_fatbin":
            continue
        at = 0
        while at + 16 <= len(data):
            magic, _, header, size = struct.unpack_from("<IHHQ", data, at)
            if magic != FATBIN_MAGIC:
                at += 8  # padding between the units
                continue
            entry, end = at + header, at + header + size
            while entry + 32 <= end:
                kind, _, entry_header, entry_size = struct.unpack_from("<HHIQ", data, entry)
                card, = struct.unpack_from("<I", data, entry + 28)
                if kind in (PTX, ELF):
                    found[f"{'ptx' if kind == PTX else ''}{card}"] += 1
                entry += entry_header + entry_size
            at = end
    return found


def seconds(build):
    """Of the last run of each object, by ninja's log."""
    times = {}
    for line in (build / ".ninja_log").read_text().splitlines()[1:]:
        start, end, _, output, _ = line.split("\t")
        times[output] = (int(end) - int(start)) / 1000
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--expect", nargs="+", default=[])
    arguments = parser.parse_args()
    times = seconds(arguments.build)
    objects = sorted(arguments.build.glob("src/backend/cuda/**/*.cu.o"),
                     key=lambda o: -times.get(str(o.relative_to(arguments.build)), 0))
    for path in objects:
        name = str(path.relative_to(arguments.build))
        shown = ", ".join(sorted(cards(path), key=lambda c: (c.startswith("ptx"), int(c.removeprefix("ptx")))))
        print(f"{times.get(name, 0):8.1f} s {path.stat().st_size / 1024:8.0f} KiB  {path.name:32s} {shown}")
    program = cards(arguments.build / "src/cli/deepinfer")
    missing = [c for c in arguments.expect if not program[c]]
    if missing:
        print(f"{arguments.build}/src/cli/deepinfer: no code for {', '.join(missing)}; it has {dict(program)}")
        return 1
    print(f"the program has {dict(program)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
