#include "model/kv_scales.h"

#include <algorithm>
#include <array>
#include <boost/json/serialize.hpp>
#include <cmath>
#include <string_view>

#include "base/check.h"
#include "base/shown.h"
#include "quant/formats.h"

namespace deepinfer {
namespace {

namespace json = boost::json;

struct Names {
  std::string_view k, v;
};
constexpr std::array<Names, 5> kNames = {{{"k_scale", "v_scale"},
                                          {"attn.k_scale", "attn.v_scale"},
                                          {"k_proj.k_scale", "v_proj.v_scale"},
                                          {"k_proj.output_scale", "v_proj.output_scale"},
                                          {"kv_scale", "kv_scale"}}};

Result<float> scale_of(const RawTensor& t) {
  if (std::any_of(t.shape.begin(), t.shape.end(), [](int64_t n) { return n != 1; }))
    return make_error(
        ErrorCode::kModel,
        "{}: a scale of the KV cache has the shape [{}], expected one number a layer: scales of "
        "heads or channels are not supported",
        t.origin, fmt::join(t.shape, ", "));
  const QuantFormat* format = info(t.dtype).block_elems == 1 ? find_format(t.dtype) : nullptr;
  if (format == nullptr || t.data == nullptr)
    return make_error(ErrorCode::kModel, "{}: a scale of the KV cache is {}, expected F32, F16 or BF16",
                      t.origin, info(t.dtype).name);
  float scale = 0;
  format->dequantize(t.data, 1, &scale);
  // What is beyond would overflow when it is multiplied with the scale of the scores.
  if (!(scale >= 1e-30f && scale <= 1e30f))
    return make_error(ErrorCode::kModel,
                      "{}: a scale of the KV cache is {}, expected a number above 0 (1e-30 to 1e30): the "
                      "checkpoint is broken, or was not calibrated",
                      t.origin, scale);
  return scale;
}

}  // namespace

KvLayer KvScales::of(KvLayer layer) const {
  layer.k_scale = k;
  layer.v_scale = v;
  return layer;
}

Result<KvScales> kv_scales(const Weights& weights, const std::string& attention) {
  for (const Names& names : kNames) {
    const std::string k_name = attention + std::string(names.k), v_name = attention + std::string(names.v);
    for (const std::string& name : {k_name, v_name})
      if (const auto it = weights.unsupported.find(name); it != weights.unsupported.end())
        return make_error(ErrorCode::kModel, "{}: {}; expected F32, F16 or BF16", name, it->second);
    const RawTensor *k = weights.find(k_name), *v = weights.find(v_name);
    if (k == nullptr && v == nullptr) continue;
    if (k == nullptr || v == nullptr)
      return make_error(ErrorCode::kModel, "the scale {} of the KV cache is missing, but there is {}",
                        k == nullptr ? k_name : v_name, k == nullptr ? v_name : k_name);
    KvScales scales;
    DI_ASSIGN(scales.k, scale_of(*k));
    DI_ASSIGN(scales.v, scale_of(*v));
    return scales;
  }
  return KvScales{};
}

bool has_kv_scales(const Weights& weights) {
  for (const auto& [name, t] : weights.tensors)
    for (const Names& names : kNames)
      if (name.ends_with(".self_attn." + std::string(names.k))) return true;
  return false;
}

Result<std::string> kv_cache_scheme(const JsonObject& config) {
  DI_ASSIGN(auto quantization, config.object("quantization_config"));
  if (!quantization) {
    DI_ASSIGN(quantization, config.object("compression_config"));  // of older compressed-tensors
  }
  if (!quantization) return std::string();
  const json::value* value = quantization->find("kv_cache_scheme");
  if (value == nullptr) return std::string();
  if (value->is_string()) {  // AutoFP8
    if (value->get_string() == "static") return std::string("fp8");
    return shown(std::string(value->get_string()));
  }
  DI_ASSIGN(const JsonObject scheme, as_object(*value, config.name() + ": kv_cache_scheme"));
  DI_ASSIGN(const auto bits, scheme.integer("num_bits", 1, 64));
  DI_ASSIGN(const auto type, scheme.string("type"));
  DI_ASSIGN(const auto strategy, scheme.string("strategy"));
  DI_ASSIGN(const auto dynamic, scheme.boolean("dynamic"));
  DI_ASSIGN(const auto symmetric, scheme.boolean("symmetric"));
  if (bits == 8 && type.value_or("float") == "float" && strategy.value_or("tensor") == "tensor" &&
      !dynamic.value_or(false) && symmetric.value_or(true))
    return std::string("fp8");
  return shown(json::serialize(*value));
}

}  // namespace deepinfer
