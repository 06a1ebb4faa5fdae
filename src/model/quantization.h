// Which form the weights take: what the checkpoint says, and what model.quantization asks for.
#pragma once

#include <boost/json/object.hpp>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

#include "deepinfer/result.h"
#include "model/checkpoint.h"

namespace deepinfer {

// quantization_config of config.json, else the file that an old checkpoint has beside it; null when neither
// is there. kModel.
Result<std::shared_ptr<const QuantReader>> read_quantization(std::string_view config_json,
                                                             const std::filesystem::path& folder);

// `wanted`: awq, gptq, fp8, int4, or none for what the checkpoint says. Plain weights are quantized while
// they are loaded (fp8, int4). kConfig, with what was found and what would work, when this cannot be had.
// Empty: what the checkpoint says, where plain weights take `preferred` (fp8, int4, or empty).
Result<void> set_quantization(Checkpoint& checkpoint, const std::string& wanted,
                              const std::string& preferred = "");

// "AWQ 4-bit, groups of 128", "int4, rounded while loading", "bfloat16".
std::string weights_text(const Checkpoint& checkpoint);

// Bytes of a tensor when it is loaded: of plain matrices that are quantized then, what remains.
size_t loaded_bytes(const Weights& weights, const std::string& name, const RawTensor& tensor);
int64_t loaded_bytes(const Weights& weights);  // of all

}  // namespace deepinfer
