#include "backend/cpu.h"
#include "backend/cuda.h"
#include "base/check.h"
#include "ops/ops.h"
#include "profile/profiler.h"

namespace deepinfer::ops {

void sample(Context& context, const SampleParams& p) {
  const int64_t rows = static_cast<int64_t>(p.rows.size());
  check_tensor(p.logits, "sample.logits", DType::kF32, {rows, -1});
  check_tensor(p.token, "sample.token", DType::kI32, {rows});
  const Span span(context.profiler, Phase::kSample, static_cast<int32_t>(rows));
  context.device.is_cpu() ? cpu::sample(context, p) : cuda::sample(context, p);
}

void score(Context& context, const ScoreParams& p) {
  check_tensor(p.logits, "score.logits", DType::kF32, {-1, -1});
  const int64_t rows = p.logits.size(0);
  DI_CHECK(p.top >= 0 && p.top <= kMaxTopLogprobs, "score: the {} most likely tokens, expected 0 to {}",
           p.top, kMaxTopLogprobs);
  check_tensor(p.target, "score.target", DType::kI32, {rows});
  check_tensor(p.logprob, "score.logprob", DType::kF32, {rows});
  check_tensor(p.rank, "score.rank", DType::kI32, {rows});
  if (p.top > 0) {
    check_tensor(p.top_token, "score.top_token", DType::kI32, {rows, -1});
    check_tensor(p.top_logprob, "score.top_logprob", DType::kF32, {rows, -1});
    DI_CHECK(p.top_token.size(1) >= p.top && p.top_logprob.size(1) == p.top_token.size(1),
             "score.top_token: got {}, expected {} columns", p.top_token.describe(), p.top);
  }
  const Span span(context.profiler, Phase::kScore, static_cast<int32_t>(rows));
  context.device.is_cpu() ? cpu::score(context, p) : cuda::score(context, p);
}

}  // namespace deepinfer::ops
