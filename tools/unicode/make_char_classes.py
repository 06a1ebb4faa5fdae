"""Writes src/text/char_class_table.cpp from Unicode 16, the version that Hugging Face's tokenizers splits by.

Usage: pip install unicodedata2==16.0.0; python tools/unicode/make_char_classes.py > src/text/char_class_table.cpp
"""

import sys

import unicodedata2 as unicode

CLASSES = {"L": 1, "N": 2, "M": 4, "P": 5, "S": 6}
WHITE = 3
# The property White_Space, which is no general category.
WHITE_SPACE = {0x20, 0x85, 0xA0, 0x1680, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000}
WHITE_SPACE |= set(range(0x09, 0x0E)) | set(range(0x2000, 0x200B))


def main():
    if unicode.unidata_version != "16.0.0":
        sys.exit(f"unicodedata2: got Unicode {unicode.unidata_version}, expected 16.0.0")
    rows, last = [], None
    for code in range(0x110000):
        kind = WHITE if code in WHITE_SPACE else CLASSES.get(unicode.category(chr(code))[0], 0)
        if kind != last:
            rows.append(code << 4 | kind)
            last = kind
    print("// Written by tools/unicode/make_char_classes.py from Unicode 16.0.0: change that, not this.")
    print('#include "text/char_class_table.h"\n\nnamespace deepinfer {\n')
    print("// clang-format off")
    print(f"extern const std::array<uint32_t, kCharClassRanges> kCharClassTable = {{{{")
    for i in range(0, len(rows), 11):
        print(" " + ",".join(f"{row:#x}" for row in rows[i : i + 11]) + ",")
    print("}};")
    print("// clang-format on\n\n}  // namespace deepinfer")
    print(f"{len(rows)} ranges", file=sys.stderr)


main()
