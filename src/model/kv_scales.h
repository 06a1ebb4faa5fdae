// What a checkpoint says about its KV cache: whether it was made for an FP8 one, and the scales of K and V.
#pragma once

#include <string>

#include "base/json_file.h"
#include "deepinfer/result.h"
#include "model/weights.h"
#include "tensor/kv_cache.h"

namespace deepinfer {

// One for K and one for V of a layer: a value is a stored one times it.
struct KvScales {
  float k = 1, v = 1;
  KvLayer of(KvLayer layer) const;  // the layer, with them
};

// Of the layer whose attention's weights are named `attention` + ...: "model.layers.0.self_attn.". 1 and 1
// when the checkpoint has none. Names: k_scale and v_scale (compressed-tensors), behind k_proj and v_proj
// (ModelOpt), k_proj.output_scale and v_proj.output_scale (older compressed-tensors), kv_scale for both
// (AutoFP8). kModel for one without the other, another shape than one number, and values that are no scales.
Result<KvScales> kv_scales(const Weights& weights, const std::string& attention);

// Whether any layer has scales.
bool has_kv_scales(const Weights& weights);

// The kv_cache_scheme of config.json's quantization_config: "fp8" (e4m3, a scale a layer), empty when there
// is none, else the scheme in words, which this build has no cache for.
Result<std::string> kv_cache_scheme(const JsonObject& config);

}  // namespace deepinfer
