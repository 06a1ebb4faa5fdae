// What the files in arch/ share: loading tensors by name and shape, and the angles of RoPE.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "deepinfer/result.h"
#include "model/kv_scales.h"
#include "model/linear_source.h"
#include "model/model_config.h"
#include "model/weights.h"
#include "ops/ops.h"

namespace deepinfer {

// A small F32 tensor of a model (norm, bias) on its device, owned. Empty: the model has none.
struct Vector {
  Buffer data;
  Device device;
  Tensor tensor() const;  // [n], or none
};

class Loader {
 public:
  Loader(const Weights& weights, Context& context) : weights_(weights), context_(context) {}

  // kModel when missing or of another shape or dtype.
  Result<Vector> vector(const std::string& name, int64_t n) const;
  // Several [n_i] vectors (runs of them) as one, in order; none at all when `wanted` is false.
  Result<Vector> biases(bool wanted, const std::vector<NamedRows>& parts) const;
  // The rows of several [rows_i, cols] matrices (runs of both) as one packed weight.
  Result<LinearWeight> linear(const std::vector<NamedRows>& parts, const Extent& cols,
                              RowOrder order = RowOrder::kConcatenated) const;
  // [head_dim / 2] F32: theta^(-2i / head_dim), scaled as the configuration or the file's own factors say.
  // Source of the llama3 form: transformers, modeling_rope_utils.py.
  Result<Vector> rope_inv_freq(const ModelConfig& config) const;
  Result<KvScales> kv_scales(const std::string& attention) const {
    return deepinfer::kv_scales(weights_, attention);
  }

 private:
  Result<std::vector<float>> values(const std::string& name, int64_t n) const;
  Result<Vector> upload(std::span<const float> values) const;

  const Weights& weights_;
  Context& context_;
};

}  // namespace deepinfer
