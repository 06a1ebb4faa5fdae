// quantization_config, as AutoAWQ, GPTQModel and compressed-tensors write it and transformers and vLLM read
// it.
#include <boost/json.hpp>

#include "base/check.h"
#include "base/json_file.h"
#include "quantize/output.h"

namespace deepinfer::quantize {
namespace {

namespace json = boost::json;

json::object awq(const Plan& p) {
  return {{"quant_method", "awq"}, {"bits", 4},         {"group_size", p.group},
          {"zero_point", true},    {"version", "gemm"}, {"modules_to_not_convert", nullptr}};
}

json::object gptq(const Plan& p) {
  return {{"quant_method", "gptq"},
          {"bits", 4},
          {"group_size", p.group == 0 ? -1 : p.group},
          {"desc_act", p.options.act_order},
          {"sym", true},
          {"lm_head", false},
          {"damp_percent", 0.01},
          {"true_sequential", true},
          {"static_groups", false},
          {"checkpoint_format", "gptq"},
          {"meta", {{"quantizer", "deepinfer:" DEEPINFER_VERSION}}}};
}

json::object scheme(int bits, const char* type, const char* strategy, bool dynamic) {
  return {{"num_bits", bits},     {"type", type},       {"symmetric", true},   {"group_size", nullptr},
          {"strategy", strategy}, {"dynamic", dynamic}, {"actorder", nullptr}, {"block_structure", nullptr}};
}

json::object compressed(const Plan& p) {
  const bool fp8 = p.options.method == Method::kFp8;
  json::object weights = fp8            ? scheme(8, "float", "channel", false)
                         : p.group == 0 ? scheme(4, "int", "channel", false)
                                        : scheme(4, "int", "group", false);
  if (!fp8 && p.group != 0) weights["group_size"] = p.group;
  const json::value inputs = fp8 ? json::value(scheme(8, "float", "token", true)) : json::value();
  const char* format = fp8 ? "float-quantized" : "pack-quantized";
  json::object group{{"targets", {"Linear"}},
                     {"weights", std::move(weights)},
                     {"input_activations", inputs},
                     {"output_activations", nullptr},
                     {"format", format}};
  return {{"quant_method", "compressed-tensors"},
          {"format", format},
          {"quantization_status", "compressed"},
          {"config_groups", {{"group_0", std::move(group)}}},
          {"ignore", {"lm_head"}},
          {"kv_cache_scheme", nullptr}};
}

json::object quantization_config(const Plan& p) {
  switch (p.options.method) {
    case Method::kAwq:
      return awq(p);
    case Method::kGptq:
      return gptq(p);
    default:
      return compressed(p);
  }
}

// With a line for each value, as people and diffs like it.
void print(const json::value& v, int depth, std::string& out) {
  const std::string indent(2 * (depth + 1), ' '), end(2 * depth, ' ');
  const char* between = "\n";
  if (v.is_object() && !v.get_object().empty()) {
    out += '{';
    for (const auto& [key, value] : v.get_object()) {
      out.append(between).append(indent).append(json::serialize(key)).append(": ");
      print(value, depth + 1, out);
      between = ",\n";
    }
    out.append("\n").append(end).append("}");
  } else if (v.is_array() && !v.get_array().empty()) {
    out += '[';
    for (const json::value& value : v.get_array()) {
      out.append(between).append(indent);
      print(value, depth + 1, out);
      between = ",\n";
    }
    out.append("\n").append(end).append("]");
  } else {
    out += json::serialize(v);
  }
}

}  // namespace

Result<std::string> config_of_result(const Plan& plan) {
  DI_ASSIGN(json::value value, parse_json(plan.config_json, (plan.options.model / "config.json").string()));
  json::object& config = value.as_object();
  const char* dtype = plan.dtype == DType::kF16    ? "float16"
                      : plan.dtype == DType::kBF16 ? "bfloat16"
                                                   : "float32";
  // transformers 5 writes "dtype", older ones and other programs read "torch_dtype".
  if (config.contains("dtype")) config["dtype"] = dtype;
  config["torch_dtype"] = dtype;
  config["quantization_config"] = quantization_config(plan);
  std::string text;
  print(value, 0, text);
  return text + "\n";
}

}  // namespace deepinfer::quantize
