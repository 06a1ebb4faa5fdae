#include "model/blocks.h"

#include <cmath>
#include <numbers>

#include "base/check.h"
#include "quant/formats.h"

namespace deepinfer {
namespace {

const QuantFormat* float_format(const RawTensor& t) {
  return info(t.dtype).block_elems == 1 ? find_format(t.dtype) : nullptr;
}

float llama3_scaled(float inv_freq, const RopeScaling& s) {
  const auto context = static_cast<float>(s.original_max_position);
  const float wavelength = 2 * std::numbers::pi_v<float> / inv_freq;
  if (wavelength < context / s.high_freq_factor) return inv_freq;
  if (wavelength > context / s.low_freq_factor) return inv_freq / s.factor;
  const float smooth = (context / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
  return (1 - smooth) * inv_freq / s.factor + smooth * inv_freq;
}

}  // namespace

Tensor Vector::tensor() const {
  if (data.size() == 0) return {};
  return make_tensor(data.data(), DType::kF32, {static_cast<int64_t>(data.size() / sizeof(float))}, device);
}

Result<Vector> Loader::upload(std::span<const float> values) const {
  DI_ASSIGN(Buffer data, ops::upload(context_, values));
  return Vector{std::move(data), context_.device};
}

Result<std::vector<float>> Loader::values(const std::string& name, int64_t n) const {
  DI_ASSIGN(const RawTensor* t, weights_.get(name, {n}));
  const QuantFormat* format = float_format(*t);
  if (format == nullptr)
    return make_error(ErrorCode::kModel, "{}: got {}, expected F32, F16 or BF16 for a vector", t->origin,
                      info(t->dtype).name);
  DI_CHECK(t->data != nullptr, "{}: a vector of random values", t->origin);
  std::vector<float> v(n);
  format->dequantize(t->data, n, v.data());
  return v;
}

Result<Vector> Loader::vector(const std::string& name, int64_t n) const {
  DI_ASSIGN(const std::vector<float> v, values(name, n));
  return upload(v);
}

Result<Vector> Loader::biases(bool wanted, const std::vector<NamedRows>& parts) const {
  if (!wanted) return Vector{};
  std::vector<float> all;
  for (const auto& [name, n] : parts) {
    DI_ASSIGN(const std::vector<float> part, values(name, n.size));
    all.insert(all.end(), part.begin() + n.run.first, part.begin() + n.run.end());
  }
  return upload(all);
}

Result<LinearWeight> Loader::linear(const std::vector<NamedRows>& parts, const Extent& cols,
                                    RowOrder order) const {
  DI_ASSIGN(const LinearRows rows, read_linear(weights_, parts, cols, order, context_.pool));
  auto packed = pack(context_, rows.source);
  // Codes are copied before they are packed: of what was read for them no page need stay.
  if (!rows.coded.empty() || !rows.plain.empty()) weights_.release_pages();
  return packed;
}

Result<Vector> Loader::rope_inv_freq(const ModelConfig& config) const {
  const int half = config.head_dim / 2;
  std::vector<float> v(half);
  for (int i = 0; i < half; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(config.head_dim);
    v[i] = 1.0f / std::pow(config.rope_theta, exponent);
  }
  for (float& f : v) {
    if (config.rope_scaling.kind == RopeScaling::Kind::kLinear) f /= config.rope_scaling.factor;
    if (config.rope_scaling.kind == RopeScaling::Kind::kLlama3) f = llama3_scaled(f, config.rope_scaling);
  }
  // GGUF files carry the llama3 scaling as one factor per frequency.
  if (const RawTensor* t = weights_.find("rope_freqs.weight")) {
    const QuantFormat* format = float_format(*t);
    if (t->shape != std::vector<int64_t>{half} || format == nullptr)
      return make_error(ErrorCode::kModel, "{}: got another shape or dtype, expected F32 [{}]", t->origin,
                        half);
    std::vector<float> factors(half);
    format->dequantize(t->data, half, factors.data());
    for (int i = 0; i < half; ++i) v[i] /= factors[i];
  }
  return upload(v);
}

}  // namespace deepinfer
