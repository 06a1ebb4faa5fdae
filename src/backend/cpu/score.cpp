// How likely given tokens are: a row of logits a thread at a time.
#include <algorithm>
#include <atomic>
#include <cmath>

#include "backend/cpu.h"
#include "backend/cpu/kernels.h"
#include "backend/cpu/sample_candidates.h"

namespace deepinfer::cpu {
namespace {

struct Scratch {
  int32_t* ids = nullptr;
  double* sums = nullptr;
};

void score_row(const ScoreParams& p, int64_t i, const Scratch& s) {
  const Kernels& k = kernels();
  const int64_t vocab = p.logits.size(1);
  float* const x = p.logits.row<float>(i);
  float max = k.row_max(x, vocab);
  if (!(max <= kLargest)) {
    for (int64_t j = 0; j < vocab; ++j)
      if (x[j] > kLargest) x[j] = kLargest;
    max = kLargest;
  }
  double log_sum = 0;
  if (max > kNone) {
    k.row_sums(x, vocab, {.max = max, .floor = kNone}, s.sums);
    double sum = 0;
    for (int64_t b = 0; b * kSampleBlock < vocab; ++b) sum += s.sums[b];
    log_sum = max + std::log(sum);
  }
  const auto logprob = [&](float v) { return v > kNone ? static_cast<float>(v - log_sum) : kNone; };

  float target = x[p.target.as<int32_t>()[i]];
  if (target != target) target = kNone;
  int64_t rank = 0;
  for (int64_t j = 0; j < vocab; ++j) rank += x[j] >= target || target == kNone;
  p.logprob.as<float>()[i] = logprob(target);
  p.rank.as<int32_t>()[i] = static_cast<int32_t>(rank);
  if (p.top == 0) return;
  const int64_t found = most_likely(k, x, vocab, std::min<int64_t>(p.top, vocab), kNone, s.ids);
  std::sort(s.ids, s.ids + found, Ahead{x});
  for (int64_t t = 0; t < p.top; ++t) {
    p.top_token.row<int32_t>(i)[t] = t < found ? s.ids[t] : -1;
    p.top_logprob.row<float>(i)[t] = t < found ? logprob(x[s.ids[t]]) : kNone;
  }
}

}  // namespace

void score(Context& context, const ScoreParams& p) {
  const int64_t rows = p.logits.size(0), vocab = p.logits.size(1);
  Arena& arena = *context.scratch;
  const size_t mark = arena.used();
  const int threads = context.pool->size();
  auto* scratch = arena.allocate_n<Scratch>(threads);
  for (int t = 0; t < threads; ++t) {
    scratch[t].ids = arena.allocate_n<int32_t>(vocab + kCollectRoom);
    scratch[t].sums = arena.allocate_n<double>((vocab + kSampleBlock - 1) / kSampleBlock);
  }
  std::atomic<int64_t> next{0};
  context.pool->run([&](int thread) {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < rows;)
      score_row(p, i, scratch[thread]);
  });
  arena.reset(mark);
}

}  // namespace deepinfer::cpu
