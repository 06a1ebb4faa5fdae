#include "cli/bench_floor.h"

#include <algorithm>

namespace deepinfer {

double BenchFloor::decode(double sequences, double context) const {
  const double weights = weight_bytes / (copy_gb_per_second * 1e9);
  const double products = sequences * flop_per_token / (tflop_per_second * 1e12);
  return std::max(weights, products) + sequences * context * kv_bytes_per_token / (copy_gb_per_second * 1e9);
}

double BenchFloor::prefill(double tokens) const {
  const double flop =
      tokens * (flop_per_token - head_flop) + head_flop + attention_flop * tokens * tokens / 2;
  return std::max(flop / (tflop_per_second * 1e12), weight_bytes / (copy_gb_per_second * 1e9));
}

BenchFloor bench_floor(const Checkpoint& checkpoint, double kv_bytes) {
  const ModelConfig& c = checkpoint.config;
  BenchFloor f;
  for (const auto& [name, t] : checkpoint.weights.tensors) {
    const bool embedding = name == "model.embed_tokens.weight";
    if (t.shape.size() != 2 || (embedding && !c.tied_head)) continue;
    const double flop = 2.0 * static_cast<double>(t.shape[0]) * static_cast<double>(t.shape[1]);
    f.weight_bytes += static_cast<double>(t.bytes);
    f.flop_per_token += flop;
    if (embedding || name == "lm_head.weight") f.head_flop += flop;
  }
  const double layers = c.layers, head_dim = c.head_dim;
  f.attention_flop = 4.0 * layers * c.heads * head_dim;  // scores, and their sum over the values
  f.kv_bytes_per_token = 2.0 * layers * c.kv_heads * head_dim * kv_bytes;
  return f;
}

}  // namespace deepinfer
