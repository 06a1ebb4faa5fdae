#include "support/rounding.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numbers>
#include <string_view>

#include "base/check.h"
#include "quant/formats.h"

namespace deepinfer::test {
namespace {

constexpr const char* kHead = "lm_head.weight";
constexpr const char* kEmbedding = "model.embed_tokens.weight";

float round_to_bf16(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  return std::bit_cast<float>((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u);
}

float round_to_f16(float x) {
  if (x == 0 || !std::isfinite(x)) return x;
  // Of 11 bits, or a multiple of the smallest subnormal.
  const int exponent = std::max(std::ilogb(x), -14);
  const float rounded = std::ldexp(std::nearbyint(std::ldexp(x, 10 - exponent)), exponent - 10);
  return std::fabs(rounded) > 65504.0f ? std::copysign(std::numeric_limits<float>::infinity(), x) : rounded;
}

// Uniform, of mean 0 and variance 1: the i-th of a stream.
float noise(uint64_t stream, uint64_t i) {
  uint64_t z = stream + (i + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  z ^= z >> 31;
  const float unit = static_cast<float>(z >> 40) * 0x1p-23f - 1;
  return unit * std::numbers::sqrt3_v<float>;
}

uint64_t stream_of(uint64_t seed, std::string_view name) {
  uint64_t h = 0xcbf29ce484222325u + seed * 0x9e3779b97f4a7c15u;
  for (const char c : name) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return h;
}

// Of what the rows of this tensor make.
double output_rms(std::string_view name, const Rounding& r) {
  if (name.find(".q_proj.") != name.npos) return r.q;
  if (name.find(".k_proj.") != name.npos) return r.k;
  if (name.find(".v_proj.") != name.npos) return r.v;
  return 0;
}

void add_noise(std::string_view name, const RawTensor& t, const Rounding& r, uint64_t seed, float* values) {
  const bool matrix = t.shape.size() == 2;
  const int64_t rows = t.shape[0], cols = matrix ? t.shape[1] : 1;
  const std::string_view module = name.substr(0, name.rfind('.'));  // bias and weight make one output
  const uint64_t own = stream_of(seed, name), outputs = stream_of(seed + 1, module);
  const auto out = static_cast<float>(output_rms(name, r));
  const float in = matrix && name != kEmbedding ? static_cast<float>(r.inputs) : 0;
  if (out == 0 && in == 0) return;
  for (int64_t row = 0; row < rows; ++row) {
    const float scale = 1 + out * noise(outputs, row);
    for (int64_t i = row * cols; i < (row + 1) * cols; ++i) values[i] *= scale * (1 + in * noise(own, i));
  }
}

Checkpoint without_weights(const Checkpoint& c) {
  Checkpoint out;
  out.path = c.path;
  out.config = c.config;
  out.generation = c.generation;
  return out;
}

// A float tensor beside those of `w`, for the caller to fill.
Result<float*> add(Weights& w, const std::string& name, const RawTensor& like) {
  int64_t elems = 1;
  for (const int64_t n : like.shape) elems *= n;
  const size_t bytes = static_cast<size_t>(elems) * sizeof(float);
  DI_ASSIGN(Buffer memory, Buffer::allocate(bytes));
  w.tensors[name] = {DType::kF32, like.shape, memory.data(), bytes, like.origin + " (as F32)"};
  auto* values = reinterpret_cast<float*>(memory.data());
  w.copies.push_back(std::move(memory));
  return values;
}

}  // namespace

double rounding_rms(DType dtype) {
  if (dtype == DType::kF32) return 0;
  const int bits = dtype == DType::kBF16 ? 8 : dtype == DType::kF16 ? 11 : 4;
  return std::ldexp(std::sqrt(1.0 / 3) * std::sqrt(3 / (8 * std::numbers::ln2)), -bits);
}

double int8_rms(double crest) {
  return crest / (127 * std::sqrt(12.0));
}

Rounding Rounding::of(DType activation, DType kv) {
  const double a = rounding_rms(activation), c = rounding_rms(kv);
  return {.inputs = a, .q = a, .k = c, .v = std::hypot(c, a)};
}

Result<Checkpoint> to_float(const Checkpoint& checkpoint, DType dense) {
  Checkpoint out = without_weights(checkpoint);
  for (const auto& [name, t] : checkpoint.weights.tensors) {
    const QuantFormat* format = find_format(t.dtype);
    DI_CHECK(format != nullptr && !t.shape.empty(), "{}: no format for {}", t.origin, info(t.dtype).name);
    DI_ASSIGN(float* values, add(out.weights, name, t));
    const int64_t cols = t.shape.back(), bytes = row_bytes(t.dtype, cols);
    const auto elems = static_cast<int64_t>(out.weights.tensors[name].bytes / sizeof(float));
    for (int64_t row = 0; row < elems / cols; ++row)
      format->dequantize(t.data + row * bytes, cols, values + row * cols);
    if (t.shape.size() != 2 || format->group > 1 || dense == DType::kF32) continue;
    for (int64_t i = 0; i < elems; ++i)
      values[i] = dense == DType::kF16 ? round_to_f16(values[i]) : round_to_bf16(values[i]);
  }
  return out;
}

Result<Checkpoint> with_noise(const Checkpoint& checkpoint, const Rounding& rounding, uint64_t seed) {
  Checkpoint out = without_weights(checkpoint);
  auto copy = [&](const std::string& name, const RawTensor& t) -> Result<void> {
    DI_CHECK(t.dtype == DType::kF32, "{}: got {}, expected what to_float() made", name, info(t.dtype).name);
    DI_ASSIGN(float* values, add(out.weights, name, t));
    std::memcpy(values, t.data, t.bytes);
    add_noise(name, t, rounding, seed, values);
    return {};
  };
  for (const auto& [name, t] : checkpoint.weights.tensors) DI_TRY(copy(name, t));
  if (out.config.tied_head) {  // noise in what the head reads, none in what is embedded
    const RawTensor* embedding = checkpoint.weights.find(kEmbedding);
    DI_CHECK(embedding != nullptr, "{}: {} is missing", out.path.string(), kEmbedding);
    DI_TRY(copy(kHead, *embedding));
    out.config.tied_head = false;
  }
  return out;
}

}  // namespace deepinfer::test
