// One decoder layer of the llama family in plain F32, from a checkpoint: what calibration runs, linear by
// linear, so that each is quantized for the input that the ones before it give.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "deepinfer/result.h"
#include "model/checkpoint.h"

namespace deepinfer::quantize {

struct Linear {
  std::string name;  // "model.layers.0.self_attn.q_proj"
  int64_t rows = 0, cols = 0;
  std::vector<float> weight;  // [rows, cols]
  std::vector<float> bias;    // [rows] or empty
};

struct Norm {
  std::string name;  // "model.layers.0.input_layernorm"
  std::vector<float> weight;
};

struct DecoderLayer {
  Norm attention_norm, mlp_norm;
  Linear q, k, v, o, gate, up, down;
};

// The names of a layer's linears with their shapes, without reading them.
struct LinearShape {
  std::string name;
  int64_t rows = 0, cols = 0;
};
std::vector<LinearShape> linear_shapes(const ModelConfig& config, int layer);

// kModel when a tensor is missing, of another shape or dtype, or holds NaN or infinity.
Result<DecoderLayer> load_layer(const Checkpoint& checkpoint, int layer);

// A tensor of the checkpoint in F32. kModel as above.
Result<std::vector<float>> load_values(const Weights& weights, const std::string& name,
                                       const std::vector<int64_t>& shape);

// Samples of equal length one after another: what passes between the layers.
struct Hidden {
  int64_t samples = 0, length = 0;  // length: tokens of a sample
  std::vector<float> values;        // [samples * length, hidden]
  int64_t tokens() const { return samples * length; }
};

// The steps of a layer over all samples. Split over the pool by samples, each on one thread.
class LayerForward {
 public:
  // inv_freq: [head_dim / 2], the angles of RoPE.
  LayerForward(const ModelConfig& config, std::vector<float> inv_freq, ThreadPool& pool)
      : c_(config), inv_freq_(std::move(inv_freq)), pool_(pool) {}

  // out [tokens, hidden]: what q, k, v or gate, up multiply.
  void normalized(const Hidden& hidden, const Norm& norm, std::vector<float>& out) const;
  // out [tokens, heads * head_dim]: what o multiplies.
  void attention(const Hidden& hidden, const DecoderLayer& layer, std::vector<float>& out) const;
  // out [tokens, ffn]: what down multiplies.
  void activated(const Hidden& hidden, const DecoderLayer& layer, std::vector<float>& out) const;
  // hidden += linear(x)
  void add_projection(const std::vector<float>& x, const Linear& linear, Hidden& hidden) const;

 private:
  struct Heads;
  void rotate(float* x, int64_t length, int64_t heads) const;
  void attend(const Heads& in, int64_t length, std::vector<float>& scores, float* out) const;
  template <class Work>
  void for_samples(const Hidden& hidden, const Work& work) const;

  ModelConfig c_;
  std::vector<float> inv_freq_;
  ThreadPool& pool_;
};

}  // namespace deepinfer::quantize
