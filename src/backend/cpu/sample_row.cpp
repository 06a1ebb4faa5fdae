#include "backend/cpu/sample_row.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

namespace deepinfer::cpu {
namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();
constexpr float kLargest = std::numeric_limits<float>::max();
constexpr float kGreedyBelow = 1e-5f;  // temperatures that mean 0, as in vLLM
constexpr int64_t kSortAtMost = 64;    // candidates that are sorted rather than split
constexpr int64_t kSortByIdAtMost = 256;
constexpr int kBuckets = 512;           // of the first step of the search for the nucleus
constexpr int64_t kSelectAhead = 1024;  // candidates beyond k between two selections
constexpr uint32_t kInPrompt = 1u << 31;

class Row {
 public:
  Row(const Kernels& kernels, const SampleRow& row, float* x, int64_t vocab, const RowScratch& scratch)
      : k_(kernels), row_(row), x_(x), vocab_(vocab), s_(scratch) {}

  void run(const RowOutput& out) {
    float max = finite_max();
    const bool wants_logprobs = row_.logprobs >= 0;
    const float* raw = x_;
    double log_sum = 0;
    if (wants_logprobs) {
      log_sum = max + std::log(sum_all({.max = max, .floor = kNone}));
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
    const int32_t token = max == kNone ? lowest_allowed() : choose(max);
    *out.token = token;
    if (wants_logprobs) {
      const float x = raw[token];
      *out.logprob = x > kNone ? static_cast<float>(x - log_sum) : kNone;
    }
  }

 private:
  bool changes_logits() const {
    return row_.mask != nullptr || !row_.banned.empty() || !row_.bias.empty() || has_penalties(row_);
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

  double sum_all(const Softmax& softmax) {
    if (softmax.max == kNone) return 1;  // nothing is finite: any log will do
    k_.row_sums(x_, vocab_, softmax, s_.sums);
    double sum = 0;
    for (int64_t b = 0; b * kSampleBlock < vocab_; ++b) sum += s_.sums[b];
    return sum;
  }

  // Into s_.ids.
  int64_t select_top(int64_t k, float floor) { return most_likely(k_, x_, vocab_, k, floor, s_.ids); }

  void write_top(double log_sum, const RowOutput& out) {
    const int64_t k = row_.logprobs;
    const int64_t n = select_top(std::min(k, vocab_), kNone);
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

  int32_t first_of(float max) {
    Found found{.ids = s_.ids, .count = 0, .capacity = kCollectRoom};
    k_.row_collect(x_, 0, vocab_, below(max), &found);
    return s_.ids[0];
  }

  int32_t choose(float max) {
    if (row_.temperature < kGreedyBelow || row_.top_k == 1) return first_of(max);
    const double temperature = row_.temperature;
    Softmax softmax{.max = max, .scale = static_cast<float>(1 / temperature), .floor = kNone};
    if (row_.min_p > 0) {
      const double floor = max + std::log(static_cast<double>(row_.min_p)) * temperature;
      softmax.floor = std::min(static_cast<float>(floor), max);
    }
    const bool top_k = row_.top_k > 0 && row_.top_k < vocab_;
    const bool top_p = row_.top_p < 1;
    const double noise = uniform(row_.seed, row_.position);
    if (!top_k && !top_p) return draw_from_all(softmax, noise);

    // What weighs nothing (e^-87 of the largest) is no candidate.
    softmax.floor = std::max(softmax.floor, static_cast<float>(max - 87.0 * temperature));
    double total = 0;
    int64_t n;
    if (top_k) {
      n = select_top(row_.top_k, below(softmax.floor));
      total = weigh(softmax, n);
    } else {
      total = sum_all(softmax);
      // Tokens that weigh less than this make together less than the 1 - top_p that is cut off.
      const double cut = (1 - static_cast<double>(row_.top_p)) * total / static_cast<double>(vocab_);
      const double floor = max + std::log(cut) * temperature;
      softmax.floor = std::max(softmax.floor, std::min(static_cast<float>(floor), max));
      n = select_top(vocab_, below(softmax.floor));
      weigh(softmax, n);
    }
    n = top_p ? nucleus(softmax, n, row_.top_p * total) : last_to_end(n);
    return draw_from_first(n, noise);
  }

  static float below(float x) { return std::nextafter(x, kNone); }

  // The weights of s_.ids[0, n), by token; returns their sum.
  double weigh(const Softmax& softmax, int64_t n) {
    for (int64_t i = 0; i < n; ++i) s_.values[i] = x_[s_.ids[i]];
    k_.row_weights(s_.values, n, softmax, s_.values);
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) {
      s_.weights[s_.ids[i]] = s_.values[i];
      sum += s_.values[i];
    }
    return sum;
  }

  // Moves the last in rank of s_.ids[0, n) to n - 1; returns n.
  int64_t last_to_end(int64_t n) {
    std::iter_swap(std::max_element(s_.ids, s_.ids + n, Ahead{x_}), s_.ids + (n - 1));
    return n;
  }

  // Moves the fewest most likely of s_.ids[0, n) that together weigh at least `target` to the front, the last
  // of them in rank to their end; returns how many. At least one.
  int64_t nucleus(const Softmax& softmax, int64_t n, double target) {
    const Ahead ahead{x_};
    Span cut{0, n, 0};
    if (n > kBuckets) cut = narrow(softmax, n, target);
    while (cut.end - cut.begin > kSortAtMost) {
      const int64_t middle = cut.begin + (cut.end - cut.begin) / 2;
      std::nth_element(s_.ids + cut.begin, s_.ids + middle, s_.ids + cut.end, ahead);
      double front = 0;
      for (int64_t i = cut.begin; i < middle; ++i) front += s_.weights[s_.ids[i]];
      if (cut.before + front >= target) {
        cut.end = middle;
      } else {
        cut.before += front;
        cut.begin = middle;
      }
    }
    std::sort(s_.ids + cut.begin, s_.ids + cut.end, ahead);
    for (int64_t i = cut.begin; i < cut.end; ++i) {
      cut.before += s_.weights[s_.ids[i]];
      if (cut.before >= target) return i + 1;
    }
    return cut.begin < cut.end ? cut.end : last_to_end(cut.end);
  }

  // Candidates among which the nucleus ends: s_.ids[begin, end). What stands before them weighs `before`.
  struct Span {
    int64_t begin = 0, end = 0;
    double before = 0;
  };

  // One step of a radix selection: buckets of equal width in the logit, so that a flat distribution costs no
  // more than a steep one.
  Span narrow(const Softmax& softmax, int64_t n, double target) {
    const float width = (softmax.max - softmax.floor) / kBuckets;
    const float per_logit = width > 0 && 1 / width <= kLargest ? 1 / width : 0;
    const auto bucket = [&](int32_t token) {
      const float b = (softmax.max - x_[token]) * per_logit;
      return b < kBuckets - 1 ? static_cast<int>(b) : kBuckets - 1;
    };
    std::array<double, kBuckets> mass{};
    for (int64_t i = 0; i < n; ++i) mass[bucket(s_.ids[i])] += s_.weights[s_.ids[i]];
    int last = 0;
    double before = 0;
    while (last < kBuckets - 1 && before + mass[last] < target) before += mass[last++];
    int32_t* const middle = std::partition(s_.ids, s_.ids + n, [&](int32_t t) { return bucket(t) < last; });
    int32_t* const end = std::partition(middle, s_.ids + n, [&](int32_t t) { return bucket(t) == last; });
    // Rounding may leave the last bucket with mass empty: then all before it is the nucleus.
    return {middle - s_.ids, end - s_.ids, before};
  }

  // s_.ids[0, n), the n first in the order of rank and the last of them at the end, into the order of ids.
  void order_by_id(int64_t n) {
    if (n <= kSortByIdAtMost) {
      std::sort(s_.ids, s_.ids + n);
      return;
    }
    const Ahead ahead{x_};
    const int32_t last = s_.ids[n - 1];
    Found found{.ids = s_.ids, .count = 0, .capacity = vocab_ + kCollectRoom};
    k_.row_collect(x_, 0, vocab_, below(x_[last]), &found);
    std::remove_if(s_.ids, s_.ids + found.count, [&](int32_t id) { return ahead(last, id); });
  }

  int32_t draw_from_first(int64_t n, double noise) {
    order_by_id(n);
    double total = 0;
    for (int64_t i = 0; i < n; ++i) total += s_.weights[s_.ids[i]];
    double left = noise * total;
    for (int64_t i = 0; i < n; ++i) {
      left -= s_.weights[s_.ids[i]];
      if (left < 0) return s_.ids[i];
    }
    return s_.ids[n - 1];
  }

  int32_t draw_from_all(const Softmax& softmax, double noise) {
    double left = noise * sum_all(softmax);
    int64_t last = 0;  // the last block that weighs anything, for noise at the very end
    for (int64_t b = 0; b * kSampleBlock < vocab_; ++b) {
      if (s_.sums[b] == 0) continue;
      last = b;
      if (left < s_.sums[b]) break;
      left -= s_.sums[b];
    }
    const int64_t begin = last * kSampleBlock, n = std::min(kSampleBlock, vocab_ - begin);
    k_.row_weights(x_ + begin, n, softmax, s_.values);
    int64_t found = 0;
    for (int64_t i = 0; i < n && left >= 0; ++i) {
      if (s_.values[i] == 0) continue;
      found = i;
      left -= s_.values[i];
    }
    return static_cast<int32_t>(begin + found);
  }

  const Kernels& k_;
  const SampleRow& row_;
  float* x_;
  int64_t vocab_;
  const RowScratch& s_;
};

}  // namespace

double uniform(uint64_t seed, int64_t position) {
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
  const uint64_t bits = static_cast<uint64_t>(c[0]) << 32 | c[1];
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

int64_t most_likely(const Kernels& kernels, const float* x, int64_t vocab, int64_t k, float floor,
                    int32_t* ids) {
  Found found{
      .ids = ids, .count = 0, .capacity = std::min(vocab, k + std::max(k, kSelectAhead)) + kCollectRoom};
  const Ahead ahead{x};
  for (int64_t at = 0; at < vocab;) {
    at = kernels.row_collect(x, at, vocab, floor, &found);
    if (found.count <= k) continue;
    std::nth_element(ids, ids + (k - 1), ids + found.count, ahead);
    found.count = k;
    // A later token with the same logit has a higher id: it comes behind.
    floor = x[ids[k - 1]];
  }
  return found.count;
}

bool has_penalties(const SampleRow& row) {
  return row.repetition_penalty != 1.0f || row.frequency_penalty != 0 || row.presence_penalty != 0;
}

void sample_row(const Kernels& kernels, const SampleRow& row, float* x, int64_t vocab,
                const RowScratch& scratch, const RowOutput& out) {
  Row(kernels, row, x, vocab, scratch).run(out);
}

}  // namespace deepinfer::cpu
