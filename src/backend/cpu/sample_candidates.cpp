#include "backend/cpu/sample_candidates.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

namespace deepinfer::cpu {
namespace {

constexpr int64_t kSortAtMost = 64;  // candidates that are sorted rather than split
constexpr int64_t kSortByIdAtMost = 256;
constexpr int kBuckets = 512;           // of the first step of the search for the nucleus
constexpr int64_t kSelectAhead = 1024;  // candidates beyond k between two selections

// One of id(0) to id(n - 1), ascending, never one that weighs nothing.
template <class Id>
int32_t draw_by_id(int64_t n, Id id, const float* weights, double noise, double* total) {
  *total = 0;
  for (int64_t i = 0; i < n; ++i) *total += weights[id(i)];
  double left = noise * *total;
  int32_t last = id(0);
  for (int64_t i = 0; i < n && left >= 0; ++i) {
    if (weights[id(i)] == 0) continue;
    last = id(i);
    left -= weights[last];
  }
  return last;
}

}  // namespace

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

double Candidates::sum_all(const Softmax& softmax) {
  if (softmax.max == kNone) return 1;  // nothing is finite: any log will do
  k_.row_sums(x_, vocab_, softmax, s_.sums);
  double sum = 0;
  for (int64_t b = 0; b * kSampleBlock < vocab_; ++b) sum += s_.sums[b];
  return sum;
}

int32_t Candidates::first_of(float max) {
  Found found{.ids = s_.ids, .count = 0, .capacity = kCollectRoom};
  k_.row_collect(x_, 0, vocab_, below(max), &found);
  return s_.ids[0];
}

// The weights of s_.ids[0, n), by token; returns their sum.
double Candidates::weigh(const Softmax& softmax, int64_t n) {
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
int64_t Candidates::last_to_end(int64_t n) {
  std::iter_swap(std::max_element(s_.ids, s_.ids + n, Ahead{x_}), s_.ids + (n - 1));
  return n;
}

// Moves the fewest most likely of s_.ids[0, n) that together weigh at least `target` to the front, the last
// of them in rank to their end; returns how many. At least one.
int64_t Candidates::nucleus(const Softmax& softmax, int64_t n, double target) {
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

// One step of a radix selection: buckets of equal width in the logit, so that a flat distribution costs no
// more than a steep one.
Candidates::Span Candidates::narrow(const Softmax& softmax, int64_t n, double target) {
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
void Candidates::order_by_id(int64_t n) {
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

int32_t Candidates::draw_from_first(int64_t n, double noise) {
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

int32_t Candidates::draw_from_all(const Softmax& softmax, double noise) {
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

int32_t Candidates::draw_from_list(int64_t n, double noise, double* total) {
  if (n <= kSortByIdAtMost) {
    std::sort(s_.ids, s_.ids + n);
    return draw_by_id(n, [&](int64_t i) { return s_.ids[i]; }, s_.weights, noise, total);
  }
  // By id without a sort: the others weigh nothing.
  std::memset(s_.values, 0, vocab_ * sizeof(float));
  for (int64_t i = 0; i < n; ++i) s_.values[s_.ids[i]] = s_.weights[s_.ids[i]];
  return draw_by_id(vocab_, [](int64_t i) { return static_cast<int32_t>(i); }, s_.values, noise, total);
}

}  // namespace deepinfer::cpu
