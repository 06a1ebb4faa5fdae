// DRY's penalties against the plain quadratic computation.
#include "engine/dry.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <random>
#include <sstream>

#include "oracle_lists.h"

namespace deepinfer::test {
namespace {

using Tokens = std::vector<int32_t>;

std::vector<LogitBias> dry(const SamplingParams& params, const Tokens& tokens, int vocab = 64) {
  static DryPenalties penalties;  // keeps its memory: what one text left must not show in the next
  std::vector<LogitBias> out = {{1, 2.0f}};
  DryHistory history;
  penalties.compute(params, DryBreakers(params.dry_breakers, vocab), tokens, history, out);
  return out;
}

void expect_equal(const std::vector<LogitBias>& got, const std::vector<LogitBias>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_EQ(got[i].token, want[i].token);
    EXPECT_FLOAT_EQ(got[i].bias, want[i].bias);
    EXPECT_TRUE(std::isfinite(got[i].bias));
  }
}

TEST(Dry, TheLongerTheRepetitionTheMoreItCosts) {
  SamplingParams p{.dry_multiplier = 0.5f, .dry_base = 2.0f, .dry_allowed_length = 2};
  // "1 2 3 4 5 ... 2 3 4": 5 would make it longer, by 3 tokens that stand there twice.
  expect_equal(dry(p, {1, 2, 3, 4, 5, 9, 2, 3, 4}), {{5, -1.0f}});
  // 7 follows "3 4" too, after which 5 came at the longer repetition.
  expect_equal(dry(p, {3, 4, 7, 1, 2, 3, 4, 5, 9, 2, 3, 4}), {{5, -1.0f}, {7, -0.5f}});
  expect_equal(dry(p, {1, 2, 3, 4, 5, 6}), {});
  p.dry_allowed_length = 3;
  expect_equal(dry(p, {3, 4, 7, 1, 2, 3, 4, 5, 9, 2, 3, 4}), {{5, -0.5f}});
  p.dry_penalty_last_n = 6;  // the first "2 3 4 5" is out of sight
  expect_equal(dry(p, {3, 4, 7, 1, 2, 3, 4, 5, 9, 2, 3, 4}), {});
  p.dry_penalty_last_n = 0;
  expect_equal(dry(p, {1, 1, 1, 1, 1}), {});
}

TEST(Dry, BreakersEndRepetitionsAndCostNothing) {
  SamplingParams p{.dry_multiplier = 1.0f, .dry_base = 2.0f, .dry_allowed_length = 1, .dry_breakers = {{9}}};
  expect_equal(dry(p, {1, 9, 2, 3, 1, 9, 2}), {{3, -1.0f}});  // not 3 tokens long
  expect_equal(dry(p, {4, 9, 5, 4}), {});                     // 9 is a breaker itself
  p.dry_breakers = {{9, 2}, {7}};
  expect_equal(dry(p, {1, 9, 2, 3, 1, 9, 2}), {});  // nothing stands behind it
  expect_equal(dry(p, {1, 9, 4, 3, 1, 9, 4}), {{3, -4.0f}});
}

TEST(Dry, RandomTextsEqualThePlainComputation) {
  constexpr uint64_t kSeed = 99;
  RecordProperty("seed", kSeed);
  std::mt19937_64 random(kSeed);
  const auto pick = [&](int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); };
  int penalized = 0;
  for (int round = 0; round < 3000; ++round) {
    const int vocab = pick(1, 6);
    SamplingParams p{.dry_multiplier = static_cast<float>(pick(1, 100)) / 10,
                     .dry_base = 1 + static_cast<float>(pick(0, 90)) / 10,
                     .dry_allowed_length = pick(1, 5),
                     .dry_penalty_last_n = pick(0, 1) == 0 ? -1 : pick(0, 60)};
    for (int i = pick(0, 3); i > 0; --i) {
      auto& breaker = p.dry_breakers.emplace_back(pick(1, 3));
      for (int32_t& id : breaker) id = pick(0, vocab - 1);
    }
    Tokens tokens(pick(0, 80));
    for (int32_t& id : tokens)
      id = pick(0, 9) == 0 ? pick(0, vocab - 1) : static_cast<int32_t>(&id - tokens.data()) % vocab;
    const std::vector<LogitBias> got = dry(p, tokens, vocab);
    SCOPED_TRACE(round);
    expect_equal(got, plain_dry(p, tokens));
    penalized += !got.empty();
    if (HasFailure()) return;
  }
  EXPECT_GT(penalized, 500) << "texts without a repetition test nothing";
}

// A text of any length that tokens are added to, mostly one by one: what is kept must not show.
TEST(Dry, GrowingTextsEqualThePlainComputation) {
  constexpr uint64_t kSeed = 1234;
  RecordProperty("seed", kSeed);
  std::mt19937_64 random(kSeed);
  const auto pick = [&](int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); };
  DryPenalties penalties;
  int penalized = 0, long_matches = 0;
  for (int round = 0; round < 400; ++round) {
    const int vocab = pick(1, 5) == 1 ? 1 : pick(2, 12);
    SamplingParams p{.dry_multiplier = 1,
                     .dry_base = 1.1f,
                     .dry_allowed_length = pick(1, 6),
                     .dry_penalty_last_n = pick(0, 1) == 0 ? -1 : pick(1, 90)};
    for (int i = pick(0, 3); i > 0; --i) {
      auto& breaker = p.dry_breakers.emplace_back(pick(1, 4));
      for (int32_t& id : breaker) id = pick(0, vocab - 1);
    }
    const DryBreakers breakers(p.dry_breakers, vocab);
    DryHistory history;
    Tokens tokens;
    const int period = pick(1, 30), noise = pick(2, 40);
    while (tokens.size() < 250) {
      for (int more = pick(0, 9) == 0 ? pick(0, 40) : 1; more > 0; --more) {
        const bool repeats = tokens.size() >= static_cast<size_t>(period) && pick(0, noise) != 0;
        tokens.push_back(repeats ? tokens[tokens.size() - static_cast<size_t>(period)] : pick(0, vocab - 1));
      }
      std::vector<LogitBias> got = {{1, 2.0f}};
      penalties.compute(p, breakers, tokens, history, got);
      SCOPED_TRACE(testing::Message() << "round " << round << ", " << tokens.size() << " tokens");
      expect_equal(got, plain_dry(p, tokens));
      penalized += !got.empty();
      for (const LogitBias& b : got) long_matches += b.bias < -5;  // 17 tokens and more
      if (HasFailure()) return;
    }
  }
  EXPECT_GT(penalized, 10000);
  EXPECT_GT(long_matches, 1000);
}

// Of a long text only those places are looked at that end as it does.
TEST(Dry, LooksAtEarlierOccurrencesAlone) {
  std::mt19937_64 random(7);
  std::uniform_int_distribution<int> id(0, 255);
  Tokens tokens;
  DryHistory history;
  int64_t most = 0, seen = 0;
  for (int i = 0; i < 30000; ++i) {
    tokens.push_back(id(random));
    history.grow(tokens, 2, {});
    int64_t places = 0;
    for (int64_t place = history.last(); place >= 0; place = history.before(place)) {
      ASSERT_LT(place, i);
      ++places;
    }
    most = std::max(most, places);
    seen += places;
  }
  EXPECT_GT(seen, 0);
  EXPECT_LT(most, 30) << "pairs of 256 tokens come once in 65536, others that share a hash a little oftener";
}

TEST(Dry, ATextDoesNotShrink) {
  DryHistory history;
  history.grow(Tokens{1, 2, 3}, 2, {});
  EXPECT_THROW(history.grow(Tokens{1, 2}, 2, {}), std::exception);
}

// tests/golden/llama_samplers.txt, made by tools/golden/llama_samplers.py.
TEST(Dry, IsThatOfLlamaCpp) {
  std::ifstream in(std::string(DI_SOURCE_DIR) + "/tests/golden/llama_samplers.txt");
  std::string lines[3];
  std::getline(in, lines[0]);  // the comment
  int cases = 0, penalized = 0;
  while (std::getline(in, lines[0]) && std::getline(in, lines[1]) && std::getline(in, lines[2])) {
    if (!lines[0].starts_with("dry ")) continue;
    std::istringstream head(lines[0].substr(4)), text(lines[1].substr(7)), left(lines[2].substr(5));
    SamplingParams p;
    head >> p.dry_multiplier >> p.dry_base >> p.dry_allowed_length >> p.dry_penalty_last_n;
    Tokens tokens;
    for (int32_t id; text >> id;) tokens.push_back(id);
    std::vector<LogitBias> want;
    char colon;
    for (LogitBias b; left >> b.token >> colon >> b.bias;) want.push_back(b);
    const std::vector<LogitBias> got = dry(p, tokens);
    ASSERT_EQ(got.size(), want.size()) << lines[0];
    for (size_t i = 0; i < got.size(); ++i) {
      EXPECT_EQ(got[i].token, want[i].token);
      EXPECT_NEAR(got[i].bias, want[i].bias, 1e-5 * std::fabs(want[i].bias));
    }
    ++cases;
    penalized += !want.empty();
  }
  EXPECT_GE(cases, 20);
  EXPECT_GE(penalized, 8);
}

// One token again and again is the worst text there is; quadratic in it, it would take minutes.
TEST(Dry, IsLinearInTheText) {
  SamplingParams p{.dry_multiplier = 1.0f};
  const Tokens same(1'000'000, 5);
  const std::vector<LogitBias> got = dry(p, same);
  ASSERT_EQ(got.size(), 1u);
  EXPECT_EQ(got[0].token, 5);
  EXPECT_LT(got[0].bias, -1e30f) << "the exponent is bounded where floats end";
  EXPECT_TRUE(std::isfinite(got[0].bias));
}

}  // namespace
}  // namespace deepinfer::test
