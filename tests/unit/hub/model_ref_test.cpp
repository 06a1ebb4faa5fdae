#include "hub/model_ref.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace deepinfer::hub {
namespace {

using testing::HasSubstr;

TEST(ModelRef, OrgAndName) {
  const Result<ModelRef> plain = parse_model_ref("acme/Tiny-1.5B_x");
  ASSERT_TRUE(plain);
  EXPECT_EQ(plain->repo, "acme/Tiny-1.5B_x");
  EXPECT_EQ(plain->file, "");
  const Result<ModelRef> file = parse_model_ref("acme/tiny:sub/a-Q4_0.gguf");
  ASSERT_TRUE(file);
  EXPECT_EQ(file->repo, "acme/tiny");
  EXPECT_EQ(file->file, "sub/a-Q4_0.gguf");
  EXPECT_EQ(file->text(), "acme/tiny:sub/a-Q4_0.gguf");
}

TEST(ModelRef, WhatIsNone) {
  for (const char* text :
       {"", "/", "acme", "acme/", "/tiny", "a/b/c", "../b", "a/..", "a/b..c", "a--b/c", "a/b.git", ".a/b",
        "a/-b", "a/b-", "a b/c", "a/b\n", "a/b:", "a/b:/etc/passwd", "a/b:x/../y"}) {
    EXPECT_FALSE(parse_model_ref(text)) << text;
  }
  EXPECT_FALSE(parse_model_ref("a/" + std::string(95, 'b')));
  EXPECT_TRUE(parse_model_ref("a/" + std::string(94, 'b')));
  EXPECT_THAT(parse_model_ref("acme").error().message, HasSubstr("ORG/NAME"));
}

TEST(RelativePath, StaysBelowItsFolder) {
  for (const char* path : {"a", "a/b.c", "..a", "a..", "...", "\xc3\xa9.json", "a b"})
    EXPECT_TRUE(check_relative_path(path, "x")) << path;
  using std::string_literals::operator""s;
  for (const std::string& path : {""s, "/a"s, "a/"s, "a//b"s, "."s, ".."s, "a/../b"s, "a/."s, "a\\b"s,
                                  "a\tb"s, "a\0b"s, "a\x7f"s, std::string(256, 'a'), std::string(1025, '/')})
    EXPECT_FALSE(check_relative_path(path, "x")) << path;
  EXPECT_TRUE(check_relative_path(std::string(255, 'a') + "/" + std::string(255, 'b'), "x"));
}

TEST(Hashes, AreHexadecimal) {
  EXPECT_TRUE(is_commit(std::string(40, 'a')));
  EXPECT_FALSE(is_commit(std::string(40, 'g')));
  EXPECT_FALSE(is_commit(std::string(40, 'A')));
  EXPECT_FALSE(is_commit(std::string(39, 'a')));
  EXPECT_TRUE(is_blob_hash(std::string(64, '0')));
  EXPECT_FALSE(is_blob_hash("../" + std::string(61, '0')));
  EXPECT_EQ(plain_etag("W/\"abc\""), "abc");
  EXPECT_EQ(plain_etag("\"abc\""), "abc");
  EXPECT_EQ(plain_etag("abc"), "abc");
  EXPECT_EQ(plain_etag("\""), "\"");
}

TEST(Quantization, OfAFile) {
  const std::pair<const char*, const char*> cases[] = {
      {"model-q4_k_m.gguf", "Q4_K_M"},
      {"SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_1"},
      {"sub/y-UD-Q2_K_XL-00001-of-00002.gguf", "UD-Q2_K_XL"},
      {"Qwen3-8B-IQ4_XS.gguf", "IQ4_XS"},
      {"tiny_Q8_0.gguf", "Q8_0"},
      {"Q8_0.gguf", "Q8_0"},
      {"a-TQ1_0.gguf", "TQ1_0"},
      {"gpt-mxfp4.gguf", "MXFP4"},
      {"gpt-MXFP4_MOE.gguf", "MXFP4_MOE"},
      {"a-bf16.gguf", "BF16"},
      {"a.f16.gguf", "F16"},
      {"Qwen-7B.gguf", ""},
      {"Q4_0/model.gguf", ""},
      {"model.gguf", ""},
      {"xQ4_0.gguf", ""},
  };
  for (const auto& [file, expected] : cases) EXPECT_EQ(quantization_of(file), expected) << file;
}

TEST(SplitBase, OfParts) {
  EXPECT_EQ(split_base("a/b-Q8_0-00002-of-00003.gguf"), "a/b-Q8_0");
  EXPECT_EQ(split_base("b-Q8_0-0002-of-0003.gguf"), "b-Q8_0-0002-of-0003.gguf");
  EXPECT_EQ(split_base("-00002-of-00003.gguf"), "-00002-of-00003.gguf");
  EXPECT_EQ(split_base("b.gguf"), "b.gguf");
}

TEST(SizeText, PowersOfTen) {
  EXPECT_EQ(size_text(0), "0 B");
  EXPECT_EQ(size_text(999), "999 B");
  EXPECT_EQ(size_text(1000), "1.0 kB");
  EXPECT_EQ(size_text(98362432), "98.4 MB");
  EXPECT_EQ(size_text(999'999'999), "1.0 GB");
  EXPECT_EQ(size_text(5'000'000'000'000'000), "5000.0 TB");
}

}  // namespace
}  // namespace deepinfer::hub
