#include "text/scanners.h"

#include <gmock/gmock.h>

#include <random>

#include "text/regex_split.h"
#include "text/utf8.h"

namespace deepinfer {
namespace {

using testing::ElementsAre;

std::vector<std::string> pieces(ScanPattern pattern, std::string_view text) {
  std::vector<std::string_view> out;
  scan(pattern, text, out);
  return {out.begin(), out.end()};
}

TEST(Scanners, Gpt2) {
  EXPECT_THAT(pieces(ScanPattern::kGpt2, "I'll say DON'T  12ab!?\n\n x "),
              ElementsAre("I", "'ll", " say", " DON", "'", "T", " ", " 12", "ab", "!?", "\n\n", " x", " "));
  EXPECT_THAT(pieces(ScanPattern::kGpt2, "\xC3\xA9\xC2\xA0\xC2\xA0z"),
              ElementsAre("\xC3\xA9", "\xC2\xA0", "\xC2\xA0", "z"));
  EXPECT_TRUE(pieces(ScanPattern::kGpt2, "").empty());
}

TEST(Scanners, Llama3AndQwen2) {
  EXPECT_THAT(pieces(ScanPattern::kLlama3, "DON'T 1234(x)\r\n\n  \n y'\xC5\xBF"),
              ElementsAre("DON", "'T", " ", "123", "4", "(x", ")\r\n\n", "  \n", " y", "'\xC5\xBF"));
  EXPECT_THAT(pieces(ScanPattern::kQwen2, "12\tab   c"), ElementsAre("1", "2", "\tab", "  ", " c"));
}

TEST(Scanners, Digits) {
  EXPECT_THAT(pieces(ScanPattern::kDigits, "ab12 c"), ElementsAre("ab", "1", "2", " c"));
  EXPECT_THAT(pieces(ScanPattern::kDigitGroups, "ab12 c"), ElementsAre("ab", "12", " c"));
}

// The regular expressions themselves, by another engine, over characters that both know.
TEST(Scanners, AgreeWithTheirRegularExpressions) {
  const std::string llama3 =
      R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  std::string qwen2 = llama3;
  qwen2.erase(qwen2.find("{1,3}"), 5);
  const std::pair<ScanPattern, std::string> patterns[] = {
      {ScanPattern::kGpt2, R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)"},
      {ScanPattern::kLlama3, llama3},
      {ScanPattern::kQwen2, qwen2},
  };
  const char32_t alphabet[] = {' ',  ' ',  '\n', '\r', '\t',  '\'',  '\'',   's',    'S',     'l',    'L',
                               'r',  'e',  'v',  'm',  'd',   'T',   'x',    '1',    '2',     '.',    '-',
                               0xA0, 0xE9, 0xB2, 0x85, 0x17F, 0x301, 0x3000, 0x4E2D, 0x1F600, 0x200D, 0x180E};
  constexpr uint32_t kSeed = 5;
  std::mt19937 random(kSeed);
  for (const auto& [pattern, regex] : patterns) {
    ASSERT_EQ(known_regex(regex), pattern);
    const SplitRegex compiled = SplitRegex::compile(regex).value();
    for (int round = 0; round < 5000; ++round) {
      std::string text;
      for (uint32_t length = random() % 24; length > 0; --length)
        append_utf8(text, alphabet[random() % std::size(alphabet)]);
      std::vector<TextMatch> matches;
      compiled.find_all(text, matches);
      std::vector<std::string> expected;
      expected.reserve(matches.size());
      for (const TextMatch& m : matches) expected.push_back(text.substr(m.begin, m.end - m.begin));
      ASSERT_EQ(pieces(pattern, text), expected) << "seed " << kSeed << " round " << round << ": " << text;
    }
  }
}

TEST(SplitRegex, RefusesWhatItWouldGuess) {
  for (const char* pattern : {"[a&&b]", "[[a]b]", "\\h", "[\\W]", "\\", "(", "[]a]", "\\pL", "[[:alpha"})
    EXPECT_EQ(SplitRegex::compile(pattern).error().code, ErrorCode::kModel) << pattern;
}

TEST(SplitRegex, GoesOnAfterAnEmptyMatch) {
  std::vector<TextMatch> matches;
  SplitRegex::compile("x*").value().find_all("axx\xC3\xA9x", matches);
  ASSERT_EQ(matches.size(), 2u);
  EXPECT_EQ(matches[0].begin, 1u);
  EXPECT_EQ(matches[1].end, 6u);
}

}  // namespace
}  // namespace deepinfer
