#include "model/stages.h"

#include <algorithm>

#include "base/check.h"

namespace deepinfer {
namespace {

// What the slowest stage has to do when the first one has `front` layers.
int64_t slowest(const ModelConfig& c, int stages, int front) {
  const int64_t hidden = c.hidden, heads = int64_t{c.heads} * c.head_dim;
  const int64_t layer = 2 * hidden * (heads + int64_t{c.kv_heads} * c.head_dim) + 3 * hidden * int64_t{c.ffn};
  const int64_t head = hidden * c.vocab_size / 2;
  const int64_t others = (c.layers - front + stages - 2) / (stages - 1);
  return std::max(front * layer + head, others * layer);
}

}  // namespace

Result<LayerRange> plan_stage(const ModelConfig& c, int stage, int stages) {
  DI_CHECK(stages > 0 && stage >= 0 && stage < stages, "stage {} of {}", stage, stages);
  if (stages > c.layers)
    return make_error(
        ErrorCode::kConfig,
        "gpu.pipeline_parallel_size: got {}, expected at most {}: the model has {} layers, and every stage "
        "needs some",
        stages, c.layers, c.layers);
  if (stages == 1) return LayerRange{0, c.layers};
  int front = 1;
  for (int n = 2; n <= c.layers - (stages - 1); ++n)
    if (slowest(c, stages, n) < slowest(c, stages, front)) front = n;
  if (stage == 0) return LayerRange{0, front};
  // The layers that are over go to the last stages.
  const int rest = c.layers - front, others = stages - 1;
  return LayerRange{front + rest * (stage - 1) / others, front + rest * stage / others};
}

}  // namespace deepinfer
