#include "backend/cpu/sample_row.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "backend/cpu/sample_candidates.h"
#include "backend/cpu/sample_shape.h"

namespace deepinfer::cpu {
namespace {

constexpr uint32_t kInPrompt = 1u << 31;

class Row {
 public:
  Row(const Kernels& kernels, const SampleRow& row, float* x, int64_t vocab, const RowScratch& scratch)
      : k_(kernels), row_(row), x_(x), vocab_(vocab), s_(scratch), list_(kernels, x, vocab, scratch) {}

  void run(const RowOutput& out) {
    float max = finite_max();
    const bool wants_logprobs = row_.logprobs >= 0;
    const float* raw = x_;
    double log_sum = 0;
    if (wants_logprobs) {
      log_sum = max + std::log(list_.sum_all({.max = max, .floor = kNone}));
      if (row_.logprobs > 0) write_top(log_sum, out);
    }
    if (changes_logits()) {
      if (wants_logprobs) {
        std::memcpy(s_.raw, x_, vocab_ * sizeof(float));
        raw = s_.raw;
      }
      change_logits();
      max = finite_max();
    }
    double surprise = 0;
    int32_t token;
    if (max == kNone) {
      token = lowest_allowed();
    } else if (row_.shaped()) {
      token = choose_shaped({k_, row_, x_, vocab_, s_}, max, &surprise);
    } else {
      token = choose(max);
    }
    *out.token = token;
    if (row_.mirostat != 0) *out.surprise = static_cast<float>(surprise);
    if (wants_logprobs) {
      const float x = raw[token];
      *out.logprob = x > kNone ? static_cast<float>(x - log_sum) : kNone;
    }
  }

 private:
  bool changes_logits() const {
    return row_.mask != nullptr || !row_.banned.empty() || !row_.bias.empty() || !row_.late_bias.empty() ||
           has_penalties(row_);
  }

  bool in_vocab(int32_t token) const { return token >= 0 && token < vocab_; }

  // -inf when no logit is finite.
  float finite_max() {
    const float max = k_.row_max(x_, vocab_);
    if (max <= kLargest) return max;
    for (int64_t i = 0; i < vocab_; ++i)
      if (x_[i] > kLargest) x_[i] = kLargest;
    return kLargest;
  }

  void write_top(double log_sum, const RowOutput& out) {
    const int64_t k = row_.logprobs;
    const int64_t n = list_.select_top(std::min(k, vocab_), kNone);
    std::sort(s_.ids, s_.ids + n, Ahead{x_});
    for (int64_t i = 0; i < k; ++i) {
      out.top_token[i] = i < n ? s_.ids[i] : -1;
      out.top_logprob[i] = i < n ? static_cast<float>(x_[s_.ids[i]] - log_sum) : kNone;
    }
  }

  void change_logits() {
    if (row_.mask != nullptr) apply_mask();
    for (const int32_t token : row_.banned)
      if (in_vocab(token)) x_[token] = kNone;
    for (const LogitBias& b : row_.bias)
      if (in_vocab(b.token)) x_[b.token] += b.bias;
    if (has_penalties(row_)) apply_penalties();
    for (const LogitBias& b : row_.late_bias)
      if (in_vocab(b.token)) x_[b.token] += b.bias;
  }

  void apply_mask() {
    for (int64_t word = 0; word * 32 < vocab_; ++word) {
      const uint32_t bits = row_.mask[word];
      if (bits == ~0u) continue;
      const int64_t end = std::min(vocab_, word * 32 + 32);
      for (int64_t i = word * 32; i < end; ++i)
        if ((bits >> (i - word * 32) & 1) == 0) x_[i] = kNone;
    }
  }

  void apply_penalties() {
    for (const int32_t token : row_.prompt)
      if (in_vocab(token)) s_.counts[token] = kInPrompt;
    for (const int32_t token : row_.output)
      if (in_vocab(token)) ++s_.counts[token];
    // Each token once, which also leaves the counts zero for the next row.
    for (const auto& tokens : {row_.prompt, row_.output})
      for (const int32_t token : tokens)
        if (in_vocab(token)) penalize(token);
  }

  void penalize(int32_t token) {
    const uint32_t seen = s_.counts[token];
    if (seen == 0) return;
    s_.counts[token] = 0;
    float x = x_[token];
    x = x > 0 ? x / row_.repetition_penalty : x * row_.repetition_penalty;
    if (const uint32_t in_output = seen & ~kInPrompt; in_output != 0)
      x -= row_.frequency_penalty * static_cast<float>(in_output) + row_.presence_penalty;
    x_[token] = x;
  }

  int32_t lowest_allowed() const {
    for (int32_t token = 0; token < vocab_; ++token) {
      const bool masked = row_.mask != nullptr && (row_.mask[token / 32] >> (token % 32) & 1) == 0;
      if (!masked && std::find(row_.banned.begin(), row_.banned.end(), token) == row_.banned.end())
        return token;
    }
    return 0;
  }

  int32_t choose(float max) {
    if (row_.greedy()) return list_.first_of(max);
    const double temperature = row_.temperature;
    Softmax softmax{.max = max, .scale = static_cast<float>(1 / temperature), .floor = kNone};
    if (row_.min_p > 0) {
      const double floor = max + std::log(static_cast<double>(row_.min_p)) * temperature;
      softmax.floor = std::min(static_cast<float>(floor), max);
    }
    const bool top_k = row_.top_k > 0 && row_.top_k < vocab_;
    const bool top_p = row_.top_p < 1;
    const double noise = uniform(row_.seed, row_.position);
    if (!top_k && !top_p) return list_.draw_from_all(softmax, noise);

    // What weighs nothing (e^-87 of the largest) is no candidate.
    softmax.floor = std::max(softmax.floor, static_cast<float>(max - 87.0 * temperature));
    double total = 0;
    int64_t n;
    if (top_k) {
      n = list_.select_top(row_.top_k, below(softmax.floor));
      total = list_.weigh(softmax, n);
    } else {
      total = list_.sum_all(softmax);
      // Tokens that weigh less than this make together less than the 1 - top_p that is cut off.
      const double cut = (1 - static_cast<double>(row_.top_p)) * total / static_cast<double>(vocab_);
      const double floor = max + std::log(cut) * temperature;
      softmax.floor = std::max(softmax.floor, std::min(static_cast<float>(floor), max));
      n = list_.select_top(vocab_, below(softmax.floor));
      list_.weigh(softmax, n);
    }
    n = top_p ? list_.nucleus(softmax, n, row_.top_p * total) : list_.last_to_end(n);
    return list_.draw_from_first(n, noise);
  }

  const Kernels& k_;
  const SampleRow& row_;
  float* x_;
  int64_t vocab_;
  const RowScratch& s_;
  Candidates list_;
};

}  // namespace

Noise noise_of(uint64_t seed, int64_t position) {
  constexpr uint64_t kMul0 = 0xD2511F53, kMul1 = 0xCD9E8D57;
  constexpr uint32_t kAdd0 = 0x9E3779B9, kAdd1 = 0xBB67AE85;
  uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  const auto at = static_cast<uint64_t>(position);
  uint32_t c[4] = {static_cast<uint32_t>(at), static_cast<uint32_t>(at >> 32), 0, 0};
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = kMul0 * c[0], b = kMul1 * c[2];
    const uint32_t next[4] = {static_cast<uint32_t>(b >> 32) ^ c[1] ^ key[0], static_cast<uint32_t>(b),
                              static_cast<uint32_t>(a >> 32) ^ c[3] ^ key[1], static_cast<uint32_t>(a)};
    std::copy(next, next + 4, c);
    key[0] += kAdd0;
    key[1] += kAdd1;
  }
  const auto number = [](uint32_t high, uint32_t low) {
    return static_cast<double>((static_cast<uint64_t>(high) << 32 | low) >> 11) * 0x1p-53;
  };
  return {number(c[0], c[1]), number(c[2], c[3])};
}

double uniform(uint64_t seed, int64_t position) {
  return noise_of(seed, position).draw;
}

bool has_penalties(const SampleRow& row) {
  return row.repetition_penalty != 1.0f || row.frequency_penalty != 0 || row.presence_penalty != 0;
}

void sample_row(const Kernels& kernels, const SampleRow& row, float* x, int64_t vocab,
                const RowScratch& scratch, const RowOutput& out) {
  Row(kernels, row, x, vocab, scratch).run(out);
}

}  // namespace deepinfer::cpu
