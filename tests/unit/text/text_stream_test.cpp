#include "text/text_stream.h"

#include <gmock/gmock.h>

#include <random>

#include "small_tokenizer.h"
#include "text/utf8.h"

namespace deepinfer {
namespace {

using namespace test;

class TextStreamTest : public testing::Test {
 protected:
  struct Sum {
    std::string text, stop;
    int tokens = 0;
    bool stopped = false;
  };

  // A token a byte.
  static std::vector<int32_t> ids_of(std::string_view text) {
    std::vector<int32_t> ids;
    for (const char c : text) ids.push_back(static_cast<uint8_t>(c));
    return ids;
  }

  // Longer tokens where the text has them and the dice say so, and special tokens in between.
  static std::vector<int32_t> split_at_random(std::string_view text, std::mt19937& random) {
    constexpr std::pair<std::string_view, int32_t> kLonger[] = {
        {"hello", kHello}, {"hell", kHell}, {"he", kHe}, {"ll", kLl}};
    std::vector<int32_t> ids;
    while (!text.empty()) {
      std::pair<std::string_view, int32_t> next{text.substr(0, 1), static_cast<uint8_t>(text[0])};
      for (const auto& longer : kLonger)
        if (text.starts_with(longer.first) && random() % 2) next = longer;
      ids.push_back(next.second);
      if (random() % 4 == 0) ids.push_back(kEnd);
      text.remove_prefix(next.first.size());
    }
    return ids;
  }

  Sum run(const std::vector<int32_t>& ids, const TextStreamOptions& options) {
    TextStream stream(*tokenizer_, options);
    Sum sum;
    const auto add = [&sum](const TextStream::Delta& delta) {
      EXPECT_TRUE(is_valid_utf8(delta.text)) << "a part of a character was given out";
      sum.text += delta.text;
      sum.tokens += delta.tokens;
      sum.stopped |= delta.stopped;
      sum.stop += delta.stop;
    };
    for (const int32_t id : ids) {
      add(stream.push(id));
      if (sum.stopped) return sum;
    }
    add(stream.finish());
    return sum;
  }

  const std::unique_ptr<Tokenizer> tokenizer_ = small_tokenizer();
};

TEST_F(TextStreamTest, GivesTextAtOnceWithoutStopStrings) {
  TextStream stream(*tokenizer_, {});
  auto delta = stream.push(kHello);
  EXPECT_EQ(delta.text, "hello");
  EXPECT_EQ(delta.tokens, 1);
  delta = stream.finish();
  EXPECT_EQ(delta.text, "");
  EXPECT_EQ(delta.tokens, 0);
}

TEST_F(TextStreamTest, WaitsForTheWholeCharacter) {
  TextStream stream(*tokenizer_, {});
  for (const int32_t byte : {0xF0, 0x9F, 0x98}) {
    const auto delta = stream.push(byte);
    EXPECT_EQ(delta.text, "");
    EXPECT_EQ(delta.tokens, 0);
  }
  const auto delta = stream.push(0x80);
  EXPECT_EQ(delta.text, "\xF0\x9F\x98\x80");
  EXPECT_EQ(delta.tokens, 4);
}

TEST_F(TextStreamTest, ReplacesWhatCannotBecomeACharacter) {
  TextStream stream(*tokenizer_, {});
  EXPECT_EQ(stream.push(0xE2).text, "");
  const auto delta = stream.push('x');
  EXPECT_EQ(delta.text, "\xEF\xBF\xBDx");
  EXPECT_EQ(delta.tokens, 2);
  EXPECT_EQ(stream.push(0x80).text, "\xEF\xBF\xBD");
  stream.push(0xE2);
  stream.push(0x82);
  const auto rest = stream.finish();
  EXPECT_EQ(rest.text, "\xEF\xBF\xBD");
  EXPECT_EQ(rest.tokens, 2);
}

TEST_F(TextStreamTest, HoldsBackOnlyWhatCouldBecomeAStopString) {
  TextStream stream(*tokenizer_, {.stop = {"abac"}});
  EXPECT_EQ(stream.push('x').text, "x");
  EXPECT_EQ(stream.push('a').text, "");
  EXPECT_EQ(stream.push('b').text, "");
  EXPECT_EQ(stream.push('a').text, "");
  const auto delta = stream.push('b');  // "aba" is over, "ab" may still begin
  EXPECT_EQ(delta.text, "ab");
  EXPECT_EQ(delta.tokens, 2);
  EXPECT_EQ(stream.push('a').text, "");
  const auto stop = stream.push('c');
  EXPECT_EQ(stop.text, "");
  EXPECT_TRUE(stop.stopped);
  EXPECT_EQ(stop.stop, "abac");
  EXPECT_EQ(stop.tokens, 4);
  EXPECT_EQ(stream.push('z').text + stream.finish().text, "");
}

TEST_F(TextStreamTest, AHalfStopStringIsTextAfterAll) {
  const Sum sum = run(ids_of("one sto"), {.stop = {"stop"}});
  EXPECT_EQ(sum.text, "one sto");
  EXPECT_EQ(sum.tokens, 7);
  EXPECT_FALSE(sum.stopped);
}

TEST_F(TextStreamTest, TheFirstCompleteStopStringWins) {
  EXPECT_EQ(run(ids_of("x12345"), {.stop = {"12345", "34"}}).stop, "34");
  EXPECT_EQ(run(ids_of("x12345"), {.stop = {"34", "234"}}).text, "x1");
  EXPECT_EQ(run({kHello}, {.stop = {"o", "ell"}}).text, "h");
  EXPECT_EQ(run({kHello}, {.stop = {"lo"}, .include_stop = true}).text, "hello");
  EXPECT_EQ(run({kHello}, {.stop = {"ell"}, .include_stop = true}).text, "hell");
}

TEST_F(TextStreamTest, SpecialTokensAreLeftOutOrNamed) {
  EXPECT_EQ(run({kHe, kEnd, kLl}, {}).text, "hell");
  EXPECT_EQ(run({kHe, kEnd, kLl}, {}).tokens, 3);
  EXPECT_EQ(run({kHe, kEnd, kLl}, {.skip_special_tokens = false}).text, "he<|im_end|>ll");
  EXPECT_EQ(run({kHe, kTool}, {}).text, "he<tool>");
  EXPECT_EQ(run({0xC3, kEnd, 0xA9}, {}).text, "\xC3\xA9");
  EXPECT_EQ(run({'s', kEnd, 't', 'o', 'p'}, {.stop = {"stop"}}).text, "");
}

// Whatever the tokens are: the same text as all bytes at once, cut at the first stop string.
TEST_F(TextStreamTest, EqualsTheWholeText) {
  constexpr uint32_t kSeed = 21;
  std::mt19937 random(kSeed);
  const std::string_view alphabet[] = {"a",    "b",        "ab",   "aba",      "hello", "\xE2\x82\xAC",
                                       "\xE2", "\x82\xAC", "\xF0", "\x9F\x98", "\x80",  "\xFF",
                                       "he",   "ll"};
  const std::vector<std::vector<std::string>> stops = {{},
                                                       {"abab"},
                                                       {"aabaa", "ba"},
                                                       {"\xE2\x82\xAC"},
                                                       {"ello", "hellob", "a\xE2\x82\xAC"},
                                                       {"\xEF\xBF\xBD\xEF\xBF\xBD"}};
  for (int round = 0; round < 20000; ++round) {
    TextStreamOptions options{.stop = stops[random() % stops.size()], .include_stop = random() % 2 == 0};
    std::string bytes;
    for (uint32_t parts = random() % 12; parts > 0; --parts)
      bytes += alphabet[random() % std::size(alphabet)];
    std::string expected = sanitize_utf8(bytes), stop;
    size_t best_end = std::string::npos;
    for (const std::string& candidate : options.stop) {
      const size_t at = expected.find(candidate);
      if (at == std::string::npos) continue;
      const size_t end = at + candidate.size();
      if (end < best_end || (end == best_end && candidate.size() > stop.size())) {
        best_end = end;
        stop = candidate;
      }
    }
    if (!stop.empty()) expected.resize(options.include_stop ? best_end : best_end - stop.size());
    for (const auto& ids : {ids_of(bytes), split_at_random(bytes, random)}) {
      const Sum sum = run(ids, options);
      ASSERT_EQ(sum.text, expected) << "seed " << kSeed << " round " << round;
      ASSERT_EQ(sum.stop, stop);
      ASSERT_EQ(sum.stopped, !stop.empty());
      if (!sum.stopped) ASSERT_EQ(sum.tokens, static_cast<int>(ids.size()));
    }
  }
}

}  // namespace
}  // namespace deepinfer
