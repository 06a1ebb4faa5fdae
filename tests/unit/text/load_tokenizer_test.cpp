// Folders with tokenizer.json: the settings that are read, and what is said about those that are not.
#include <gmock/gmock.h>

#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <filesystem>
#include <fstream>

#include "base/check.h"
#include "small_tokenizer.h"

namespace deepinfer {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using namespace test;
namespace json = boost::json;

class LoadTokenizer : public testing::Test {
 protected:
  void SetUp() override {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    folder_ = std::filesystem::temp_directory_path() /
              (std::string("deepinfer_tokenizer_") + std::to_string(getpid()) + info->name());
    std::filesystem::create_directories(folder_);
    const TokenizerData data = small_data();
    json::object vocab;
    for (int32_t id = 0; id <= kSpaceHello; ++id) vocab[data.tokens[static_cast<size_t>(id)]] = id;
    json::array merges;
    for (const std::string& merge : data.merges) merges.emplace_back(merge);
    document_ = {
        {"added_tokens",
         {{{"id", kEnd}, {"content", "<|im_end|>"}, {"special", true}, {"normalized", false}},
          {{"id", kStart}, {"content", "<|im_start|>"}, {"special", true}},
          {{"id", kTool}, {"content", "<tool>"}, {"special", false}}}},
        {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
        {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", merges}}},
    };
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  void write(const std::string& name, std::string_view text) { std::ofstream(folder_ / name) << text; }
  Result<std::unique_ptr<Tokenizer>> load() {
    write("tokenizer.json", json::serialize(document_));
    return load_tokenizer(folder_);
  }
  std::unique_ptr<Tokenizer> loaded() {
    auto result = load();
    DI_CHECK(result.ok(), "{}", result.error().message);
    return std::move(result).value();
  }
  std::string error() {
    const auto result = load();
    EXPECT_FALSE(result.ok());
    if (result.ok()) return "";
    EXPECT_EQ(result.error().code, ErrorCode::kModel);
    EXPECT_THAT(result.error().message, HasSubstr(folder_.string()));
    return result.error().message;
  }
  json::object& model() { return document_["model"].as_object(); }

  std::filesystem::path folder_;
  json::object document_;
};

TEST_F(LoadTokenizer, ReadsTheMinimum) {
  const auto tokenizer = loaded();
  const TextRange all[] = {{0, 100}};
  EXPECT_THAT(tokenizer->encode("hello<tool><|im_end|>", all), ElementsAre(kHello, kTool, kEnd));
  EXPECT_EQ(tokenizer->bos(), std::nullopt);
  EXPECT_FALSE(tokenizer->add_bos());
  EXPECT_THAT(tokenizer->end_ids(), ElementsAre(kEnd));
}

TEST_F(LoadTokenizer, ReadsMergesAsPairs) {
  model()["merges"] = json::parse(R"([["h", "e"], ["l", "l"], ["he", "ll"]])");
  EXPECT_THAT(loaded()->encode("hell"), ElementsAre(kHell));
}

TEST_F(LoadTokenizer, ReadsTheConfiguration) {
  write("tokenizer_config.json",
        R"({"bos_token": "<|im_start|>", "eos_token": {"content": "<tool>"}, "add_bos_token": true,
            "added_tokens_decoder": {"264": {"content": "<late>", "special": true}}})");
  const auto tokenizer = loaded();
  EXPECT_EQ(tokenizer->bos(), kStart);
  EXPECT_TRUE(tokenizer->add_bos());
  EXPECT_THAT(tokenizer->end_ids(), ElementsAre(kEnd, kTool));
  EXPECT_TRUE(tokenizer->is_special(kTool));
  EXPECT_EQ(tokenizer->find("<late>"), 264);
  EXPECT_EQ(tokenizer->vocab_size(), 265);
}

TEST_F(LoadTokenizer, ReadsTheSpecialTokensMap) {
  write("special_tokens_map.json", R"({"bos_token": {"content": "<|im_start|>"}, "eos_token": "<tool>"})");
  const auto tokenizer = loaded();
  EXPECT_EQ(tokenizer->bos(), kStart);
  EXPECT_FALSE(tokenizer->add_bos());
  EXPECT_THAT(tokenizer->end_ids(), ElementsAre(kEnd, kTool));
}

TEST_F(LoadTokenizer, ThePostProcessorSaysThatBosIsAdded) {
  document_["post_processor"] = json::parse(
      R"({"type": "Sequence", "processors": [{"type": "ByteLevel"}, {"type": "TemplateProcessing",
          "single": [{"SpecialToken": {"id": "<|im_start|>"}}, {"Sequence": {"id": "A"}}]}]})");
  EXPECT_EQ(loaded()->bos(), kStart);
  EXPECT_TRUE(loaded()->add_bos());
  write("tokenizer_config.json", R"({"add_bos_token": false})");
  EXPECT_FALSE(loaded()->add_bos());
}

TEST_F(LoadTokenizer, BytesWithoutATokenBecomeUnkOrVanish) {
  for (const char* byte : {"x", "y"}) model()["vocab"].as_object().erase(byte);
  EXPECT_THAT(loaded()->encode("axyb"), ElementsAre('a', 'b'));
  model()["unk_token"] = "z";
  EXPECT_THAT(loaded()->encode("axyb"), ElementsAre('a', 'z', 'z', 'b'));
  model()["fuse_unk"] = true;
  EXPECT_THAT(loaded()->encode("axyb"), ElementsAre('a', 'z', 'b'));
}

TEST_F(LoadTokenizer, NamesThePlaceAndWhatIsKnown) {
  const json::object whole = document_;
  const auto with = [&](std::string_view pointer, json::value value) {
    document_ = whole;
    json::value holder = document_;
    boost::json::error_code code;
    *holder.find_pointer(pointer, code) = std::move(value);
    EXPECT_FALSE(code) << pointer;
    document_ = holder.as_object();
    return error();
  };
  EXPECT_THAT(with("/model/type", "Unigram"), testing::AllOf(HasSubstr("Unigram"), HasSubstr("BPE")));
  EXPECT_THAT(with("/model/vocab", {{"a", "b"}}), HasSubstr("model.vocab.a: got a string"));
  EXPECT_THAT(with("/model/vocab", {{"a", 1e9}}), HasSubstr("got a number"));
  EXPECT_THAT(with("/model/vocab", {{"a", 1000000000}}), HasSubstr("1000000000"));
  EXPECT_THAT(with("/model/vocab", {{"a", -1}}), HasSubstr("-1"));
  EXPECT_THAT(with("/model/vocab", {{"a", 1}, {"b", 1}}), HasSubstr("id 1"));
  EXPECT_THAT(with("/model/vocab", json::object()), HasSubstr("empty"));
  EXPECT_THAT(with("/model/merges", {"h e", "h"}), HasSubstr("model.merges[1]"));
  EXPECT_THAT(with("/model/merges", {{"h", "e", "l"}}), HasSubstr("model.merges[0]"));
  EXPECT_THAT(with("/model/merges", {"h x"}), HasSubstr("\"hx\""));
  EXPECT_THAT(with("/added_tokens/0/id", 300000), HasSubstr("added_tokens[0]"));
  EXPECT_THAT(with("/added_tokens/0/content", nullptr), HasSubstr("added_tokens[0].content"));
  EXPECT_THAT(with("/added_tokens/0/id", 5), HasSubstr("id 5"));
  EXPECT_THAT(with("/added_tokens/0", 5), HasSubstr("added_tokens[0]: got an integer"));
  EXPECT_THAT(with("/pre_tokenizer", nullptr), HasSubstr("pre_tokenizer"));
  EXPECT_THAT(with("/pre_tokenizer/type", "Metaspace"),
              testing::AllOf(HasSubstr("Metaspace"), HasSubstr("ByteLevel Digits Sequence Split")));
  EXPECT_THAT(with("/pre_tokenizer", json::parse(R"({"type": "Sequence", "pretokenizers": [
      {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"}]})")),
              HasSubstr("pre_tokenizer.pretokenizers[0].pattern"));
  EXPECT_THAT(with("/pre_tokenizer", json::parse(R"({"type": "Split", "pattern": {"String": "x"},
      "behavior": "Exploded"})")),
              testing::AllOf(HasSubstr("Exploded"), HasSubstr("Isolated")));
  EXPECT_THAT(with("/pre_tokenizer", {{"type", "Digits"}}), HasSubstr("ByteLevel"));
}

TEST_F(LoadTokenizer, RefusesSettingsThatItDoesNotBuild) {
  const json::object whole = document_;
  const std::pair<const char*, json::value> settings[] = {
      {"dropout", 0.1}, {"byte_fallback", true}, {"end_of_word_suffix", "</w>"}, {"unk_token", "<nothing>"}};
  for (const auto& [key, value] : settings) {
    document_ = whole;
    model()[key] = value;
    EXPECT_THAT(error(), HasSubstr(std::string("model.") + key));
  }
  document_ = whole;
  document_["normalizer"] = {{"type", "Lowercase"}};
  EXPECT_THAT(error(), testing::AllOf(HasSubstr("Lowercase"), HasSubstr("NFC")));
}

TEST_F(LoadTokenizer, NamesBrokenAndMissingFiles) {
  EXPECT_EQ(load_tokenizer(folder_).error().code, ErrorCode::kNotFound);
  write("tokenizer.json", R"({"model": {"type")");
  EXPECT_THAT(load_tokenizer(folder_).error().message, HasSubstr("tokenizer.json: not JSON at byte 17"));
  write("tokenizer.json", "{} {}");
  EXPECT_THAT(load_tokenizer(folder_).error().message, HasSubstr("not JSON at byte 3"));
  write("tokenizer.json", std::string(1000, '['));
  EXPECT_EQ(load_tokenizer(folder_).error().code, ErrorCode::kModel);
  write("tokenizer.json", "[]");
  EXPECT_THAT(load_tokenizer(folder_).error().message, HasSubstr("got a list, expected an object"));
  ASSERT_TRUE(load().ok());
  write("tokenizer_config.json", R"({"eos_token": 5})");
  EXPECT_THAT(load().error().message, HasSubstr("tokenizer_config.json: eos_token: got an integer"));
}

}  // namespace
}  // namespace deepinfer
