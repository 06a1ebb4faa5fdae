// Sampling on a CUDA device against tests/ref and the CPU backend. A token must be the one that the noise
// picks from the reference's distribution, unless the noise lies closer to a boundary of it than the rounding
// of F32 weights may move one; what needs no such allowance is compared exactly.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <limits>
#include <numeric>

#include "backend/cpu/sample_row.h"
#include "backend/cuda/sample_layout.h"
#include "emulation/device_fixture.h"
#include "ops/fixture.h"
#include "ref/sample.h"

#ifdef DEEPINFER_EMULATION
#include "emulation/emulated_gpu.h"
#endif

namespace deepinfer::test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kLargest = std::numeric_limits<float>::max();

// Logits as a language model has them: few large ones on a broad base.
std::vector<float> language_logits(Random& random, size_t n) {
  std::vector<float> x = random_floats(random, n, 2.5f);
  for (size_t i = 0; i < n / 50 + 3; ++i) x[random() % n] += static_cast<float>(random() % 1000) / 80.0f;
  return x;
}

// Rows of one vocabulary, with what their spans point to.
struct Rows {
  explicit Rows(int64_t v) : vocab(v) {}
  Rows(const Rows&) = delete;

  int64_t vocab;
  std::vector<SampleRow> rows;
  std::vector<float> logits;  // [rows, vocab]
  std::deque<std::vector<int32_t>> tokens;
  std::deque<std::vector<LogitBias>> biases;
  std::deque<std::vector<uint32_t>> masks;

  void add(SampleRow row, const std::vector<float>& x) {
    row.slot = static_cast<int32_t>(rows.size());
    rows.push_back(row);
    logits.insert(logits.end(), x.begin(), x.end());
  }
  std::span<const float> row(size_t i) const { return std::span(logits).subspan(i * vocab, vocab); }

  std::span<const int32_t> list(Random& random, size_t most) {
    std::vector<int32_t> ids(random() % (most + 1));
    for (int32_t& id : ids) id = static_cast<int32_t>(random() % vocab);
    return tokens.emplace_back(std::move(ids));
  }
};

// Any settings on any logits.
void add_random_row(Rows& rows, Random& random) {
  const auto real = [&] { return static_cast<float>(random() % 10001) / 10000.0f; };
  const int64_t vocab = rows.vocab;
  std::vector<float> x = language_logits(random, vocab);
  const float odd[] = {std::nanf(""), -kInf, -0.0f, 0.0f, 1e-40f, kInf, kLargest, -kLargest};
  if (random() % 4 == 0) {
    const size_t kinds = random() % 4 == 0 ? 8 : 5;
    for (int64_t j = random() % (vocab + 1); j > 0; --j) x[random() % vocab] = odd[random() % kinds];
  }
  if (random() % 6 == 0)
    for (float& v : x) v = std::round(v);  // many equal ones
  if (random() % 25 == 0) std::fill(x.begin(), x.end(), random() % 2 ? -kInf : 0.5f);
  SampleRow row{.seed = random(), .position = static_cast<int64_t>(random() % 4096)};
  row.temperature = random() % 5 == 0 ? 0 : 3 * real() + 0.01f;
  if (random() % 2) row.top_p = random() % 3 ? 0.5f + real() / 2 + 1e-4f : real() + 1e-4f;
  if (random() % 3 == 0) row.min_p = real() * real();
  if (random() % 2) row.top_k = static_cast<int32_t>(random() % (random() % 2 ? vocab + 5 : 60)) - 1;
  if (random() % 2) {
    row.prompt = rows.list(random, 50);
    row.output = rows.list(random, 50);
    row.presence_penalty = 4 * real() - 2;
    row.frequency_penalty = random() % 2 ? 4 * real() - 2 : 0;
    row.repetition_penalty = random() % 2 ? 2 * real() + 0.01f : 1;
  }
  if (random() % 5 == 0) row.banned = rows.list(random, 40);
  if (random() % 5 == 0) {
    std::vector<LogitBias>& bias = rows.biases.emplace_back(random() % 30);
    for (LogitBias& b : bias) b = {static_cast<int32_t>(random() % vocab), 20 * real() - 10};
    row.bias = bias;
  }
  if (random() % 4 == 0) {
    std::vector<uint32_t>& mask = rows.masks.emplace_back((vocab + 31) / 32);
    for (uint32_t& word : mask) word = static_cast<uint32_t>(random() % 3 ? random() : random() & random());
    row.mask = mask.data();
  }
  row.logprobs = static_cast<int32_t>(random() % (cuda::kMaxTopLogprobs + 2)) - 1;
  rows.add(row, x);
}

struct Outcome {
  std::vector<int32_t> token;
  std::vector<float> logprob;
  std::vector<int32_t> top_token;
  std::vector<float> top_logprob;
  std::vector<int32_t> last;

  bool operator==(const Outcome& o) const {
    return token == o.token && top_token == o.top_token && last == o.last &&
           !std::memcmp(logprob.data(), o.logprob.data(), logprob.size() * sizeof(float)) &&
           !std::memcmp(top_logprob.data(), o.top_logprob.data(), top_logprob.size() * sizeof(float));
  }
};

constexpr int64_t kTop = cuda::kMaxTopLogprobs;

Outcome blank(size_t rows) {
  return {std::vector<int32_t>(rows, -7), std::vector<float>(rows, 7), std::vector<int32_t>(rows * kTop, -7),
          std::vector<float>(rows * kTop, 7), std::vector<int32_t>(rows, -7)};
}

Outcome on_cpu(const Rows& rows) {
  const auto n = static_cast<int64_t>(rows.rows.size());
  Machine machine(1);
  std::vector<float> logits = rows.logits;
  Outcome out = blank(rows.rows.size());
  SlotTable slots{make_tensor(out.last.data(), DType::kI32, {n})};
  ops::sample(machine.context, {.logits = make_tensor(logits.data(), DType::kF32, {n, rows.vocab}),
                                .rows = rows.rows,
                                .slots = &slots,
                                .token = make_tensor(out.token.data(), DType::kI32, {n}),
                                .logprob = make_tensor(out.logprob.data(), DType::kF32, {n}),
                                .top_token = make_tensor(out.top_token.data(), DType::kI32, {n, kTop}),
                                .top_logprob = make_tensor(out.top_logprob.data(), DType::kF32, {n, kTop})});
  return out;
}

// Outputs on the device, preset so that what is not written shows.
struct DeviceOutcome {
  DeviceOutcome(Card& c, size_t n)
      : card(c),
        rows(n),
        token(c.upload(blank(n).token)),
        logprob(c.upload(blank(n).logprob)),
        top_token(c.upload(blank(n).top_token)),
        top_logprob(c.upload(blank(n).top_logprob)),
        last(c.upload(blank(n).last)) {}

  cuda::SampleOutputs outputs() const {
    return {.token = reinterpret_cast<int32_t*>(token.data()),
            .logprob = reinterpret_cast<float*>(logprob.data()),
            .top_token = reinterpret_cast<int32_t*>(top_token.data()),
            .top_logprob = reinterpret_cast<float*>(top_logprob.data()),
            .last_token = reinterpret_cast<int32_t*>(last.data())};
  }
  Outcome read() const {
    return {card.read<int32_t>(token.data(), rows), card.read<float>(logprob.data(), rows),
            card.read<int32_t>(top_token.data(), rows * kTop),
            card.read<float>(top_logprob.data(), rows * kTop), card.read<int32_t>(last.data(), rows)};
  }

  Card& card;
  size_t rows;
  Buffer token, logprob, top_token, top_logprob, last;
};

Outcome on_card(Card& card, const Rows& rows) {
  const auto n = static_cast<int64_t>(rows.rows.size());
  Buffer logits = card.upload(rows.logits);
  DeviceOutcome out(card, rows.rows.size());
  SlotTable slots{make_tensor(out.last.data(), DType::kI32, {n}, kCard)};
  ops::sample(card.context,
              {.logits = make_tensor(logits.data(), DType::kF32, {n, rows.vocab}, kCard),
               .rows = rows.rows,
               .slots = &slots,
               .token = make_tensor(out.token.data(), DType::kI32, {n}, kCard),
               .logprob = make_tensor(out.logprob.data(), DType::kF32, {n}, kCard),
               .top_token = make_tensor(out.top_token.data(), DType::kI32, {n, kTop}, kCard),
               .top_logprob = make_tensor(out.top_logprob.data(), DType::kF32, {n, kTop}, kCard)});
  const std::vector<float> after = card.read<float>(logits.data(), rows.logits.size());
  EXPECT_EQ(std::memcmp(after.data(), rows.logits.data(), after.size() * sizeof(float)), 0)
      << "the logits were changed";
  return out.read();
}

// Where the noise falls among the cumulated probabilities, by id: the distance that the token is off, less
// the rounding that F32 allows. At most 0: right.
double distance_from(const std::vector<double>& p, double noise, int32_t token, double allowed) {
  double before = 0;
  for (int32_t i = 0; i < token; ++i) before += p[i];
  if (p[token] == 0) return 1;
  return std::max(before - noise, noise - (before + p[token])) - allowed;
}

// A weight e^((x - max) / T) in F32: the difference, 1 / T and the product are each rounded (2^-24 of the
// exponent), e^x is off by 2 units in the last place; a fixed-point weight loses less than 2^-44.
double rounding(const std::vector<double>& p) {
  const double most = *std::max_element(p.begin(), p.end());
  double sum = 0;
  for (const double v : p)
    if (v > 0) sum += v * (3 * std::log(most / v) * 0x1p-24 + 0x1p-22);
  return 2 * sum + static_cast<double>(p.size()) * 0x1p-44;
}

// 0: the reference's token; 1: right if top_p and min_p cut one token off more or less, which rounding may
// do; 2: wrong.
int verdict(std::span<const float> logits, const SampleRow& row, int32_t token) {
  const double noise = cpu::uniform(row.seed, row.position);
  for (const double part : {0.0, -3e-6, 3e-6}) {
    SampleRow r = row;
    r.top_p = row.top_p < 1 ? std::min(1.0f, static_cast<float>(row.top_p * (1 + part))) : 1.0f;
    r.min_p = static_cast<float>(row.min_p * (1 - part));
    const std::vector<double> p = ref::token_probabilities(logits, r);
    if (distance_from(p, noise, token, rounding(p)) <= 0) return part == 0 ? 0 : 1;
  }
  return 2;
}

std::string describe(const SampleRow& r) {
  return fmt::format(
      "temperature {} top_p {} min_p {} top_k {} penalties {} {} {} of {} and {} tokens, {} biases, {} "
      "banned, "
      "mask {}, seed {} position {} logprobs {}",
      r.temperature, r.top_p, r.min_p, r.top_k, r.presence_penalty, r.frequency_penalty, r.repetition_penalty,
      r.prompt.size(), r.output.size(), r.bias.size(), r.banned.size(), r.mask != nullptr, r.seed, r.position,
      r.logprobs);
}

void expect_logprobs(const Rows& rows, size_t i, const Outcome& out) {
  const SampleRow& row = rows.rows[i];
  if (row.logprobs < 0) {
    EXPECT_EQ(out.logprob[i], 7.0f) << "not asked for, not written";
  } else {
    const std::vector<double> expected = ref::log_softmax(rows.row(i));
    // Beside the largest float, doubles lose the order of the rest: it is the logits'.
    std::vector<double> x(rows.row(i).begin(), rows.row(i).end());
    for (double& v : x) v = std::isnan(v) ? -kInf : std::min<double>(v, kLargest);
    const std::vector<int32_t> order = ref::ranking(x);
    const auto expect_close = [](float got, double want) {
      if (want < -static_cast<double>(kLargest) || std::isnan(want))
        EXPECT_EQ(got, -kInf);
      else
        EXPECT_NEAR(got, want, 2e-6 + 2e-7 * std::fabs(want));
    };
    expect_close(out.logprob[i], expected[out.token[i]]);
    for (int64_t j = 0; j < row.logprobs; ++j) {
      const bool some = j < rows.vocab && expected[order[j]] > -kInf;
      EXPECT_EQ(out.top_token[i * kTop + j], some ? order[j] : -1) << "rank " << j;
      expect_close(out.top_logprob[i * kTop + j], some ? expected[order[j]] : -kInf);
    }
  }
  for (int64_t j = std::max(row.logprobs, 0); j < kTop; ++j) EXPECT_EQ(out.top_token[i * kTop + j], -7);
}

struct Tally {
  int rows = 0, cuts = 0, unlike_cpu = 0;
};

void expect_right(const Rows& rows, const Outcome& out, Tally& tally) {
  const Outcome cpu = on_cpu(rows);
  for (size_t i = 0; i < rows.rows.size(); ++i) {
    SCOPED_TRACE(fmt::format("row {} of {}, vocabulary {}: {}", i, rows.rows.size(), rows.vocab,
                             describe(rows.rows[i])));
    ASSERT_GE(out.token[i], 0);
    ASSERT_LT(out.token[i], rows.vocab);
    EXPECT_EQ(out.last[i], out.token[i]);
    const int v = verdict(rows.row(i), rows.rows[i], out.token[i]);
    EXPECT_LT(v, 2) << "token " << out.token[i] << ", the CPU's " << cpu.token[i];
    expect_logprobs(rows, i, out);
    const bool greedy = rows.rows[i].temperature < 1e-5f || rows.rows[i].top_k == 1;
    if (greedy) EXPECT_EQ(out.token[i], cpu.token[i]);
    ++tally.rows;
    tally.cuts += v == 1;
    tally.unlike_cpu += out.token[i] != cpu.token[i];
  }
}

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

// A block of sampling as a runner keeps it, on the device and in pinned memory.
struct Block {
  Block(Card& c, const cuda::SampleBlockLayout& layout, int64_t v)
      : card(c),
        vocab(v),
        pinned(must(c.gpu->allocate_pinned(cuda::sample_block_bytes(layout)))),
        device(must(c.gpu->allocate(cuda::sample_block_bytes(layout)))),
        pinned_masks(must(c.gpu->allocate_pinned(mask_bytes(layout)))),
        masks(must(c.gpu->allocate(mask_bytes(layout)))),
        scratch(must(c.gpu->allocate(cuda::sample_scratch_bytes(layout.max_rows, v)))),
        block{device.data(), layout, reinterpret_cast<const uint32_t*>(masks.data())} {
    c.gpu->fill(scratch.data(), 0, scratch.size());
    // Poison: what a kernel reads must have been packed.
    c.gpu->fill(device.data(), 0x7b, device.size());
  }
  size_t mask_bytes(const cuda::SampleBlockLayout& layout) const {
    return std::max<size_t>(4, static_cast<size_t>(layout.max_rows * cuda::mask_words(vocab)) * 4);
  }
  // Waits for what reads the pinned memory.
  cuda::Packed pack(std::span<const SampleRow> rows, int32_t padded, int32_t dummy, bool history) {
    card.gpu->synchronize();
    const cuda::Packed packed = cuda::pack_sample_block(
        rows,
        {.layout = block.layout, .rows = padded, .dummy_slot = dummy, .vocab = vocab, .history = history},
        pinned.data());
    if (!packed.fits) return packed;
    card.gpu->copy_in(device.data(), pinned.data(), packed.bytes);
    auto* to = reinterpret_cast<uint32_t*>(pinned_masks.data());
    if (const size_t bytes = cuda::pack_masks(rows, vocab, to); bytes > 0)
      card.gpu->copy_in(masks.data(), pinned_masks.data(), bytes);
    return packed;
  }
  bool counts_are_zero() {
    const size_t half = scratch.size() / 2;
    const auto counts = card.read<uint32_t>(scratch.data() + half, half / 4);
    return std::all_of(counts.begin(), counts.end(), [](uint32_t c) { return c == 0; });
  }

  Card& card;
  int64_t vocab;
  Buffer pinned, device, pinned_masks, masks, scratch;
  cuda::DeviceSampleBlock block;
};

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

// As a runner does it: tokens by KV block, found through the rows' tables; rows that pad; a graph.
struct HistoryStep {
  static constexpr int32_t kBlockSize = 16, kBlocks = 64;

  HistoryStep(Card& card, const Rows& rows, Random& random, int32_t padded) {
    const auto n = static_cast<int32_t>(rows.rows.size());
    std::vector<int32_t> free(kBlocks);
    std::iota(free.begin(), free.end(), 0);
    std::shuffle(free.begin(), free.end(), random);
    history.assign(kBlocks * kBlockSize, 1 << 20);
    tables.assign(static_cast<size_t>(2 * padded) * kMaxBlocks, -1);
    // The rows' last tokens stand behind one other token each: indices are not positions.
    for (int32_t i = 0; i < n; ++i) {
      const SampleRow& row = rows.rows[i];
      std::vector<int32_t> all(row.prompt.begin(), row.prompt.end());
      all.insert(all.end(), row.output.begin(), row.output.end());
      DI_CHECK(!all.empty() && all.size() <= kMaxBlocks * kBlockSize, "{} tokens", all.size());
      for (size_t p = 0; p < all.size(); ++p) {
        int32_t& block = tables[static_cast<size_t>((padded + i) * kMaxBlocks) + p / kBlockSize];
        if (block < 0) {
          block = free.back();
          free.pop_back();
        }
        history[block * kBlockSize + p % kBlockSize] = all[p];
      }
      position.insert(position.end(), {99, static_cast<int32_t>(all.size()) - 1});
      token_row.insert(token_row.end(), {n - 1, i});
      logit_token.push_back(2 * i + 1);
    }
    for (int32_t i = n; i < padded; ++i) {
      position.insert(position.end(), {-1, -1});
      token_row.insert(token_row.end(), {i, i});
      logit_token.push_back(2 * i + 1);
    }
    upload(card);
  }

  void upload(Card& card) {
    const auto at = [&](Buffer& buffer, const std::vector<int32_t>& values) {
      if (buffer.data() == nullptr)
        buffer = card.upload(values);
      else
        card.write(buffer.data(), values);
      return reinterpret_cast<int32_t*>(buffer.data());
    };
    batch.position = at(buffers[0], position);
    batch.token_row = at(buffers[1], token_row);
    batch.logit_token = at(buffers[2], logit_token);
    batch.row_blocks = at(buffers[3], tables);
    batch.history = at(buffers[4], history);
    batch.history_group = 1;
    batch.group_stride = static_cast<int64_t>(tables.size()) / 2;
    batch.max_blocks = kMaxBlocks;
  }

  static constexpr int32_t kMaxBlocks = 8;
  std::vector<int32_t> history, tables, position, token_row, logit_token;
  std::array<Buffer, 5> buffers;
  cuda::DeviceBatch batch;
};

// Rows whose penalties can be read from a history: at least one token, the position behind it.
void add_row_with_history(Rows& rows, Random& random) {
  add_random_row(rows, random);
  SampleRow& row = rows.rows.back();
  if (row.prompt.empty()) row.prompt = rows.tokens.emplace_back(1, static_cast<int32_t>(rows.vocab / 2));
  row.position = static_cast<int64_t>(row.prompt.size() + row.output.size());
}

TEST(CudaSample, GraphWithHistoryAndPadding) {
  DI_NEEDS_CARD();
  constexpr uint64_t kSeed = 31;
  RecordProperty("seed", kSeed);
  Random random(kSeed);
  Card card;
  constexpr int64_t kVocab = 701;
  constexpr int32_t kPadded = 8, kSlots = 9, kDummy = 8;
  Block block(card, {.max_rows = kPadded, .list_words = 1000}, kVocab);
  Buffer logits = must(card.gpu->allocate(kPadded * kVocab * sizeof(float)));
  const Tensor x = make_tensor(logits.data(), DType::kF32, {kPadded, kVocab}, kCard);
  DeviceOutcome out(card, kSlots);
  cuda::Graph graph;
  std::unique_ptr<HistoryStep> first;
  for (int step = 0; step < 12; ++step) {
    SCOPED_TRACE(step);
    Rows rows(kVocab);
    const auto n = static_cast<int32_t>(1 + random() % kPadded);
    for (int32_t i = 0; i < n; ++i) add_row_with_history(rows, random);
    HistoryStep now(card, rows, random, kPadded);
    if (first == nullptr) first = std::make_unique<HistoryStep>(card, rows, random, kPadded);
    for (auto member : {&HistoryStep::history, &HistoryStep::tables, &HistoryStep::position,
                        &HistoryStep::token_row, &HistoryStep::logit_token})
      (*first).*member = now.*member;
    first->upload(card);  // the graph's addresses
    std::vector<float> padded = rows.logits;
    padded.resize(kPadded * kVocab, std::nanf(""));
    card.write(logits.data(), padded);
    const Outcome preset = blank(kSlots);
    card.write(out.token.data(), preset.token);
    card.write(out.last.data(), preset.last);
    card.write(out.logprob.data(), preset.logprob);
    card.write(out.top_token.data(), preset.top_token);
    ASSERT_TRUE(block.pack(rows.rows, kPadded, kDummy, true).fits);
    if (!graph) {
      card.gpu->begin_capture();
      cuda::sample_device(*card.gpu, x, block.block, first->batch, HistoryStep::kBlockSize, out.outputs(),
                          block.scratch.data());
      graph = card.gpu->end_capture();
    }
    card.gpu->launch(graph);
    const Outcome got = out.read(), expected = on_card(card, rows);
    for (int32_t i = 0; i < kSlots; ++i) {
      const bool real = i < n;
      EXPECT_EQ(got.token[i], real ? expected.token[i] : -7);
      EXPECT_EQ(got.last[i], real ? expected.last[i] : i == kDummy && n < kPadded ? 0 : -7);
      EXPECT_EQ(got.logprob[i], real ? expected.logprob[i] : 7.0f);
      for (int64_t j = 0; j < kTop; ++j)
        EXPECT_EQ(got.top_token[i * kTop + j], real ? expected.top_token[i * kTop + j] : -7);
    }
    EXPECT_TRUE(block.counts_are_zero());
  }
}

TEST(CudaSample, NoiseIsOfTheBatchsPosition) {
  DI_NEEDS_CARD();
  Random random(8);
  Card card;
  Rows rows(400);
  for (int i = 0; i < 6; ++i) {
    add_row_with_history(rows, random);
    rows.rows[i].temperature = 2;
    rows.rows[i].top_k = 0;
  }
  HistoryStep step(card, rows, random, 6);
  const Outcome expected = on_card(card, rows);
  for (SampleRow& row : rows.rows) row.position += 3;  // an upper bound, with steps in flight
  Block block(card, {.max_rows = 6, .list_words = 1000}, 400);
  ASSERT_TRUE(block.pack(rows.rows, 6, 0, true).fits);
  Buffer logits = card.upload(rows.logits);
  DeviceOutcome out(card, 6);
  cuda::sample_device(*card.gpu, make_tensor(logits.data(), DType::kF32, {6, 400}, kCard), block.block,
                      step.batch, HistoryStep::kBlockSize, out.outputs(), block.scratch.data());
  EXPECT_TRUE(out.read() == expected);
}

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

TEST(CudaSample, PackingSaysWhatItNeeds) {
  const std::vector<int32_t> tokens = {1, 2, 3};
  const std::vector<LogitBias> bias = {{1, 1.0f}, {2, 1.0f}};
  const SampleRow row{
      .presence_penalty = 1, .prompt = tokens, .output = tokens, .bias = bias, .banned = tokens};
  const std::vector<SampleRow> rows = {row, row};
  std::vector<std::byte> host(4096);
  cuda::SamplePacking packing{.layout = {.max_rows = 2, .list_words = 13}, .rows = 2, .vocab = 10};
  cuda::Packed packed = cuda::pack_sample_block(rows, packing, host.data());
  EXPECT_FALSE(packed.fits);
  EXPECT_EQ(packed.list_words, 14);
  packing.layout.list_words = 14;
  packed = cuda::pack_sample_block(rows, packing, host.data());
  EXPECT_TRUE(packed.fits);
  EXPECT_LE(packed.bytes, cuda::sample_block_bytes(packing.layout));
  packing.history = false;
  EXPECT_EQ(cuda::pack_sample_block(rows, packing, host.data()).list_words, 26);
  packing.layout.max_rows = 1;
  packing.layout.list_words = 100;
  EXPECT_FALSE(cuda::pack_sample_block(rows, packing, host.data()).fits);
  packing.rows = 1;
  EXPECT_FALSE(cuda::pack_sample_block(rows, packing, host.data()).fits) << "more rows than room";
  SampleRow many = row;
  many.logprobs = cuda::kMaxTopLogprobs + 1;
  EXPECT_THROW(cuda::pack_sample_block({&many, 1}, packing, host.data()), InternalError);
}

TEST(CudaSample, NoRows) {
  DI_NEEDS_CARD();
  Card card;
  EXPECT_NO_THROW(ops::sample(card.context, {.logits = make_tensor(nullptr, DType::kF32, {0, 10}, kCard),
                                             .token = make_tensor(nullptr, DType::kI32, {0}, kCard)}));
}

}  // namespace
}  // namespace deepinfer::test
