// Sampling against tests/ref: distributions by chi-square tests whose false alarm is below 1e-6 each (seeds
// are fixed besides), supports exactly, and the promises: noise of (seed, position) alone, ties, odd logits.
#include "backend/cpu/sample.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "backend/cpu/sample_row.h"
#include "fixture.h"
#include "ref/sample.h"

namespace deepinfer::test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

// Logits as a language model has them: few large ones on a broad base.
std::vector<float> language_logits(Random& random, size_t n) {
  std::vector<float> x = random_floats(random, n, 2.5f);
  for (size_t i = 0; i < n / 50 + 3; ++i) x[random() % n] += static_cast<float>(random() % 1000) / 80.0f;
  return x;
}

struct Outcome {
  std::vector<int32_t> token;
  std::vector<float> logprob;
  std::vector<int32_t> top_token;
  std::vector<float> top_logprob;
  std::vector<float> surprise;
};

Outcome sample(Machine& machine, std::vector<float> logits, const std::vector<SampleRow>& rows, int top = 0,
               SlotTable* slots = nullptr) {
  const auto n = static_cast<int64_t>(rows.size());
  Outcome out{std::vector<int32_t>(n, -7), std::vector<float>(n, 7), std::vector<int32_t>(n * top, -7),
              std::vector<float>(n * top, 7), std::vector<float>(n, -7)};
  SampleParams p{
      .logits = make_tensor(logits.data(), DType::kF32, {n, static_cast<int64_t>(logits.size()) / n}),
      .rows = rows,
      .slots = slots,
      .token = make_tensor(out.token.data(), DType::kI32, {n}),
      .logprob = make_tensor(out.logprob.data(), DType::kF32, {n})};
  p.surprise = make_tensor(out.surprise.data(), DType::kF32, {n});
  if (top > 0) {
    p.top_token = make_tensor(out.top_token.data(), DType::kI32, {n, top});
    p.top_logprob = make_tensor(out.top_logprob.data(), DType::kF32, {n, top});
  }
  ops::sample(machine.context, p);
  EXPECT_EQ(machine.arena.used(), 0u) << "the scratch was not given back";
  return out;
}

// The value that chi-square with `freedom` degrees exceeds with a probability of 1e-7 (Wilson and Hilferty).
double chi_square_limit(double freedom) {
  constexpr double kZ = 5.2;
  const double a = 2 / (9 * freedom);
  return freedom * std::pow(1 - a + kZ * std::sqrt(a), 3);
}

void expect_distribution(const std::vector<double>& probability, const std::vector<int64_t>& count,
                         const std::string& what) {
  const double draws = static_cast<double>(std::accumulate(count.begin(), count.end(), int64_t{0}));
  double chi = 0, rest_expected = 0, rest_seen = 0;
  int bins = 0;
  const auto add = [&](double expected, double seen) {
    chi += (seen - expected) * (seen - expected) / expected;
    ++bins;
  };
  for (size_t i = 0; i < count.size(); ++i) {
    if (probability[i] == 0) {
      EXPECT_EQ(count[i], 0) << what << ": token " << i << " cannot be drawn";
    } else if (probability[i] * draws < 8) {
      rest_expected += probability[i] * draws;
      rest_seen += static_cast<double>(count[i]);
    } else {
      add(probability[i] * draws, static_cast<double>(count[i]));
    }
  }
  if (rest_expected >= 8) {
    add(rest_expected, rest_seen);
  } else {
    EXPECT_LT(rest_seen, rest_expected + 40) << what;
  }
  if (bins < 2) return;
  EXPECT_LT(chi, chi_square_limit(bins - 1)) << what << ": " << bins << " bins, " << draws << " draws";
}

// Draws row many times: over positions with one seed, or over seeds at one position.
std::vector<int64_t> draw(Machine& machine, const std::vector<float>& logits, SampleRow row, int draws,
                          bool seeds) {
  const int64_t batch = std::max<int64_t>(1, 100000 / static_cast<int64_t>(logits.size()));
  std::vector<int64_t> count(logits.size());
  for (int64_t done = 0; done < draws; done += batch) {
    std::vector<SampleRow> rows;
    std::vector<float> all;
    for (int64_t i = 0; i < batch; ++i) {
      SampleRow r = row;
      (seeds ? reinterpret_cast<int64_t&>(r.seed) : r.position) = done + i;
      rows.push_back(r);
      all.insert(all.end(), logits.begin(), logits.end());
    }
    for (int32_t token : sample(machine, std::move(all), rows).token) ++count.at(token);
  }
  return count;
}

struct Case {
  const char* name;
  SampleRow row;
};

std::vector<Case> cases() {
  static const std::vector<int32_t> prompt = {1, 2, 3, 3, 5, 50, 7, 1};
  static const std::vector<int32_t> output = {2, 9, 9, 9, 60, 61, 2, 50};
  static const std::vector<LogitBias> bias = {{4, 3.0f}, {9, -2.0f}, {80, 5.5f}, {81, -100.0f}};
  static const std::vector<LogitBias> late = {{2, -1.5f}, {9, -4.0f}, {110, -2.0f}};
  static const std::vector<int32_t> banned = {0, 12, 33};
  static const std::vector<uint32_t> mask = {0xff00ff0fu, 0xffffffffu, 0x0f0f0f0fu, 0x77777777u};
  std::vector<Case> all = {
      {"plain", {}},
      {"temperature 0.5", {.temperature = 0.5f}},
      {"temperature 3", {.temperature = 3.0f}},
      {"top_p 0.9", {.top_p = 0.9f}},
      {"top_p 0.3, hot", {.temperature = 2.5f, .top_p = 0.3f}},
      {"top_p 0.999", {.top_p = 0.999f}},
      {"min_p 0.1", {.min_p = 0.1f}},
      {"top_k 5", {.top_k = 5}},
      {"top_k 40, hot", {.temperature = 4.0f, .top_k = 40}},
      {"presence", {.presence_penalty = 1.5f, .prompt = prompt, .output = output}},
      {"frequency", {.frequency_penalty = -0.7f, .prompt = prompt, .output = output}},
      {"repetition", {.repetition_penalty = 1.7f, .prompt = prompt, .output = output}},
      {"bias", {.bias = bias}},
      {"banned", {.banned = banned}},
      {"mask", {.mask = mask.data()}},
      {"late bias", {.bias = bias, .late_bias = late}},
      {"typical_p 0.9", {.typical_p = 0.9f}},
      {"typical_p 0.2", {.typical_p = 0.2f}},
      {"typical_p 0.001", {.typical_p = 0.001f}},
      {"top_n_sigma 1", {.top_n_sigma = 1.0f}},
      {"top_n_sigma 2.5, hot", {.temperature = 3.0f, .top_n_sigma = 2.5f}},
      {"top_n_sigma 0.01", {.top_n_sigma = 0.01f}},
      {"xtc always", {.xtc_probability = 1.0f, .xtc_threshold = 0.05f}},
      {"xtc at times", {.xtc_probability = 0.4f, .xtc_threshold = 0.02f}},
      {"xtc threshold 0", {.xtc_probability = 1.0f, .xtc_threshold = 0.0f}},
      {"xtc above a half", {.xtc_probability = 1.0f, .xtc_threshold = 0.51f}},
      {"dynatemp", {.dynatemp_range = 0.6f}},
      {"dynatemp, exponent 3", {.temperature = 1.5f, .dynatemp_range = 1.5f, .dynatemp_exponent = 3.0f}},
      {"mirostat 1", {.mirostat = 1, .mirostat_mu = 4.0f}},
      {"mirostat 1, hot, low", {.temperature = 2.0f, .mirostat = 1, .mirostat_mu = 1.5f}},
      {"mirostat 1, high", {.mirostat = 1, .mirostat_mu = 30.0f}},
      {"mirostat 2", {.mirostat = 2, .mirostat_mu = 4.5f}},
      {"mirostat 2, low", {.mirostat = 2, .mirostat_mu = -1.0f}},
      {"mirostat takes no cut",
       {.temperature = 1.3f,
        .top_p = 0.2f,
        .min_p = 0.3f,
        .top_k = 1,
        .typical_p = 0.3f,
        .top_n_sigma = 0.1f,
        .xtc_probability = 1.0f,
        .dynatemp_range = 1.0f,
        .mirostat = 2,
        .mirostat_mu = 6.0f}},
      {"typical_p, top_p", {.temperature = 1.5f, .top_p = 0.7f, .typical_p = 0.8f}},
      {"top_n_sigma, min_p, xtc",
       {.temperature = 0.8f, .min_p = 0.02f, .top_n_sigma = 2.0f, .xtc_probability = 0.7f}},
      {"all of llama.cpp's",
       {.temperature = 1.4f,
        .top_p = 0.95f,
        .min_p = 0.01f,
        .top_k = 60,
        .presence_penalty = 0.5f,
        .repetition_penalty = 1.2f,
        .prompt = prompt,
        .output = output,
        .bias = bias,
        .late_bias = late,
        .banned = banned,
        .mask = mask.data(),
        .typical_p = 0.9f,
        .top_n_sigma = 2.5f,
        .xtc_probability = 0.5f,
        .xtc_threshold = 0.04f,
        .dynatemp_range = 0.5f,
        .dynatemp_exponent = 0.7f}},
      {"top_k, top_p", {.temperature = 1.5f, .top_p = 0.8f, .top_k = 20}},
      {"top_p, min_p", {.temperature = 2.0f, .top_p = 0.85f, .min_p = 0.05f}},
      {"everything",
       {.temperature = 1.8f,
        .top_p = 0.9f,
        .min_p = 0.02f,
        .top_k = 30,
        .presence_penalty = 0.5f,
        .frequency_penalty = 0.3f,
        .repetition_penalty = 0.8f,
        .prompt = prompt,
        .output = output,
        .bias = bias,
        .banned = banned,
        .mask = mask.data()}},
  };
  return all;
}

TEST(Sample, NoiseIsPhilox) {
  // The published answer for counter 0 and key 0: 6627e8d5 e169c58d bc57ac4c 9b00dbd8.
  EXPECT_EQ(cpu::uniform(0, 0), static_cast<double>(0x6627e8d5e169c58dULL >> 11) * 0x1p-53);
  double sum = 0, squares = 0;
  constexpr int kN = 100000;
  for (int i = 0; i < kN; ++i) {
    const double u = cpu::uniform(i % 7, i);
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    sum += u;
    squares += u * u;
  }
  EXPECT_NEAR(sum / kN, 0.5, 5.2 * std::sqrt(1.0 / 12 / kN));
  EXPECT_NEAR(squares / kN, 1.0 / 3, 5.2 * std::sqrt(4.0 / 45 / kN));
}

TEST(Sample, DistributionsOfEveryParameter) {
  constexpr uint64_t kSeed = 31;
  RecordProperty("seed", kSeed);
  Random random(kSeed);
  Machine machine(2);
  for (const Case& c : cases()) {
    const std::vector<float> logits = random_floats(random, 111, 2.0f);
    const std::vector<double> expected = ref::token_probabilities(logits, c.row);
    SampleRow row = c.row;
    row.seed = 12345;
    expect_distribution(expected, draw(machine, logits, row, 8000, false),
                        std::string(c.name) + ", positions");
    row.position = 9;
    expect_distribution(expected, draw(machine, logits, row, 8000, true), std::string(c.name) + ", seeds");
  }
}

TEST(Sample, DistributionsOfLargeVocabularies) {
  Random random(77);
  Machine machine(2);
  for (int64_t vocab : {5000, 49152}) {
    const std::vector<float> logits = language_logits(random, vocab);
    for (const SampleRow& row :
         {SampleRow{.seed = 5}, SampleRow{.seed = 6, .top_p = 0.95f},
          SampleRow{.seed = 7, .temperature = 1.5f, .top_p = 0.99f}, SampleRow{.seed = 8, .min_p = 0.001f},
          SampleRow{.seed = 9, .temperature = 2, .top_p = 0.9f, .top_k = 1000},
          SampleRow{.seed = 10, .temperature = 0.8f, .top_p = 0.95f, .top_k = 40}}) {
      expect_distribution(ref::token_probabilities(logits, row),
                          draw(machine, logits, row, vocab == 5000 ? 3000 : 200, false),
                          "seed " + std::to_string(row.seed));
    }
  }
}

// A distribution that is nearly flat is the worst case of the search for the nucleus.
TEST(Sample, FlatDistributions) {
  Random random(78);
  Machine machine(2);
  const std::vector<float> flat = random_floats(random, 3000, 0.01f);
  const std::vector<float> equal(3000, 1.25f);
  for (const float top_p : {0.001f, 0.5f, 0.95f}) {
    const SampleRow row{.seed = 3, .top_p = top_p};
    expect_distribution(ref::token_probabilities(flat, row), draw(machine, flat, row, 3000, false), "flat");
    // Among equals the lower ids stay: exact, for all weights are 1.
    const std::vector<int64_t> count = draw(machine, equal, row, 500, false);
    const auto kept = static_cast<int64_t>(std::ceil(static_cast<double>(top_p) * 3000));
    for (int64_t i = kept; i < 3000; ++i) EXPECT_EQ(count[i], 0) << i << " of " << kept;
  }
}

TEST(Sample, GreedyTakesTheLowestOfEquals) {
  Machine machine(1);
  for (size_t vocab : {1, 2, 15, 16, 17, 64, 1000, 1025}) {
    for (size_t at : {size_t{0}, vocab / 2, vocab - 1}) {
      std::vector<float> logits(vocab, -3.0f);
      for (size_t i = at; i < vocab; i += 3) logits[i] = 2.5f;
      for (const SampleRow& row : {SampleRow{.temperature = 0}, SampleRow{.temperature = 1e-6f},
                                   SampleRow{.top_k = 1}, SampleRow{.top_p = 1e-7f}})
        EXPECT_EQ(sample(machine, logits, {row}).token[0], static_cast<int32_t>(at)) << vocab;
    }
  }
}

TEST(Sample, GreedySeesPenaltiesBiasAndBans) {
  Machine machine(1);
  const std::vector<float> logits = {1.0f, 4.0f, 3.5f, -1.0f, 3.0f};
  const std::vector<int32_t> prompt = {1}, output = {1, 2}, banned = {1, 2};
  const std::vector<LogitBias> bias = {{3, 10.0f}};
  const uint32_t mask = 0b10001;
  const auto greedy = [&](SampleRow row) {
    row.temperature = 0;
    return sample(machine, logits, {row}).token[0];
  };
  EXPECT_EQ(greedy({}), 1);
  EXPECT_EQ(greedy({.repetition_penalty = 1.3f, .prompt = prompt}), 2);
  EXPECT_EQ(greedy({.presence_penalty = 2.0f, .prompt = prompt}), 1) << "presence is of the output";
  EXPECT_EQ(greedy({.presence_penalty = 2.0f, .output = output}), 4);
  EXPECT_EQ(greedy({.banned = banned}), 4);
  EXPECT_EQ(greedy({.bias = bias}), 3);
  EXPECT_EQ(greedy({.mask = &mask}), 4);
}

// Any settings on any logits: what comes out could be drawn, and is the same alone and among others.
TEST(Sample, RandomRowsBatchedAndAlone) {
  constexpr uint64_t kSeed = 4242;
  RecordProperty("seed", kSeed);
  Random random(kSeed);
  Machine many(3), one(1);
  const auto real = [&] { return static_cast<float>(random() % 10001) / 10000.0f; };
  for (int round = 0; round < 120; ++round) {
    const int64_t vocab = std::vector<int64_t>{1, 2, 15, 16, 33, 1023, 1024, 1025, 3001}[random() % 9];
    const int n = 1 + static_cast<int>(random() % 9);
    constexpr int kTop = 5;
    std::vector<SampleRow> rows;
    std::vector<float> logits;
    std::vector<std::vector<int32_t>> tokens(2 * n);
    std::vector<std::vector<uint32_t>> masks(n);
    for (int i = 0; i < n; ++i) {
      std::vector<float> x = language_logits(random, vocab);
      const float odd[] = {std::nanf(""), kInf, -kInf, std::numeric_limits<float>::max(), -0.0f, 1e-40f};
      if (random() % 3 == 0)
        for (int64_t j = random() % (vocab + 1); j > 0; --j)
          x[random() % vocab] = odd[random() % (round % 2 ? 6 : 3)];
      if (random() % 20 == 0) std::fill(x.begin(), x.end(), random() % 2 ? -kInf : std::nanf(""));
      logits.insert(logits.end(), x.begin(), x.end());
      SampleRow row{.slot = n - 1 - i, .seed = random(), .position = static_cast<int64_t>(random() % 4096)};
      row.temperature = random() % 4 == 0 ? 0 : 3 * real() + 0.01f;
      if (random() % 2) row.top_p = real() + 1e-4f;
      if (random() % 3 == 0) row.min_p = real();
      if (random() % 2) row.top_k = static_cast<int32_t>(random() % (vocab + 5)) - 1;
      for (auto* list : {&tokens[2 * i], &tokens[2 * i + 1]})
        for (int j = static_cast<int>(random() % 40); j > 0; --j)
          list->push_back(static_cast<int32_t>(random() % vocab));
      if (random() % 2) {
        row.prompt = tokens[2 * i];
        row.output = tokens[2 * i + 1];
        row.presence_penalty = 4 * real() - 2;
        row.frequency_penalty = random() % 2 ? 4 * real() - 2 : 0;
        row.repetition_penalty = 2 * real() + 0.01f;
      }
      if (random() % 5 == 0) row.banned = tokens[2 * i];
      if (random() % 5 == 0) {
        for (int64_t w = 0; w * 32 < vocab; ++w) masks[i].push_back(static_cast<uint32_t>(random()));
        row.mask = masks[i].data();
      }
      row.logprobs = static_cast<int32_t>(random() % (kTop + 2)) - 1;
      rows.push_back(row);
    }
    std::vector<int32_t> last(n, -1);
    SlotTable slots{make_tensor(last.data(), DType::kI32, {n})};
    const Outcome batched = sample(many, logits, rows, kTop, &slots);
    for (int i = 0; i < n; ++i) {
      const std::vector<float> x(logits.begin() + i * vocab, logits.begin() + (i + 1) * vocab);
      EXPECT_EQ(last[rows[i].slot], batched.token[i]);
      ASSERT_GE(batched.token[i], 0);
      ASSERT_LT(batched.token[i], vocab);
      const std::vector<double> p = ref::token_probabilities(x, rows[i]);
      // The cut of top_p and min_p may fall on the other side of a token by rounding: its neighbours in rank.
      if (p[batched.token[i]] == 0) {
        SampleRow wider = rows[i];
        wider.top_p = std::min(1.0f, wider.top_p * 1.00001f + 1e-6f);
        wider.min_p *= 0.99999f;
        EXPECT_GT(ref::token_probabilities(x, wider)[batched.token[i]], 0.0)
            << "round " << round << " row " << i << " temperature " << wider.temperature << " top_p "
            << wider.top_p << " top_k " << wider.top_k << " min_p " << wider.min_p << " token "
            << batched.token[i] << " logit " << x[batched.token[i]] << " largest "
            << *std::max_element(x.begin(), x.end());
      }
      std::vector<SampleRow> alone_row = {rows[i]};
      alone_row[0].slot = 0;
      const Outcome alone = sample(one, x, alone_row, kTop);
      EXPECT_EQ(alone.token[0], batched.token[i]);
      EXPECT_EQ(std::memcmp(&alone.logprob[0], &batched.logprob[i], sizeof(float)), 0);
      for (int j = 0; j < kTop; ++j) {
        EXPECT_EQ(alone.top_token[j], batched.top_token[i * kTop + j]);
        EXPECT_EQ(alone.top_logprob[j], batched.top_logprob[i * kTop + j]);
      }
    }
  }
}

TEST(Sample, LogprobsAreOfTheRawLogits) {
  Random random(9);
  Machine machine(2);
  for (size_t vocab : {3, 40, 1030, 49152}) {
    std::vector<float> logits = language_logits(random, vocab);
    logits[vocab / 2] = std::nanf("");
    const std::vector<double> expected = ref::log_softmax(logits);
    const std::vector<int32_t> order = ref::ranking(expected);
    const std::vector<int32_t> output = {order[0], order[0], order[1]};
    constexpr int kTop = 20;
    const SampleRow row{
        .seed = vocab, .temperature = 2.0f, .frequency_penalty = 2.0f, .output = output, .logprobs = kTop};
    SampleRow none = row, chosen = row;
    none.logprobs = -1;
    chosen.logprobs = 0;
    std::vector<float> all = logits;
    for (int i = 0; i < 2; ++i) all.insert(all.end(), logits.begin(), logits.end());
    const Outcome out = sample(machine, all, {row, none, chosen}, kTop);
    EXPECT_EQ(out.token[0], out.token[1]) << "asking for logprobs changes no token";
    EXPECT_NEAR(out.logprob[0], expected[out.token[0]], 2e-5);
    EXPECT_EQ(out.logprob[1], 7.0f) << "not asked for, not written";
    EXPECT_EQ(out.logprob[2], out.logprob[0]);
    EXPECT_EQ(out.top_token[kTop], -7);
    EXPECT_EQ(out.top_token[2 * kTop], -7);
    for (size_t j = 0; j < kTop; ++j) {
      if (j + 1 < vocab) {
        EXPECT_EQ(out.top_token[j], order[j]);
        EXPECT_NEAR(out.top_logprob[j], expected[order[j]], 2e-5);
      } else {  // one is NaN: there are vocab - 1
        EXPECT_EQ(out.top_token[j], -1);
        EXPECT_EQ(out.top_logprob[j], -kInf);
      }
    }
  }
}

TEST(Sample, RowsWithNothingFinite) {
  Machine machine(1);
  const std::vector<float> nothing = {-kInf, std::nanf(""), -kInf, -kInf};
  const std::vector<int32_t> banned = {0, 2};
  const uint32_t mask = 0b1101, closed = 0;
  for (float temperature : {0.0f, 1.0f}) {
    EXPECT_EQ(sample(machine, nothing, {{.temperature = temperature}}).token[0], 0);
    EXPECT_EQ(sample(machine, nothing, {{.temperature = temperature, .banned = banned}}).token[0], 1);
    EXPECT_EQ(
        sample(machine, nothing, {{.temperature = temperature, .banned = banned, .mask = &mask}}).token[0],
        3);
    EXPECT_EQ(sample(machine, nothing, {{.temperature = temperature, .mask = &closed}}).token[0], 0);
  }
  const Outcome out = sample(machine, nothing, {{.logprobs = 2}}, 2);
  EXPECT_EQ(out.logprob[0], -kInf);
  EXPECT_EQ(out.top_token[0], -1);
}

TEST(Sample, InfinityIsTheLargestNumber) {
  Machine machine(1);
  std::vector<float> logits(100, 0.0f);
  logits[40] = logits[70] = kInf;
  EXPECT_EQ(sample(machine, logits, {{.temperature = 0}}).token[0], 40);
  std::vector<int64_t> count = draw(machine, logits, {.seed = 1}, 2000, false);
  EXPECT_EQ(count[40] + count[70], 2000);
  EXPECT_GT(count[40], 800);
  EXPECT_GT(count[70], 800);
}

TEST(Sample, ScratchIsWhatItSays) {
  for (int64_t vocab : {1, 1000, 49152}) {
    Machine machine(2, cpu::sample_scratch_bytes(2, vocab));
    std::vector<float> logits(3 * vocab, 1.0f);
    const std::vector<int32_t> output = {0};
    const SampleRow row{.top_p = 0.9f, .top_k = 50, .presence_penalty = 1, .output = output, .logprobs = 0};
    EXPECT_NO_THROW(sample(machine, logits, {row, row, row}));
  }
}

TEST(Sample, NoRows) {
  Machine machine(2);
  SampleParams p{.logits = make_tensor(nullptr, DType::kF32, {0, 10}),
                 .token = make_tensor(nullptr, DType::kI32, {0})};
  EXPECT_NO_THROW(ops::sample(machine.context, p));
}

}  // namespace
}  // namespace deepinfer::test
