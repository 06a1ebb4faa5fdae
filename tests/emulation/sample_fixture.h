// Rows to sample, their outcome on the CPU and on a CUDA device, and whether it is right: a token must be the
// one that the noise picks from the distribution of tests/ref, unless the noise lies closer to a boundary of
// it than the rounding of F32 weights may move one. What needs no such allowance is compared exactly.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <limits>
#include <string>
#include <vector>

#include "backend/cpu/sample_row.h"
#include "backend/cuda/sample_layout.h"
#include "emulation/device_fixture.h"
#include "ops/fixture.h"
#include "ref/sample.h"

namespace deepinfer::test {

inline constexpr float kInf = std::numeric_limits<float>::infinity();
inline constexpr float kLargest = std::numeric_limits<float>::max();

// Logits as a language model has them: few large ones on a broad base.
inline std::vector<float> language_logits(Random& random, size_t n) {
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
inline void add_random_row(Rows& rows, Random& random) {
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
  row.logprobs = static_cast<int32_t>(random() % (kMaxTopLogprobs + 2)) - 1;
  rows.add(row, x);
}

// With llama.cpp's samplers besides.
inline void add_shaped_row(Rows& rows, Random& random) {
  const auto real = [&] { return static_cast<float>(random() % 10001) / 10000.0f; };
  add_random_row(rows, random);
  SampleRow& row = rows.rows.back();
  if (random() % 4) row.temperature = 2 * real() + 0.05f;
  if (random() % 3) row.top_k = 0;
  if (random() % 2) row.typical_p = random() % 4 ? real() * 0.98f + 0.001f : 0.001f * real() + 1e-6f;
  if (random() % 3 == 0) row.top_n_sigma = 4 * real();
  if (random() % 3 == 0) {
    row.xtc_probability = random() % 2 ? 1.0f : real();
    row.xtc_threshold = random() % 5 ? 0.2f * real() : 0.6f * real();
    if (random() % 8 == 0) row.xtc_threshold = 0;
  }
  if (random() % 4 == 0) {
    row.dynatemp_range = 2 * real();
    row.dynatemp_exponent = 3 * real() + 0.1f;
  }
  if (random() % 4 == 0) {
    row.mirostat = 1 + static_cast<int32_t>(random() % 2);
    row.mirostat_mu = 20 * real() - 2;
  }
  if (random() % 4 == 0) {
    std::vector<LogitBias>& late = rows.biases.emplace_back();
    for (int32_t id = 0; id < rows.vocab; id += 1 + static_cast<int32_t>(random() % 9))
      late.push_back({id, -10 * real()});
    row.late_bias = late;
  }
}

struct Outcome {
  std::vector<int32_t> token;
  std::vector<float> logprob;
  std::vector<int32_t> top_token;
  std::vector<float> top_logprob;
  std::vector<int32_t> last;
  std::vector<float> surprise;

  bool operator==(const Outcome& o) const {
    return token == o.token && top_token == o.top_token && last == o.last && surprise == o.surprise &&
           !std::memcmp(logprob.data(), o.logprob.data(), logprob.size() * sizeof(float)) &&
           !std::memcmp(top_logprob.data(), o.top_logprob.data(), top_logprob.size() * sizeof(float));
  }
};

inline constexpr int64_t kTop = kMaxTopLogprobs;

inline Outcome blank(size_t rows) {
  return {std::vector<int32_t>(rows, -7),        std::vector<float>(rows, 7),
          std::vector<int32_t>(rows * kTop, -7), std::vector<float>(rows * kTop, 7),
          std::vector<int32_t>(rows, -7),        std::vector<float>(rows, -7)};
}

inline Outcome on_cpu(const Rows& rows) {
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
                                .top_logprob = make_tensor(out.top_logprob.data(), DType::kF32, {n, kTop}),
                                .surprise = make_tensor(out.surprise.data(), DType::kF32, {n})});
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
        last(c.upload(blank(n).last)),
        surprise(c.upload(blank(n).surprise)) {}

  cuda::SampleOutputs outputs() const {
    return {.token = reinterpret_cast<int32_t*>(token.data()),
            .logprob = reinterpret_cast<float*>(logprob.data()),
            .top_token = reinterpret_cast<int32_t*>(top_token.data()),
            .top_logprob = reinterpret_cast<float*>(top_logprob.data()),
            .last_token = reinterpret_cast<int32_t*>(last.data()),
            .surprise = reinterpret_cast<float*>(surprise.data())};
  }
  Outcome read() const {
    return {card.read<int32_t>(token.data(), rows),
            card.read<float>(logprob.data(), rows),
            card.read<int32_t>(top_token.data(), rows * kTop),
            card.read<float>(top_logprob.data(), rows * kTop),
            card.read<int32_t>(last.data(), rows),
            card.read<float>(surprise.data(), rows)};
  }

  Card& card;
  size_t rows;
  Buffer token, logprob, top_token, top_logprob, last, surprise;
};

inline Outcome on_card(Card& card, const Rows& rows) {
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
               .top_logprob = make_tensor(out.top_logprob.data(), DType::kF32, {n, kTop}, kCard),
               .surprise = make_tensor(out.surprise.data(), DType::kF32, {n}, kCard)});
  const std::vector<float> after = card.read<float>(logits.data(), rows.logits.size());
  EXPECT_EQ(std::memcmp(after.data(), rows.logits.data(), after.size() * sizeof(float)), 0)
      << "the logits were changed";
  return out.read();
}

// Where the noise falls among the cumulated probabilities, by id: the distance that the token is off, less
// the rounding that F32 allows. At most 0: right.
inline double distance_from(const std::vector<double>& p, double noise, int32_t token, double allowed) {
  double before = 0;
  for (int32_t i = 0; i < token; ++i) before += p[i];
  if (p[token] == 0) return 1;
  return std::max(before - noise, noise - (before + p[token])) - allowed;
}

// A weight e^((x - max) / T) in F32: the difference, 1 / T and the product are each rounded (2^-24 of the
// exponent), e^x is off by 2 units in the last place; a fixed-point weight loses less than 2^-44.
inline double rounding(const std::vector<double>& p) {
  const double most = *std::max_element(p.begin(), p.end());
  double sum = 0;
  for (const double v : p)
    if (v > 0) sum += v * (3 * std::log(most / v) * 0x1p-24 + 0x1p-22);
  return 2 * sum + static_cast<double>(p.size()) * 0x1p-44;
}

// 0: the reference's token; 1: right if the cuts leave a token more or less, which rounding may do; 2: wrong.
// *p: the probabilities that it is right with.
inline int verdict(std::span<const float> logits, const SampleRow& row, int32_t token,
                   std::vector<double>* p) {
  const cpu::Noise noise = cpu::noise_of(row.seed, row.position);
  const bool xtc = noise.coin < row.xtc_probability;
  const std::vector<double> parts = row.shaped() ? std::vector<double>{0.0, -3e-6, 3e-6, -1e-4, 1e-4}
                                                 : std::vector<double>{0.0, -3e-6, 3e-6};
  for (const double part : parts) {
    for (const double other : row.shaped() ? parts : std::vector<double>{part}) {
      SampleRow r = row;
      r.top_p = row.top_p < 1 ? std::min(1.0f, static_cast<float>(row.top_p * (1 + part))) : 1.0f;
      r.min_p = static_cast<float>(row.min_p * (1 - part));
      r.typical_p =
          row.typical_p < 1 ? std::min(1.0f, static_cast<float>(row.typical_p * (1 + other))) : 1.0f;
      r.xtc_threshold = static_cast<float>(row.xtc_threshold * (1 + other));
      r.top_n_sigma = static_cast<float>(row.top_n_sigma * (1 + part));
      r.mirostat_mu = static_cast<float>(row.mirostat_mu * (1 + part));
      *p = ref::token_probabilities(logits, r, xtc);
      if (distance_from(*p, noise.draw, token, rounding(*p)) <= 0) return part == 0 && other == 0 ? 0 : 1;
    }
  }
  return 2;
}

inline std::string describe(const SampleRow& r) {
  return fmt::format(
      "temperature {} top_p {} min_p {} top_k {} penalties {} {} {} of {} and {} tokens, {} biases, {} "
      "banned, "
      "mask {}, seed {} position {} logprobs {}, typical_p {} top_n_sigma {} xtc {} {} dynatemp {} {} "
      "mirostat {} "
      "{}, {} late",
      r.temperature, r.top_p, r.min_p, r.top_k, r.presence_penalty, r.frequency_penalty, r.repetition_penalty,
      r.prompt.size(), r.output.size(), r.bias.size(), r.banned.size(), r.mask != nullptr, r.seed, r.position,
      r.logprobs, r.typical_p, r.top_n_sigma, r.xtc_probability, r.xtc_threshold, r.dynatemp_range,
      r.dynatemp_exponent, r.mirostat, r.mirostat_mu, r.late_bias.size());
}

inline void expect_logprobs(const Rows& rows, size_t i, const Outcome& out) {
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

inline void expect_right(const Rows& rows, const Outcome& out, Tally& tally) {
  const Outcome cpu = on_cpu(rows);
  for (size_t i = 0; i < rows.rows.size(); ++i) {
    SCOPED_TRACE(fmt::format("row {} of {}, vocabulary {}: {}", i, rows.rows.size(), rows.vocab,
                             describe(rows.rows[i])));
    ASSERT_GE(out.token[i], 0);
    ASSERT_LT(out.token[i], rows.vocab);
    EXPECT_EQ(out.last[i], out.token[i]);
    std::vector<double> p;
    const int v = verdict(rows.row(i), rows.rows[i], out.token[i], &p);
    EXPECT_LT(v, 2) << "token " << out.token[i] << ", the CPU's " << cpu.token[i];
    expect_logprobs(rows, i, out);
    const bool greedy = rows.rows[i].greedy();
    if (greedy) EXPECT_EQ(out.token[i], cpu.token[i]);
    if (rows.rows[i].mirostat == 0) {
      EXPECT_EQ(out.surprise[i], -7.0f) << "not asked for, not written";
    } else {
      EXPECT_NEAR(out.surprise[i], p[out.token[i]] > 0 ? -std::log2(p[out.token[i]]) : 0, 1e-4);
      if (out.token[i] == cpu.token[i] && v == 0) EXPECT_NEAR(out.surprise[i], cpu.surprise[i], 1e-4);
    }
    ++tally.rows;
    tally.cuts += v == 1;
    tally.unlike_cpu += out.token[i] != cpu.token[i];
  }
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

}  // namespace deepinfer::test
