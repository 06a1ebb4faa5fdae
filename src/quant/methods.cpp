#include <algorithm>

#include "base/check.h"
#include "base/shown.h"
#include "quant/method.h"

namespace deepinfer {
namespace {

constexpr QuantMethod kMethods[] = {
    {"awq", "quant_config.json", open_awq},
    {"gptq", "quantize_config.json", open_gptq},
    {"fp8", "", open_fp8},
    {"fbgemm_fp8", "", open_fp8},
    {"compressed-tensors", "", open_compressed_tensors},
};

}  // namespace

std::span<const QuantMethod> quant_methods() {
  return kMethods;
}

Result<std::unique_ptr<QuantReader>> open_quantization(const JsonObject& config, std::string_view fallback) {
  DI_ASSIGN(const auto given, config.string("quant_method"));
  const std::string method = given.value_or(std::string(fallback));
  const auto* it = std::find_if(std::begin(kMethods), std::end(kMethods),
                                [&](const QuantMethod& m) { return m.name == method; });
  if (it != std::end(kMethods)) return it->open(config);
  std::string known;
  for (const QuantMethod& m : kMethods) known += fmt::format("{}{}", known.empty() ? "" : ", ", m.name);
  return make_error(ErrorCode::kModel,
                    "{}: quant_method is '{}', expected one of {}: use a checkpoint of one of these, or the "
                    "unquantized one (it can be quantized while loading: model.quantization fp8 or int4)",
                    config.name(), shown(method), known);
}

}  // namespace deepinfer
