"""The metadata of a GGUF file, without its tensors: the gguf package takes a minute for large vocabularies."""

import struct

FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


def read_metadata(path):
    data, at = path.read_bytes(), 24
    magic, _version, _tensors, count = struct.unpack_from("<4sIQQ", data)
    assert magic == b"GGUF", path

    def number(letter):
        nonlocal at
        (value,) = struct.unpack_from("<" + letter, data, at)
        at += struct.calcsize("<" + letter)
        return value

    def string():
        nonlocal at
        length = number("Q")
        at += length
        return data[at - length : at].decode()

    def value(kind):
        if kind == STRING:
            return string()
        if kind == ARRAY:
            kind, length = number("I"), number("Q")
            return [value(kind) for _ in range(length)]
        return number(FORMATS[kind])

    return {string(): value(number("I")) for _ in range(count)}
