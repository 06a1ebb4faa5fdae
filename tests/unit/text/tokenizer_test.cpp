#include "text/tokenizer.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <functional>
#include <random>

#include "small_tokenizer.h"
#include "text/bpe.h"
#include "text/utf8.h"

namespace deepinfer {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;
using namespace test;

TEST(Tokenizer, MergesByRank) {
  const auto tokenizer = small_tokenizer();
  EXPECT_THAT(tokenizer->encode("hello hello"), ElementsAre(kHello, kSpaceHello));
  EXPECT_THAT(tokenizer->encode("hellhe"), ElementsAre(kHell, kHe));
  EXPECT_THAT(tokenizer->encode("lll"), ElementsAre(kLl, 'l'));
  EXPECT_TRUE(tokenizer->encode("").empty());
}

TEST(Tokenizer, KnowsItsTokens) {
  const auto tokenizer = small_tokenizer();
  EXPECT_EQ(tokenizer->vocab_size(), kSmallVocabulary);
  EXPECT_EQ(tokenizer->bytes(kSpaceHello), " hello");
  EXPECT_EQ(tokenizer->bytes(kEnd), "<|im_end|>");
  EXPECT_EQ(tokenizer->bytes(0xE9), "\xE9");
  EXPECT_EQ(tokenizer->bytes(-1), "");
  EXPECT_EQ(tokenizer->bytes(kSmallVocabulary), "");
  EXPECT_TRUE(tokenizer->is_special(kEnd));
  EXPECT_FALSE(tokenizer->is_special(kTool) || tokenizer->is_special(kHello) || tokenizer->is_special(-1));
  EXPECT_EQ(tokenizer->find(" hello"), kSpaceHello);
  EXPECT_EQ(tokenizer->find("<|im_end|>"), kEnd);
  EXPECT_EQ(tokenizer->find("nothing"), std::nullopt);
  EXPECT_THAT(tokenizer->end_ids(), ElementsAre(kEnd));
  EXPECT_EQ(tokenizer->bos(), kStart);
  EXPECT_FALSE(tokenizer->add_bos());
}

TEST(Tokenizer, SpecialTokensOnlyInTrustedRanges) {
  const auto tokenizer = small_tokenizer();
  const std::string text = "<|im_start|>he<|im_end|><|im_end|>";
  EXPECT_THAT(tokenizer->encode(text), Not(Contains(testing::AnyOf(kStart, kEnd))));
  EXPECT_EQ(text_of(*tokenizer, tokenizer->encode(text)), text);
  const TextRange all[] = {{0, text.size()}};
  EXPECT_THAT(tokenizer->encode(text, all), ElementsAre(kStart, kHe, kEnd, kEnd));
  // A user's text between the ranges looks like the end of the turn; only the template's own counts.
  const TextRange around[] = {{24, 34}, {0, 12}};
  const auto ids = tokenizer->encode(text, around);
  EXPECT_EQ(ids.front(), kStart);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), kEnd), 1);
  EXPECT_EQ(ids.back(), kEnd);
  // Half in, half out.
  const TextRange half[] = {{0, 5}, {6, 12}, {16, 34}};
  EXPECT_THAT(tokenizer->encode(text, half), Not(Contains(kStart)));
  // Ranges that touch are one; ranges beyond the text or empty do no harm.
  const TextRange touching[] = {{0, 5}, {5, 12}, {8, 8}, {100, 200}, {30, 7}};
  EXPECT_EQ(tokenizer->encode(text, touching).front(), kStart);
}

TEST(Tokenizer, UserDefinedTokensCountEverywhere) {
  const auto tokenizer = small_tokenizer();
  EXPECT_THAT(tokenizer->encode("he<tool>he"), ElementsAre(kHe, kTool, kHe));
}

TEST(Tokenizer, ReplacesInvalidUtf8) {
  const auto tokenizer = small_tokenizer();
  EXPECT_EQ(text_of(*tokenizer, tokenizer->encode("he\xFFhe\xE2\x82")), "he\xEF\xBF\xBDhe\xEF\xBF\xBD");
}

TEST(Tokenizer, GivesTheTextBack) {
  constexpr uint32_t kSeed = 3;
  std::mt19937 random(kSeed);
  for (const char* pre : {"gpt2", "llama-bpe", "smollm", "command-r"}) {
    const auto tokenizer = small_tokenizer(pre);
    for (int round = 0; round < 2000; ++round) {
      std::string text;
      for (uint32_t length = random() % 40; length > 0; --length) {
        // Without combining marks, which command-r composes.
        const char32_t code = random() % 3 ? random() % 128 : 0x3041 + random() % 0x6000;
        append_utf8(text, code == 0x3099 || code == 0x309A ? U'x' : code);
      }
      const auto ids = tokenizer->encode(text);
      ASSERT_EQ(text_of(*tokenizer, ids), text) << "seed " << kSeed << " pre " << pre << " round " << round;
    }
  }
}

TEST(Tokenizer, FamiliesDiffer) {
  TokenizerData data = small_data("llama-bpe");
  data.tokens.emplace_back("whole");
  data.kinds.push_back(TokenizerData::Kind::kNormal);
  const auto llama = make_tokenizer(data).value();
  EXPECT_TRUE(llama->add_bos());
  EXPECT_THAT(llama->encode("whole"), ElementsAre(kSmallVocabulary));  // no merge leads there
  data.add_bos = false;
  EXPECT_FALSE(make_tokenizer(data).value()->add_bos());
  data.pre = "gpt2";
  EXPECT_EQ(make_tokenizer(data).value()->encode("whole").size(), 5u);
  EXPECT_THAT(small_tokenizer("qwen2")->encode("e\xCC\x81"), ElementsAre(0xC3, 0xA9));
}

TEST(Tokenizer, NamesWhatItDoesNotKnow) {
  const auto message = [](const std::function<void(TokenizerData&)>& change) {
    TokenizerData data = small_data();
    change(data);
    const auto result = make_tokenizer(std::move(data));
    EXPECT_FALSE(result.ok());
    if (result.ok()) return std::string();
    EXPECT_EQ(result.error().code, ErrorCode::kModel);
    return result.error().message;
  };
  EXPECT_THAT(message([](auto& d) { d.pre = "klingon"; }),
              testing::AllOf(HasSubstr("klingon"), HasSubstr("smollm")));
  EXPECT_THAT(message([](auto& d) { d.pre = ""; }), HasSubstr("known are"));
  EXPECT_THAT(message([](auto& d) { d.model = "bert"; }),
              testing::AllOf(HasSubstr("bert"), HasSubstr("gpt2")));
  EXPECT_THAT(message([](auto& d) { d.merges.emplace_back("x y"); }), HasSubstr("\"xy\""));
  EXPECT_THAT(message([](auto& d) { d.merges.emplace_back("xy"); }), HasSubstr("merge 5"));
  EXPECT_THAT(message([](auto& d) { d.merges.emplace_back("x "); }), HasSubstr("merge 5"));
  EXPECT_THAT(message([](auto& d) { d.merges.emplace_back("\xFF x"); }), HasSubstr("alphabet"));
  EXPECT_THAT(message([](auto& d) { d.kinds.pop_back(); }), HasSubstr("263 token types for 264"));
  EXPECT_THAT(message([](auto& d) { d.tokens.clear(); }), HasSubstr("0 tokens"));
  EXPECT_THAT(message([](auto& d) { d.eos = 264; }), HasSubstr("264"));
  EXPECT_THAT(message([](auto& d) { d.bos = -1; }), HasSubstr("-1"));
  EXPECT_THAT(message([](auto& d) { d.eog = {1, 999}; }), HasSubstr("999"));
}

TEST(Tokenizer, EndsOfGeneration) {
  TokenizerData data = small_data();
  const auto add = [&data](const char* name, TokenizerData::Kind kind) {
    data.tokens.emplace_back(name);
    data.kinds.push_back(kind);
    return static_cast<int32_t>(data.tokens.size()) - 1;
  };
  const int32_t eot = add("<|eot_id|>", TokenizerData::Kind::kControl);
  const int32_t text_end = add("<|endoftext|>", TokenizerData::Kind::kUserDefined);
  add("</s>", TokenizerData::Kind::kNormal);  // an ordinary token of that spelling ends nothing
  data.eos = text_end;
  data.eog = {kHello};
  const auto tokenizer = make_tokenizer(data).value();
  EXPECT_THAT(tokenizer->end_ids(), ElementsAre(kHello, kEnd, eot, text_end));
  EXPECT_TRUE(tokenizer->is_special(text_end) && tokenizer->is_special(kHello));
}

TEST(Bpe, LongAndShortPiecesMergeAlike) {
  // A vocabulary over {a, b, c} with every string up to length 4, and merges in a random order.
  constexpr uint32_t kSeed = 9;
  std::mt19937 random(kSeed);
  std::vector<std::string> tokens = {"a", "b", "c"};
  std::vector<BpeMerge> merges;
  for (size_t i = 0; i < tokens.size() && tokens[i].size() < 4; ++i)
    for (const char c : {'a', 'b', 'c'}) tokens.push_back(tokens[i] + c);
  for (const std::string& token : tokens)
    for (size_t cut = 1; cut < token.size(); ++cut)
      merges.push_back({token.substr(0, cut), token.substr(cut)});
  std::shuffle(merges.begin(), merges.end(), random);
  std::vector<int32_t> ids(tokens.size());
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
  const Bpe bpe = Bpe::make(tokens, ids, merges, {}).value();
  // The oracle: look for the lowest rank, then the leftmost, until there is none.
  const auto slow = [&](const std::string& text) {
    std::vector<std::string> parts;
    for (const char c : text) parts.emplace_back(1, c);
    for (size_t rank = 0; rank < merges.size();) {
      size_t i = 0;
      while (i + 1 < parts.size() && !(parts[i] == merges[rank].left && parts[i + 1] == merges[rank].right))
        ++i;
      if (i + 1 >= parts.size()) {
        ++rank;
        continue;
      }
      parts[i] += parts[i + 1];
      parts.erase(parts.begin() + static_cast<ptrdiff_t>(i) + 1);
      rank = 0;
    }
    return parts;
  };
  Bpe::Scratch scratch;
  for (int round = 0; round < 300; ++round) {
    std::string text;
    for (uint32_t length = 1 + random() % 90; length > 0; --length)
      text += static_cast<char>('a' + random() % 3);
    std::vector<int32_t> out;
    bpe.encode(text, out, scratch);
    std::vector<std::string> got;
    got.reserve(out.size());
    for (const int32_t id : out) got.push_back(tokens[static_cast<size_t>(id)]);
    ASSERT_EQ(got, slow(text)) << "seed " << kSeed << " round " << round;
  }
}

TEST(Tokenizer, LongTextsStayLinear) {
  // Quadratic work on these would take hours, not milliseconds: no clock is needed to fail.
  const auto tokenizer = small_tokenizer("qwen2");
  const size_t size = 1 << 20;
  std::string marks = "x";
  while (marks.size() < size) marks += "\xCC\x81\xCC\xA7";
  for (const std::string& text : {std::string(size, 'l'), std::string(size, ' '), std::string(size, '\n'),
                                  std::string(size, '<'), marks}) {
    const TextRange all[] = {{0, text.size()}};
    EXPECT_FALSE(tokenizer->encode(text, all).empty());
  }
}

}  // namespace
}  // namespace deepinfer
