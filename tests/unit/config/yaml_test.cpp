#include "config/yaml.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

namespace deepinfer {
namespace {

using testing::HasSubstr;

std::string error_of(std::string_view text) {
  auto parsed = parse_yaml(text, "my.yaml");
  if (parsed.ok()) return "(no error)";
  EXPECT_EQ(parsed.error().code, ErrorCode::kConfig);
  return parsed.error().message;
}

TEST(Yaml, ReadsSectionsKeysAndLists) {
  auto parsed = parse_yaml(
      "# a comment\nmodel:\n  name: /m/a.gguf\n  served_model_name: [a, \"b c\"]\n"
      "gpu:\n  kv_cache_dtype: \"auto\"\n  max_num_seqs: 5\nserver:\n  api_key:\n    - x\n    - y\ncpu:\n",
      "my.yaml");
  ASSERT_TRUE(parsed.ok()) << parsed.error().message;
  ASSERT_EQ(parsed->size(), 5u);
  EXPECT_EQ((*parsed)[0].key->path(), "model.name");
  EXPECT_EQ((*parsed)[0].value.items[0], "/m/a.gguf");
  EXPECT_EQ((*parsed)[0].where, "my.yaml:3");
  EXPECT_TRUE((*parsed)[1].value.is_list);
  EXPECT_EQ((*parsed)[1].value.items[1], "b c");
  EXPECT_TRUE((*parsed)[2].value.quoted);
  EXPECT_EQ((*parsed)[4].value.items, (std::vector<std::string>{"x", "y"}));
}

TEST(Yaml, NullAndEmptyFilesSetNothing) {
  for (std::string_view text : {"", "\n\n", "# only a comment\n", "---\n", "gpu:\n", "gpu: ~\n",
                                "model:\n  quantization: null\n  revision:\n", "\xEF\xBB\xBFgpu:\n"}) {
    auto parsed = parse_yaml(text, "my.yaml");
    ASSERT_TRUE(parsed.ok()) << text << ": " << parsed.error().message;
    EXPECT_TRUE(parsed->empty());
  }
}

TEST(Yaml, UnknownKeysNameTheNearest) {
  EXPECT_EQ(
      error_of("gpu:\n  max_num_seq: 5\n"),
      "my.yaml:2: gpu.max_num_seq: unknown key; did you mean `gpu.max_num_seqs`? (`deepinfer config` lists "
      "all)");
  EXPECT_THAT(error_of("model:\n  max_num_seqs: 5\n"),
              HasSubstr("my.yaml:2: model.max_num_seqs: unknown key; it "
                        "stands under `gpu:`"));
  EXPECT_THAT(error_of("\nmax_num_seqs: 5\n"),
              HasSubstr("my.yaml:2: max_num_seqs: this key stands under `gpu:`"));
  EXPECT_THAT(error_of("sever:\n  port: 1\n"), HasSubstr("did you mean `server`?"));
  EXPECT_THAT(error_of("gpu:\n  zzzzzzzzzzzz: 5\n"), HasSubstr("unknown key (`deepinfer config`"));
}

TEST(Yaml, DuplicatesNameBothLines) {
  EXPECT_THAT(error_of("gpu:\n  block_size: 5\n  max_num_seqs: 3\n  block_size: 5\n"),
              HasSubstr("my.yaml:4: gpu.block_size: given twice, first on line 2"));
  EXPECT_THAT(error_of("gpu:\n  block_size: 5\ncpu:\n  threads: 2\ngpu:\n  max_num_seqs: 5\n"),
              HasSubstr("my.yaml:5: gpu: given twice, first on line 1"));
}

TEST(Yaml, WhatIsNoMapping) {
  EXPECT_THAT(error_of("- a\n- b\n"), HasSubstr("my.yaml:1: expected sections"));
  EXPECT_THAT(error_of("just text\n"), HasSubstr("my.yaml:1: expected sections"));
  EXPECT_THAT(error_of("gpu: 5\n"), HasSubstr("my.yaml:1: gpu: expected `key: value` lines"));
  EXPECT_THAT(error_of("gpu:\n  max_num_seqs: {a: 1}\n"),
              HasSubstr("my.yaml:2: gpu.max_num_seqs: got a mapping"));
  EXPECT_THAT(error_of("server:\n  api_key: [[a]]\n"), HasSubstr("entry 1 of the list is no text"));
  EXPECT_THAT(error_of("? [a, b]\n: 1\n"), HasSubstr("must be a text"));
  EXPECT_THAT(error_of("gpu:\n  ? {a: 1}\n  : 1\n"), HasSubstr("must be a text"));
  EXPECT_THAT(error_of("gpu:\n  block_size: 16\n---\ncpu:\n  threads: 1\n"), HasSubstr("a second document"));
}

TEST(Yaml, SyntaxErrorsHaveTheirLine) {
  EXPECT_THAT(error_of("gpu:\n  block_size: [1, 2\nserver:\n"), HasSubstr("not valid YAML"));
  EXPECT_THAT(error_of("gpu:\n\tblock_size: 16\n"), HasSubstr("my.yaml:2: a tab in the indentation"));
  EXPECT_THAT(error_of("gpu:\n  a: 'x\n"), HasSubstr("my.yaml:"));
  EXPECT_THAT(error_of("gpu:\n  block_size: *nobody\n"), HasSubstr("my.yaml:2: not valid YAML"));
}

TEST(Yaml, BytesThatAreNoText) {
  EXPECT_THAT(error_of("gpu:\n  device: \xFF\n"), HasSubstr("my.yaml:2: byte 0xff is no UTF-8"));
  EXPECT_THAT(error_of("\xFF\xFEg\0p"), HasSubstr("my.yaml:1: byte 0xff"));
  EXPECT_THAT(error_of("gpu:\n# \xC0\x80\n"), HasSubstr("my.yaml:2: byte 0xc0"));
  EXPECT_THAT(error_of("# \xED\xA0\x80\n"), HasSubstr("byte 0xed"));
  EXPECT_THAT(error_of(std::string_view("gpu:\n\0", 6)), HasSubstr("my.yaml:2: control character 0x00"));
  EXPECT_THAT(error_of("gpu:\n# cut off \xE2\x82"), HasSubstr("byte 0xe2"));
}

TEST(Yaml, DepthAndSizeAreBounded) {
  const auto repeat = [](std::string_view s, int n) {
    std::string out;
    for (int i = 0; i < n; ++i) out += s;
    return out;
  };
  EXPECT_THAT(error_of(repeat("[", 100000)), HasSubstr("my.yaml:1: nested too deep"));
  EXPECT_THAT(error_of("gpu: " + repeat("{a: ", 100000)), HasSubstr("my.yaml:1: nested too deep"));
  EXPECT_THAT(error_of(repeat("- ", 100000)), HasSubstr("my.yaml:1: nested too deep"));
  EXPECT_THAT(error_of(repeat("? ", 100000)), HasSubstr("my.yaml:1: nested too deep"));
  EXPECT_THAT(error_of(repeat("[\n", 1000)), HasSubstr("nested too deep"));
  std::string stairs;
  for (int i = 0; i < 500; ++i) stairs += std::string(i, ' ') + "a:\n";
  EXPECT_THAT(error_of(stairs), HasSubstr("my.yaml:33: nested too deep"));
  EXPECT_THAT(error_of(std::string((1 << 20) + 1, '#')), HasSubstr("at most 1048576"));
}

TEST(Yaml, AliasBombsStayFlat) {
  std::string text = "server:\n  api_key: &a0 [x, x]\n";
  for (int i = 1; i < 40; ++i)
    text += "  k" + std::to_string(i) + ": &a" + std::to_string(i) + " [*a" + std::to_string(i - 1) + ", *a" +
            std::to_string(i - 1) + "]\n";
  EXPECT_THAT(error_of(text), HasSubstr("unknown key"));
  EXPECT_THAT(error_of("server:\n  api_key: &a [b]\n  allowed_origins: [*a, *a]\n"), HasSubstr("is no text"));
}

// Whatever the bytes, the reader returns: an error or settings. The sanitizers watch.
TEST(Yaml, RandomBytesAndPiecesNeverFault) {
  constexpr uint32_t kSeed = 20261122;
  RecordProperty("seed", static_cast<int>(kSeed));
  std::mt19937 random(kSeed);
  const std::vector<std::string> pieces = {
      "gpu:", "\n",  "  ",    "max_num_seqs", ": ",    "5", "[",     "]",       "{",   "}", "&a ", "*a",
      "- ",   "? ",  "'",     "\"",           "---\n", "#", "!!int", "|\n",     ">\n", ",", "<<:", "api_key",
      "\t",   "\\x", "%YAML", "server:",      "~",     "!", "\r\n",  "\xC3\xA9"};
  int errors = 0, good = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string text;
    const int n = static_cast<int>(random() % 24);
    for (int i = 0; i < n; ++i)
      text +=
          random() % 16 == 0 ? std::string(1, static_cast<char>(random())) : pieces[random() % pieces.size()];
    (parse_yaml(text, "my.yaml").ok() ? good : errors)++;
  }
  EXPECT_GT(errors, 1000);
  EXPECT_GT(good, 100);
}

}  // namespace
}  // namespace deepinfer
