// How likely given tokens are: a block of threads takes a row of logits. A pass for the largest, one for the
// sum of weights, one for the rank, and one for each of the most likely tokens that are told: for prompts,
// where a row is read from L2 and speed is that of the products before it.
#include "backend/cuda.h"
#include "backend/cuda/parts.h"
#include "backend/cuda/sample_block.cuh"
#include "base/check.h"

namespace deepinfer::cuda {
namespace sampling {

struct ScoreArgs {
  const float* logits = nullptr;  // [S, stride]
  int64_t stride = 0;
  int32_t vocab = 0;
  const int32_t* target = nullptr;
  int32_t top = 0;
  float* logprob = nullptr;
  int32_t* rank = nullptr;
  int32_t* top_token = nullptr;
  float* top_logprob = nullptr;
  int64_t top_stride = 0;
};

template <int kThreads>
__global__ void __launch_bounds__(kThreads) score_rows(const __grid_constant__ ScoreArgs a) {
  using B = Block<kThreads>;
  grid_dependency_wait();
  grid_launch_dependents();
  const auto index = static_cast<int64_t>(blockIdx.x);
  const Logits x{.x = a.logits + index * a.stride, .vocab = a.vocab};
  const uint32_t least = key_of(-kLargest);
  uint32_t own = 0;
  const Ranked best = B::largest(x, &own);
  const bool some = best.key() >= least;
  const Weights weights{some ? value_of(best.key()) : 0.0f, 1.0f, unit_of(a.vocab)};
  const uint64_t sum = some ? B::weigh(x, -1, weights, {least, ~0u}) : 0;
  const double log_sum = some ? log(static_cast<double>(sum) / static_cast<double>(weights.unit)) : 0.0;
  const auto logprob = [&](float v) {
    return v > kNone ? static_cast<float>(static_cast<double>(v) - weights.max - log_sum) : kNone;
  };

  const float target = x.at(a.target[index]);
  uint64_t ahead = 0;
  B::for_each(x, [&](int32_t, float v) { ahead += v >= target; });
  ahead = B::sum(ahead);
  if (B::thread() == 0) {
    a.logprob[index] = logprob(target);
    a.rank[index] = static_cast<int32_t>(ahead);
  }
  Ranked last{~uint64_t{0}};
  for (int32_t k = 0; k < a.top; ++k) {
    Ranked next;
    B::for_each(x, [&](int32_t id, float v) {
      const Ranked r = Ranked::of(key_of(v), id);
      if (r.bits < last.bits && r.bits > next.bits) next = r;
    });
    last = {B::max(next.bits)};
    if (B::thread() != 0) continue;
    const bool found = last.key() >= least;
    a.top_token[index * a.top_stride + k] = found ? last.id() : -1;
    a.top_logprob[index * a.top_stride + k] = found ? logprob(value_of(last.key())) : kNone;
  }
}

}  // namespace sampling

namespace {

constexpr int kScoreThreads =
#ifdef DEEPINFER_EMULATION
    64;  // a thread is a fiber there
#else
    512;
#endif

}  // namespace

void score(Context& context, const ScoreParams& p) {
  const int64_t rows = p.logits.size(0);
  if (rows == 0) return;
  sampling::ScoreArgs args{.logits = p.logits.as<float>(),
                           .stride = p.logits.stride[0],
                           .vocab = static_cast<int32_t>(p.logits.size(1)),
                           .target = p.target.as<int32_t>(),
                           .top = p.top,
                           .logprob = p.logprob.as<float>(),
                           .rank = p.rank.as<int32_t>()};
  if (p.top > 0) {
    args.top_token = p.top_token.as<int32_t>();
    args.top_logprob = p.top_logprob.as<float>();
    args.top_stride = p.top_token.stride[0];
  }
  launch({.grid = dim3(static_cast<unsigned>(rows)),
          .block = dim3(kScoreThreads),
          .stream = stream_of(context),
          .pdl = context.gpu->pdl},
         sampling::score_rows<kScoreThreads>, args);
}

}  // namespace deepinfer::cuda
