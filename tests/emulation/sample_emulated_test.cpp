// Sampling on a CUDA device: every parameter on any logits, against tests/ref and the CPU backend.
#include <numeric>

#include "emulation/sample_fixture.h"

#ifdef DEEPINFER_EMULATION
#include "emulation/emulated_gpu.h"
#endif

namespace deepinfer::test {
namespace {

TEST(CudaSample, AnyParametersOnAnyLogits) {
  DI_NEEDS_CARD();
  constexpr uint64_t kSeed = 2718;
  RecordProperty("seed", kSeed);
  Random random(kSeed);
  Card card;
  Tally tally;
  for (const int64_t vocab : {1,   2,   3,   4,   5,    31,   32,   33,   64,   127,  128,  129,  500,
                              511, 512, 513, 640, 1000, 1023, 1025, 2047, 2048, 2050, 2559, 3001, 4099}) {
    for (int round = 0; round < (vocab < 600 ? 5 : 2); ++round) {
      Rows rows(vocab);
      for (int i = 0; i < (vocab < 600 ? 24 : 10); ++i) add_random_row(rows, random);
      expect_right(rows, on_card(card, rows), tally);
    }
  }
  printf("%d rows; %d with a token more or less in the cut, %d not the CPU's token\n", tally.rows, tally.cuts,
         tally.unlike_cpu);
  EXPECT_LE(tally.cuts, tally.rows / 200);
  EXPECT_LE(tally.unlike_cpu, tally.rows / 200);
}

TEST(CudaSample, LlamaSamplersOnAnyLogits) {
  DI_NEEDS_CARD();
  constexpr uint64_t kSeed = 31415;
  RecordProperty("seed", kSeed);
  Random random(kSeed);
  Card card;
  Tally tally;
  for (const int64_t vocab : {1, 2, 3, 5, 31, 33, 64, 100, 101, 129, 500, 640, 1025, 2049, 4099}) {
    for (int round = 0; round < (vocab < 600 ? 6 : 2); ++round) {
      Rows rows(vocab);
      for (int i = 0; i < (vocab < 600 ? 24 : 12); ++i) add_shaped_row(rows, random);
      expect_right(rows, on_card(card, rows), tally);
    }
  }
  printf("%d rows; %d with a token more or less in the cut, %d not the CPU's token\n", tally.rows, tally.cuts,
         tally.unlike_cpu);
  EXPECT_LE(tally.cuts, tally.rows / 100);
  EXPECT_LE(tally.unlike_cpu, tally.rows / 100);
}

// No list holds the candidates, and all distances, surprises and ranks are nearly or quite equal.
TEST(CudaSample, LlamaSamplersOnFlatDistributions) {
  DI_NEEDS_CARD();
  Random random(79);
  Card card;
  Tally tally;
  for (const int64_t vocab : {300, 6001}) {
    Rows rows(vocab);
    const std::vector<float> near = random_floats(random, vocab, 1e-3f), equal(vocab, 1.25f);
    for (const auto* x : {&near, &equal}) {
      for (const float top_p : {1.0f, 0.5f}) {
        rows.add({.seed = random(), .top_p = top_p, .typical_p = 0.5f}, *x);
        rows.add({.seed = random(), .top_p = top_p, .top_n_sigma = 0.7f}, *x);
        rows.add({.seed = random(), .top_p = top_p, .xtc_probability = 1, .xtc_threshold = 1e-5f}, *x);
        rows.add({.seed = random(), .top_p = top_p, .dynatemp_range = 0.5f}, *x);
      }
      for (const float mu : {-1.0f, 0.0f, 3.0f, 15.0f, 400.0f}) {
        rows.add({.seed = random(), .mirostat = 1, .mirostat_mu = mu}, *x);
        rows.add({.seed = random(), .mirostat = 2, .mirostat_mu = mu}, *x);
      }
    }
    expect_right(rows, on_card(card, rows), tally);
  }
  EXPECT_LE(tally.cuts, 6);
}

// Where thousands of candidates are equal or nearly so, no list holds them.
TEST(CudaSample, FlatDistributions) {
  DI_NEEDS_CARD();
  Random random(78);
  Card card;
  Tally tally;
  for (const int64_t vocab : {2500, 6001}) {
    Rows rows(vocab);
    const std::vector<float> near = random_floats(random, vocab, 1e-3f), equal(vocab, 1.25f);
    for (const auto* x : {&near, &equal}) {
      for (const float top_p : {1.0f, 0.5f, 0.999f})
        for (const int32_t top_k : {0, 7, 1500, static_cast<int32_t>(vocab) - 1})
          rows.add({.seed = random(), .top_p = top_p, .top_k = top_k, .logprobs = 20}, *x);
      rows.add({.temperature = 0, .logprobs = 0}, *x);
    }
    const Outcome out = on_card(card, rows);
    expect_right(rows, out, tally);
    // Among equals the lower ids stay.
    for (size_t i = 0; i < rows.rows.size(); ++i) {
      const SampleRow& row = rows.rows[i];
      if (rows.row(i)[0] != 1.25f || row.temperature == 0) continue;
      const int64_t of = row.top_k > 0 ? row.top_k : vocab;
      EXPECT_LT(out.token[i], std::ceil(static_cast<double>(row.top_p) * static_cast<double>(of)));
    }
  }
  EXPECT_LE(tally.cuts, 2) << "the reference adds up thousands of equal numbers, too";
}

TEST(CudaSample, GreedyTakesTheLowestOfEquals) {
  DI_NEEDS_CARD();
  Card card;
  for (const int64_t vocab : {1, 2, 15, 17, 64, 130, 1000, 1025}) {
    Rows rows(vocab);
    std::vector<int32_t> expected;
    for (const int64_t at : {int64_t{0}, vocab / 2, vocab - 1}) {
      std::vector<float> x(vocab, -3.0f);
      for (int64_t i = at; i < vocab; i += 3) x[i] = i % 2 ? -0.0f : 0.0f;
      for (const SampleRow& row : {SampleRow{.temperature = 0}, SampleRow{.temperature = 1e-6f},
                                   SampleRow{.top_k = 1}, SampleRow{.top_p = 1e-7f}}) {
        rows.add(row, x);
        expected.push_back(static_cast<int32_t>(at));
      }
    }
    EXPECT_EQ(on_card(card, rows).token, expected) << vocab;
  }
}

TEST(CudaSample, RowsWithNothingFinite) {
  DI_NEEDS_CARD();
  Card card;
  Rows rows(300);
  const std::vector<float> nothing = [] {
    std::vector<float> x(300, -kInf);
    x[1] = x[299] = std::nanf("");
    return x;
  }();
  std::vector<float> closed(300, 1.0f);
  std::vector<int32_t> most(299);
  std::iota(most.begin(), most.end(), 0);
  std::vector<uint32_t> mask(10, 0), none(10, 0);
  mask[6] = 0xF0;
  const std::vector<int32_t> banned = {196, 197};
  for (const float temperature : {0.0f, 1.0f}) {
    rows.add({.temperature = temperature, .logprobs = 2}, nothing);
    rows.add({.temperature = temperature, .banned = most}, nothing);
    rows.add({.temperature = temperature, .mask = mask.data()}, nothing);
    rows.add({.temperature = temperature, .banned = banned, .mask = mask.data()}, nothing);
    rows.add({.temperature = temperature, .mask = none.data(), .logprobs = 1}, closed);
  }
  const Outcome out = on_card(card, rows);
  EXPECT_EQ(out.token, (std::vector<int32_t>{0, 299, 196, 198, 0, 0, 299, 196, 198, 0}));
  EXPECT_EQ(out.token, on_cpu(rows).token);
  EXPECT_EQ(out.logprob[0], -kInf);
  EXPECT_EQ(out.top_token[0], -1);
  EXPECT_NEAR(out.logprob[4], -std::log(300.0), 1e-6) << "of the raw logits";
}

TEST(CudaSample, ListsBeyondTheVocabularyAndSeveralBiasesOfAToken) {
  DI_NEEDS_CARD();
  Card card;
  Random random(5);
  Rows rows(50);
  const std::vector<float> x = random_floats(random, 50);
  const std::vector<int32_t> beyond = {-1, 50, 1 << 30, 7, -5};
  // In this order 1e8 swallows what comes before it, not what comes after.
  const std::vector<LogitBias> bias = {{9, 1.0f}, {9, 1e8f}, {3, 2.0f}, {9, -1e8f}, {9, 30.0f}, {70, 1e9f}};
  for (const float temperature : {0.0f, 1.0f}) {
    rows.add({.temperature = temperature, .frequency_penalty = 1, .output = beyond, .banned = beyond}, x);
    rows.add({.temperature = temperature, .bias = bias, .logprobs = 0}, x);
  }
  const Outcome out = on_card(card, rows), cpu = on_cpu(rows);
  EXPECT_EQ(out.token, cpu.token);
  EXPECT_EQ(out.token[1], 9);
}

#ifdef DEEPINFER_EMULATION
// Neither the size of a block of threads nor the order in which threads run may show in a bit.
TEST(CudaSample, EqualBitsForAnyThreadsAndAnyOrder) {
  DI_NEEDS_CARD();
  const uint64_t own_seed = emulation::seed();
  Card card;
  Random random(99);
  for (const int64_t vocab : {77, 1000, 4999}) {
    Rows rows(vocab);
    for (int i = 0; i < 12; ++i) add_random_row(rows, random);
    const Outcome expected = on_card(card, rows);
    for (const uint64_t seed : {11, 12, 13}) {
      emulation::set_seed(seed);
      EXPECT_TRUE(on_card(card, rows) == expected) << "order " << seed;
    }
    Buffer logits = card.upload(rows.logits);
    const auto n = static_cast<int32_t>(rows.rows.size());
    Block block(card, {.max_rows = n, .list_words = cuda::list_words(rows.rows, false)}, vocab);
    ASSERT_TRUE(block.pack(rows.rows, n, 0, false).fits);
    const Tensor x = make_tensor(logits.data(), DType::kF32, {n, vocab}, kCard);
    DeviceOutcome out(card, rows.rows.size());
    cuda::sample_device_with(1024, *card.gpu, {x, block.block, {}, 1, out.outputs(), block.scratch.data()});
    EXPECT_TRUE(out.read() == expected) << "1024 threads, vocabulary " << vocab;
  }
  emulation::set_seed(own_seed);
}
#endif

// More changed rows than scratch has: they take turns.
TEST(CudaSample, ChangedRowsShareScratch) {
  DI_NEEDS_CARD();
  Card card;
  constexpr int64_t kVocab = (int64_t{1} << 20) + 3;
  Rows rows(kVocab);
  const std::vector<int32_t> output = {5, 9, 9};
  for (int i = 0; i < 10; ++i) {
    std::vector<float> x(kVocab, -1.0f);
    x[9] = 5;
    x[kVocab - 1 - i] = 4;
    rows.add({.temperature = 0, .frequency_penalty = i == 3 ? 0.0f : 1.0f, .output = output}, x);
  }
  ASSERT_LT(cuda::scratch_rows(10, kVocab), 9);
  const Outcome out = on_card(card, rows);
  for (int i = 0; i < 10; ++i) EXPECT_EQ(out.token[i], i == 3 ? 9 : kVocab - 1 - i);
}

TEST(CudaSample, NoRows) {
  DI_NEEDS_CARD();
  Card card;
  EXPECT_NO_THROW(ops::sample(card.context, {.logits = make_tensor(nullptr, DType::kF32, {0, 10}, kCard),
                                             .token = make_tensor(nullptr, DType::kI32, {0}, kCard)}));
}

}  // namespace
}  // namespace deepinfer::test
