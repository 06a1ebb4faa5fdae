#include "quantize/quantize.h"

#include <cstring>

#include "base/check.h"
#include "model/blocks.h"
#include "quantize/layer_quantizer.h"
#include "quantize/output.h"
#include "quantize/partial.h"

namespace deepinfer::quantize {
namespace {

Result<std::vector<float>> rope_angles(const Checkpoint& checkpoint, ThreadPool& pool) {
  Context context{.pool = &pool};
  DI_ASSIGN(const Vector v, Loader(checkpoint.weights, context).rope_inv_freq(checkpoint.config));
  std::vector<float> values(checkpoint.config.head_dim / 2);
  std::memcpy(values.data(), v.data.data(), values.size() * sizeof(float));
  return values;
}

// [tokens, hidden]: what enters the first layer.
Result<std::vector<float>> embedded(const Plan& plan) {
  const ModelConfig& c = plan.checkpoint.config;
  DI_ASSIGN(const std::vector<float> table,
            load_values(plan.checkpoint.weights, "model.embed_tokens.weight", {c.vocab_size, c.hidden}));
  std::vector<float> values(plan.samples.tokens.size() * c.hidden);
  for (size_t i = 0; i < plan.samples.tokens.size(); ++i)
    std::memcpy(values.data() + i * c.hidden, table.data() + int64_t{plan.samples.tokens[i]} * c.hidden,
                c.hidden * sizeof(float));
  return values;
}

Result<Hidden> hidden_at_start(const Plan& plan, const Partial& partial) {
  const int layers = plan.checkpoint.config.layers;
  Hidden hidden{.samples = plan.samples.count(), .length = plan.samples.length, .values = {}};
  if (hidden.samples == 0 || partial.finished_layers() == layers) return hidden;
  if (partial.finished_layers() == 0) {
    DI_ASSIGN(hidden.values, embedded(plan));
  } else {
    DI_ASSIGN(hidden.values, partial.read_hidden(plan.samples.tokens.size() * plan.checkpoint.config.hidden));
  }
  return hidden;
}

}  // namespace

Result<void> quantize(const Plan& plan, const Hooks& hooks) {
  const Checkpoint& checkpoint = plan.checkpoint;
  const int layers = checkpoint.config.layers;
  DI_ASSIGN(Partial partial, Partial::open(plan));
  ThreadPool pool(plan.threads);
  DI_ASSIGN(std::vector<float> angles, rope_angles(checkpoint, pool));
  DI_ASSIGN(Hidden hidden, hidden_at_start(plan, partial));
  LayerQuantizer quantizer(plan, pool, std::move(angles), hooks.stopped);
  hooks.progress(partial.finished_layers(), layers);
  while (partial.finished_layers() < layers) {
    const int layer = partial.finished_layers();
    DI_ASSIGN(DecoderLayer weights, load_layer(checkpoint, layer));
    checkpoint.weights.release_pages();
    DI_ASSIGN(const std::vector<OutTensor> tensors, quantizer.run(std::move(weights), hidden));
    const bool more = layer + 1 < layers;
    DI_TRY(partial.finish_layer(tensors, more ? hidden.values : std::vector<float>()));
    hooks.progress(partial.finished_layers(), layers);
  }
  DI_TRY(write_result(plan, partial));
  return partial.publish(plan.options.out);
}

}  // namespace deepinfer::quantize
