"""Texts that tokenizers disagree about, from a fixed seed."""

import random
import sys
import unicodedata

SEED = 20240611
COUNT = 21000

WORDS = """the The THE and of a I hello Hello world naïve café façade über straße Straße ſtraße résumé coöperate
tokenization internationalization Привет мир Здравствуйте Ελληνικά γλώσσα שלום עולם مرحبا بالعالم हिन्दी नमस्ते
বাংলা தமிழ் ไทย ภาษาไทย ລາວ 中文 漢字仮名交じり文 日本語 ひらがな カタカナ ｶﾀｶﾅ 한국어 안녕하세요 ქართული Հայերեն አማርኛ
ᏣᎳᎩ ᠮᠣᠩᠭᠣᠯ Tiếng Việt Türkçe İstanbul ıssız Ǆungla ﬁnd ﬀ ligature x² H₂O ½ ⅷ Ⅻ ①② ٣٤٥ १२३ 𝟙𝟚𝟛 𝒜𝓑𝒸 ﷺ""".split()
CONTRACTIONS = """don't DON'T I'll I'LL we've WE'VE you're YOU'RE he's HE'S HE'ſ i'm I'M she'd SHE'D 'Tis o'clock
'sup 'S 'ſ 'ſs 're'd 'lL 'Ll 'vE ''s '' ' ’s it’s d'ſt 'x 'ré l'été""".split()
EMOJI = ["😀", "👍🏽", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇫🇷", "❤️", "☺", "1️⃣", "🤷🏿‍♀️", "\u200d", "\ufe0f", "🫠"]
CODE = [
    "int main(void) {\n\treturn 0;\n}\n",
    "def f(x, *, y=None):\n    return x**2 if x else y\n",
    "a[i]->b.c::d<e>();",
    "SELECT * FROM t WHERE x >= 10 AND y <> 'it''s';",
    '{"key": [1, 2.5e-10, null, true], "ünï": "\\u00e9"}',
    '<div class="a b">&nbsp;</div>',
    "x = 0xDEADBEEF & ~(1<<31); // comment",
    "#!/bin/sh\nset -eu\necho \"$1\" | sed 's/a/b/g'\n",
    "if (a&&b||!c) { ++i; }",
    "https://example.com/a?b=c&d=%20#e",
    "foo_bar fooBar FooBar FOO_BAR foo-bar",
    "/* … */",
]
SPECIAL = (
    """<|im_start|> <|im_end|> <|endoftext|> <|begin_of_text|> <|eot_id|> <|start_header_id|> <|im_end <|im_ |im_end|>
<|endoftext <<|im_end|>> <|im_end|><|im_end|> <|IM_END|> <repo_name> <file_sep> <|end_of_text|> </s> <s> <|im_start|>system
<|im_start|>user <tool_call> </tool_call> <|fim_prefix|> <|reserved_special_token_0|> <｜end▁of▁sentence｜>""".split()
)
SPACES = [
    " ",
    "  ",
    "   ",
    "\t",
    "\t\t",
    "\n",
    "\n\n",
    "\r\n",
    "\r\n\r\n",
    "\r",
    " \n",
    "\n ",
    " \n \n ",
    "\t \n",
    "\u00a0",
    "\u3000",
    "\u2003",
    "\u2028",
    "\u0085",
    "\u200b",
    "\ufeff",
    "\u180e",
    "\x0b",
    "\x0c",
    "\x1c",
    "\x00",
]
PUNCTUATION = list("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~") + [
    "...",
    "—",
    "…",
    "«»",
    "“”",
    "‘’",
    "。",
    "、",
    "！",
    "?!?!",
    "===",
    "----",
    "€",
    "£",
    "№",
]
MARKS = [
    "\u0301",
    "\u0308",
    "\u0327",
    "\u0345",
    "\u0323\u0307",
    "\u0307\u0323",
    "\u05b0",
    "\u064b",
    "\u093c",
    "\u20dd",
    "\u0f71\u0f72",
]
COMPOSITION = [
    "e\u0301",
    "a\u0323\u0302",
    "\u1100\u1161\u11a8",
    "\u212b",
    "\u2126",
    "\ufb1d",
    "\u0958",
    "\u0f73",
    "\ufa10",
    "\u2260",
    "=\u0338",
    "\u0344",
]


def assigned_since(limit):
    """The characters that Python's Unicode knows: newer ones have classes that libraries disagree about."""
    return [chr(c) for c in range(limit) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")]


class Generator:
    """Texts of one seed; `bytes_of(n)` gives n of them, some of which are not UTF-8."""

    def __init__(self, seed=SEED, extra_special=()):
        self.random = random.Random(seed)
        self.characters = assigned_since(sys.maxunicode + 1)
        self.special = SPECIAL + list(extra_special)

    def run(self):
        r = self.random
        character = r.choice(
            [" ", "\n", "\t", "0", "7", "a", "-", "=", ".", "é", "中", "😀", "\r\n", "\u00a0", "\u0301", "ſ", "9²"]
        )
        return character * r.choice([1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 31, 64, 100])

    def number(self):
        r = self.random
        return r.choice(["{}", "{:,}", "-{}", "{}.{}", "0{}", "{}%", "${}", "{}:{}"]).format(
            r.randrange(10 ** r.randrange(1, 15)), r.randrange(1000)
        )

    def piece(self):
        r = self.random
        kind = r.randrange(14)
        lists = [WORDS, WORDS, WORDS, CONTRACTIONS, EMOJI, CODE, self.special, SPACES, PUNCTUATION, MARKS, COMPOSITION]
        if kind < len(lists):
            return r.choice(lists[kind])
        if kind == 11:
            return self.run()
        if kind == 12:
            return self.number()
        return "".join(r.choice(self.characters) for _ in range(r.randrange(1, 6)))

    def text(self):
        r = self.random
        glue = r.choice(["", " ", " ", " ", "mixed"])
        parts = [self.piece() for _ in range(r.choice([1, 2, 3, 5, 8, 13, 30]))]
        if glue != "mixed":
            return glue.join(parts)
        return "".join(part + r.choice(["", " ", r.choice(SPACES)]) for part in parts)

    def bytes_of(self, count):
        r = self.random
        out = [b"", b" ", b"\n", b"'", b"\xff", b"\xe2\x82", "\ufeff".encode()]
        while len(out) < count:
            text = self.text().encode()
            if r.random() < 0.15:  # cut characters, and bytes that no UTF-8 has
                raw = bytearray(text)
                for _ in range(r.randrange(1, 5)):
                    at = r.randrange(len(raw) + 1)
                    if r.random() < 0.5:
                        raw[at:at] = bytes(
                            r.choice([0x80, 0xBF, 0xC0, 0xC3, 0xE0, 0xED, 0xE2, 0xF0, 0xF4, 0xF5, 0xFF, 0xA0, 0x90])
                            for _ in range(r.randrange(1, 4))
                        )
                    else:
                        del raw[at : at + 1]
                text = bytes(raw)
            out.append(text)
        return out
