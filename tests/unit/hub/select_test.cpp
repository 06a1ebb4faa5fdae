#include "hub/select.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace deepinfer::hub {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::vector<Listed> listed(const std::vector<std::string>& names) {
  std::vector<Listed> out;
  for (const std::string& n : names) out.push_back({n, 10});
  return out;
}

TEST(Select, AFolderOfSafetensors) {
  const auto s =
      select_files(listed({"config.json", "model.safetensors", "other.safetensors", "tokenizer.json",
                           "pytorch_model.bin", "a.gguf", "chat_template.jinja", "sub/config.json",
                           "chat_template/x.jinja", "chat_template.json", "training_args.json"}),
                   "", "a/b");
  ASSERT_TRUE(s);
  EXPECT_THAT(s->files, ElementsAre("chat_template.jinja", "chat_template.json", "config.json",
                                    "model.safetensors", "tokenizer.json"));
  EXPECT_EQ(s->main, "");
  EXPECT_FALSE(s->needs_index);
}

TEST(Select, AnIndexWithoutASingleFile) {
  const auto s =
      select_files(listed({"config.json", kIndexFile, "model-00001-of-00001.safetensors"}), "", "a/b");
  ASSERT_TRUE(s);
  EXPECT_THAT(s->files, ElementsAre("config.json", kIndexFile));
  EXPECT_TRUE(s->needs_index);
}

TEST(Select, TheOnlyGguf) {
  const auto s = select_files(listed({"README.md", "m.gguf", "mmproj-m.gguf", "m.imatrix.gguf"}), "", "a/b");
  ASSERT_TRUE(s);
  EXPECT_EQ(s->main, "m.gguf");
}

TEST(Select, SeveralAreListed) {
  const auto s = select_files(listed({"m-Q8_0.gguf", "m-Q4_0.gguf"}), "", "a/b");
  ASSERT_FALSE(s);
  EXPECT_EQ(s.error().code, ErrorCode::kModel);
  EXPECT_THAT(s.error().message, HasSubstr("a/b:Q4_0"));
  EXPECT_THAT(s.error().message, HasSubstr("m-Q8_0.gguf"));
  const auto same = select_files(listed({"x/m-Q8_0.gguf", "y/m-Q8_0.gguf"}), "q8_0", "a/b");
  ASSERT_FALSE(same);
  EXPECT_EQ(same.error().code, ErrorCode::kModel);
}

TEST(Select, TheMostExactNameWins) {
  const auto files = listed({"m-Q4_K_XL.gguf", "m-UD-Q4_K_XL.gguf", "M-q4_k_xl.gguf.txt"});
  EXPECT_EQ(select_files(files, "q4_k_xl", "a/b")->main, "m-Q4_K_XL.gguf");
  EXPECT_EQ(select_files(files, "ud-q4_k_xl", "a/b")->main, "m-UD-Q4_K_XL.gguf");
  EXPECT_EQ(select_files(listed({"m-UD-Q2_K.gguf"}), "Q2_K", "a/b")->main, "m-UD-Q2_K.gguf");
  EXPECT_FALSE(select_files(files, "Q4_K", "a/b"));
  EXPECT_EQ(select_files(files, "M-q4_k_xl.gguf.txt", "a/b")->main, "M-q4_k_xl.gguf.txt");
}

TEST(Select, PartsComeTogether) {
  const auto files =
      listed({"d/m-Q8_0-00002-of-00002.gguf", "d/m-Q8_0-00001-of-00002.gguf", "d/m-Q4_0.gguf"});
  for (const char* choice : {"Q8_0", "m-Q8_0-00002-of-00002.gguf"}) {
    const auto s = select_files(files, choice, "a/b");
    ASSERT_TRUE(s);
    EXPECT_THAT(s->files, ElementsAre("d/m-Q8_0-00001-of-00002.gguf", "d/m-Q8_0-00002-of-00002.gguf"));
    EXPECT_EQ(s->main, "d/m-Q8_0-00001-of-00002.gguf");
  }
}

TEST(Select, NothingToRead) {
  const auto s = select_files(listed({"config.json", "pytorch_model.bin"}), "", "a/b");
  ASSERT_FALSE(s);
  EXPECT_EQ(s.error().code, ErrorCode::kNotFound);
  EXPECT_THAT(s.error().message, HasSubstr("model.safetensors"));
}

}  // namespace
}  // namespace deepinfer::hub
