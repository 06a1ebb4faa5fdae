#include "engine/sampling_params.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <set>

namespace deepinfer {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

struct Case {
  const char* param;
  std::function<void(SamplingParams&)> set;
  const char* message;
};

TEST(SamplingParams, RefusesWhatIsOutOfRangeAndSaysWhat) {
  using P = SamplingParams;
  const Case cases[] = {
      {"temperature", [](P& p) { p.temperature = -1; },
       "temperature: got -1, expected 0 to 2 (0: always the most likely token)"},
      {"temperature", [](P& p) { p.temperature = 2.5f; },
       "temperature: got 2.5, expected 0 to 2 (0: always the most likely token)"},
      {"temperature", [](P& p) { p.temperature = kNan; },
       "temperature: got nan, expected 0 to 2 (0: always the most likely token)"},
      {"temperature", [](P& p) { p.temperature = kInf; },
       "temperature: got inf, expected 0 to 2 (0: always the most likely token)"},
      {"top_p", [](P& p) { p.top_p = 0; },
       "top_p: got 0, expected more than 0 and at most 1 (1: all tokens)"},
      {"top_p", [](P& p) { p.top_p = kNan; },
       "top_p: got nan, expected more than 0 and at most 1 (1: all tokens)"},
      {"top_k", [](P& p) { p.top_k = -2; }, "top_k: got -2, expected at least -1 (-1 or 0: all tokens)"},
      {"min_p", [](P& p) { p.min_p = 1.5f; }, "min_p: got 1.5, expected 0 to 1 (0: off)"},
      {"presence_penalty", [](P& p) { p.presence_penalty = 3; },
       "presence_penalty: got 3, expected -2 to 2 (0: off)"},
      {"frequency_penalty", [](P& p) { p.frequency_penalty = -kInf; },
       "frequency_penalty: got -inf, expected -2 to 2 (0: off)"},
      {"repetition_penalty", [](P& p) { p.repetition_penalty = 0; },
       "repetition_penalty: got 0, expected more than 0 and at most 2 (1: off)"},
      {"n", [](P& p) { p.n = 0; }, "n: got 0, expected 1 to 128"},
      {"n", [](P& p) { p.n = 129; }, "n: got 129, expected 1 to 128"},
      {"max_tokens", [](P& p) { p.max_tokens = 0; },
       "max_tokens: got 0, expected at least 1 where no prompt_logprobs are wanted"},
      {"max_tokens", [](P& p) { p.max_tokens = p.prompt_logprobs = -1; },
       "max_tokens: got -1, expected at least 0"},
      {"prompt_logprobs", [](P& p) { p.prompt_logprobs = 21; },
       "prompt_logprobs: got 21, expected -1 to 20 (-1: none)"},
      {"min_tokens", [](P& p) { p.min_tokens = -1; }, "min_tokens: got -1, expected at least 0"},
      {"min_tokens", [](P& p) { p.min_tokens = 17; },
       "min_tokens: got 17, expected at most max_tokens, which is 16"},
      {"logprobs", [](P& p) { p.logprobs = 21; }, "logprobs: got 21, expected -1 to 20 (-1: none)"},
      {"stop_token_ids", [](P& p) { p.stop_token_ids = {3, 100}; },
       "stop_token_ids: got token 100, expected 0 to 99"},
      {"stop_token_ids", [](P& p) { p.stop_token_ids.assign(1025, 1); },
       "stop_token_ids: got 1025 ids, expected at most 1024"},
      {"logit_bias", [](P& p) { p.logit_bias = {{-1, 1.0f}}; }, "logit_bias: got token -1, expected 0 to 99"},
      {"logit_bias", [](P& p) { p.logit_bias = {{1, 101.0f}}; },
       "logit_bias: got 101 for token 1, expected -100 to 100"},
      {"logit_bias", [](P& p) { p.logit_bias = {{1, kNan}}; },
       "logit_bias: got nan for token 1, expected -100 to 100"},
      {"logit_bias", [](P& p) { p.logit_bias.assign(101, {1, 0.0f}); },
       "logit_bias: got 101 entries, expected at most one for each of 100 tokens"},
      {"typical_p", [](P& p) { p.typical_p = 0; },
       "typical_p: got 0, expected more than 0 and at most 1 (1: off)"},
      {"typical_p", [](P& p) { p.typical_p = kNan; },
       "typical_p: got nan, expected more than 0 and at most 1 (1: off)"},
      {"top_n_sigma", [](P& p) { p.top_n_sigma = kInf; },
       "top_n_sigma: got inf, expected -1000 to 1000 (0 or less: off)"},
      {"xtc_probability", [](P& p) { p.xtc_probability = 1.1f; },
       "xtc_probability: got 1.1, expected 0 to 1 (0: off)"},
      {"xtc_threshold", [](P& p) { p.xtc_threshold = -0.1f; },
       "xtc_threshold: got -0.1, expected 0 to 1 (above 0.5: off)"},
      {"dynatemp_range", [](P& p) { p.dynatemp_range = 3; },
       "dynatemp_range: got 3, expected 0 to 2 (0: off)"},
      {"dynatemp_exponent", [](P& p) { p.dynatemp_exponent = 0; },
       "dynatemp_exponent: got 0, expected more than 0 and at most 10"},
      {"mirostat", [](P& p) { p.mirostat = 3; }, "mirostat: got 3, expected 0 to 2 (0: off)"},
      {"mirostat_tau", [](P& p) { p.mirostat_tau = 0; },
       "mirostat_tau: got 0, expected more than 0 and at most 20"},
      {"mirostat_eta", [](P& p) { p.mirostat_eta = 1.5f; },
       "mirostat_eta: got 1.5, expected more than 0 and at most 1"},
      {"dry_multiplier", [](P& p) { p.dry_multiplier = -1; },
       "dry_multiplier: got -1, expected 0 to 10 (0: off)"},
      {"dry_base", [](P& p) { p.dry_base = 0.5f; }, "dry_base: got 0.5, expected 1 to 10"},
      {"dry_allowed_length", [](P& p) { p.dry_allowed_length = 0; },
       "dry_allowed_length: got 0, expected at least 1"},
      {"dry_penalty_last_n", [](P& p) { p.dry_penalty_last_n = -2; },
       "dry_penalty_last_n: got -2, expected at least -1 (-1: the whole context, 0: off)"},
      {"dry_breakers", [](P& p) { p.dry_breakers = {{1}, {}}; },
       "dry_breakers: got a sequence of 0 tokens, expected 1 to 64"},
      {"bad_words", [](P& p) { p.bad_words = {{5, 100}}; }, "bad_words: got token 100, expected 0 to 99"},
      {"bad_words", [](P& p) { p.bad_words.assign(1025, {1}); },
       "bad_words: got 1025 sequences, expected at most 1024"},
      {"bad_words", [](P& p) { p.bad_words = {std::vector<int32_t>(65, 1)}; },
       "bad_words: got a sequence of 65 tokens, expected 1 to 64"},
      {"bad_words",
       [](P& p) {
         for (int id = 0; id < 100; ++id) p.bad_words.push_back({id});
       },
       "bad_words: got words that forbid every token of the vocabulary, expected at least one to be left"},
      {"bad_words",
       [](P& p) {
         p.allowed_token_ids = {3, 7};
         p.bad_words = {{7}, {3}, {3}};
       },
       "bad_words: got words that forbid every token of allowed_token_ids, expected at least one to be left"},
      {"allowed_token_ids", [](P& p) { p.allowed_token_ids = {3, 4, 3}; },
       "allowed_token_ids: got token 3 twice, expected distinct ids"},
      {"allowed_token_ids", [](P& p) { p.allowed_token_ids = {-1}; },
       "allowed_token_ids: got token -1, expected 0 to 99"},
  };
  for (const Case& c : cases) {
    SamplingParams params;
    c.set(params);
    Result<void> result = validate(params, 100);
    ASSERT_FALSE(result.ok()) << c.message;
    EXPECT_EQ(result.error().code, ErrorCode::kInvalidArgument);
    EXPECT_EQ(result.error().param, c.param);
    EXPECT_EQ(result.error().message, c.message);
  }
}

TEST(SamplingParams, TakesTheEndsOfEachRange) {
  SamplingParams low{.n = 1,
                     .temperature = 0,
                     .top_p = 1e-6f,
                     .top_k = -1,
                     .min_p = 0,
                     .presence_penalty = -2,
                     .frequency_penalty = -2,
                     .repetition_penalty = 1e-6f,
                     .max_tokens = 1,
                     .stop_token_ids = {0},
                     .logit_bias = {{0, -100.0f}}};
  EXPECT_TRUE(validate(low, 100).ok());
  SamplingParams high{.n = 128,
                      .temperature = 2,
                      .top_p = 1,
                      .top_k = 1 << 30,
                      .min_p = 1,
                      .presence_penalty = 2,
                      .frequency_penalty = 2,
                      .repetition_penalty = 2,
                      .max_tokens = INT32_MAX,
                      .min_tokens = INT32_MAX,
                      .stop_token_ids = {99},
                      .logit_bias = {{99, 100.0f}},
                      .logprobs = 20};
  EXPECT_TRUE(validate(high, 100).ok());
}

TEST(SamplingParams, ListsOfTokensBecomeMasksAndBans) {
  SamplingParams params{.stop_token_ids = {9, 2}};
  params.bad_words = {{7}, {4, 5}, {3}, {7}, {9}};
  params.allowed_token_ids = {0, 31, 32, 39};
  EXPECT_TRUE(validate(params, 40).ok());
  const ResolvedSampling r = resolve(params, {}, 40);
  EXPECT_THAT(r.banned, ::testing::ElementsAre(3, 7, 9));
  EXPECT_THAT(r.banned_and_stops, ::testing::ElementsAre(2, 3, 7, 9));
  EXPECT_THAT(r.mask, ::testing::ElementsAre(0x80000001u, 0x81u));
  EXPECT_EQ(r.allowed_count, 4);
  EXPECT_TRUE(r.long_bad_words && r.stateful());
  EXPECT_TRUE(r.allows(39) && !r.allows(38));
  EXPECT_TRUE(resolve({}, {}, 40).allows(38));
  EXPECT_FALSE(resolve({}, {}, 40).stateful());
}

TEST(SamplingParams, StopIdsAreTheRequestsAndTheModels) {
  SamplingParams params;
  params.stop_token_ids = {9, 2};
  const int32_t ends[] = {2, 5};
  EXPECT_THAT(resolve(params, ends, 10).stop_ids, ::testing::ElementsAre(2, 5, 9));
  params.ignore_eos = true;
  EXPECT_THAT(resolve(params, ends, 10).stop_ids, ::testing::ElementsAre(2, 9));
  EXPECT_FALSE(resolve(params, ends, 10).penalties);
  params.repetition_penalty = 1.1f;
  EXPECT_TRUE(resolve(params, ends, 10).penalties);
}

TEST(SamplingParams, EachChoiceHasItsOwnSeed) {
  std::set<uint64_t> seeds;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    for (int choice = 0; choice < 128; ++choice) seeds.insert(choice_seed(seed, choice));
    EXPECT_EQ(choice_seed(seed, 0), seed);
  }
  EXPECT_EQ(seeds.size(), 20u * 128u);
}

}  // namespace
}  // namespace deepinfer
