#include "backend/cpu/sample.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "backend/cpu.h"
#include "backend/cpu/kernels.h"
#include "backend/cpu/sample_row.h"
#include "base/check.h"

namespace deepinfer::cpu {
namespace {

constexpr size_t kArrays = 6;  // of a RowScratch
constexpr size_t kAlign = 64;

int64_t blocks_of(int64_t vocab) {
  return (vocab + kSampleBlock - 1) / kSampleBlock;
}

RowScratch take(Arena& arena, int64_t vocab) {
  RowScratch s;
  s.ids = arena.allocate_n<int32_t>(vocab + kCollectRoom);
  s.values = arena.allocate_n<float>(std::max(vocab, kSampleBlock));
  s.raw = arena.allocate_n<float>(vocab);
  s.weights = arena.allocate_n<float>(vocab);
  s.counts = arena.allocate_n<uint32_t>(vocab);
  s.sums = arena.allocate_n<double>(blocks_of(vocab));
  return s;
}

RowOutput output_of(const SampleParams& p, int64_t i) {
  RowOutput out{.token = p.token.as<int32_t>() + i};
  const int32_t logprobs = p.rows[i].logprobs;
  if (logprobs >= 0) {
    DI_CHECK(p.logprob && p.logprob.elems() > i, "sample.logprob: got {}, row {} wants one",
             p.logprob.describe(), i);
    out.logprob = p.logprob.as<float>() + i;
  }
  if (logprobs > 0) {
    DI_CHECK(p.top_token && p.top_logprob && p.top_token.size(-1) >= logprobs &&
                 p.top_logprob.size(-1) >= logprobs,
             "sample.top_token: got {}, row {} wants {}", p.top_token.describe(), i, logprobs);
    out.top_token = p.top_token.row<int32_t>(i);
    out.top_logprob = p.top_logprob.row<float>(i);
  }
  if (p.rows[i].mirostat != 0) {
    DI_CHECK(p.surprise && p.surprise.elems() > i, "sample.surprise: got {}, row {} wants one",
             p.surprise.describe(), i);
    out.surprise = p.surprise.as<float>() + i;
  }
  return out;
}

struct Work {
  const SampleParams& p;
  const Kernels& kernels;
  RowScratch* scratch;  // of each thread
  std::atomic<int64_t> next{0};

  // Rows as they come: a row's result does not depend on the thread.
  void run(int thread) {
    const int64_t vocab = p.logits.size(1);
    const auto rows = static_cast<int64_t>(p.rows.size());
    RowScratch& s = scratch[thread];
    bool zeroed = false;
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < rows;) {
      const SampleRow& row = p.rows[i];
      if (!zeroed && has_penalties(row)) {
        std::memset(s.counts, 0, vocab * sizeof(*s.counts));
        zeroed = true;
      }
      sample_row(kernels, row, p.logits.row<float>(i), vocab, s, output_of(p, i));
      if (p.slots == nullptr) continue;
      const Tensor& last = p.slots->last_token;
      DI_CHECK(row.slot >= 0 && row.slot < last.elems(), "sample: slot {} of {}", row.slot, last.elems());
      last.as<int32_t>()[row.slot] = p.token.as<int32_t>()[i];
    }
  }
};

}  // namespace

size_t sample_scratch_bytes(int threads, int64_t vocab) {
  const size_t n = static_cast<size_t>(std::max(vocab, kSampleBlock));
  const size_t row =
      (5 * n + kCollectRoom) * sizeof(float) + blocks_of(n) * sizeof(double) + kArrays * kAlign;
  return threads * (row + sizeof(RowScratch)) + kAlign;
}

void sample(Context& context, const SampleParams& p) {
  if (p.rows.empty()) return;
  Arena& arena = *context.scratch;
  const size_t mark = arena.used();
  // One row is done before the other threads would be awake.
  const int threads = p.rows.size() == 1 ? 1 : context.pool->size();
  auto* scratch = arena.allocate_n<RowScratch>(threads);
  for (int t = 0; t < threads; ++t) scratch[t] = take(arena, p.logits.size(1));
  Work work{.p = p, .kernels = kernels(), .scratch = scratch};
  if (threads == 1) {
    work.run(0);
  } else {
    context.pool->run([&work](int t) { work.run(t); });
  }
  arena.reset(mark);
}

}  // namespace deepinfer::cpu
