// Safetensors files, single and sharded. Format: README of huggingface/safetensors: u64 header length, JSON
// header, data.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "deepinfer/result.h"
#include "model/weights.h"

namespace deepinfer {

struct SafetensorsEntry {
  std::string name;
  std::string dtype_name;      // as in the file
  std::optional<DType> dtype;  // none: a dtype of the format that is not built
  std::vector<int64_t> shape;
  uint64_t offset = 0;  // from the start of the file
  uint64_t bytes = 0;
};

// kModel unless the header (at most 100 MB) and every extent lie inside `file`, dtype x shape is the extent,
// and the tensors fill the data without overlap or hole. A dtype that the format does not know is refused
// here, because its extent cannot be checked; one that it knows and we do not build is refused when used.
Result<std::vector<SafetensorsEntry>> parse_safetensors(std::span<const std::byte> file,
                                                        const std::string& name);

// model.safetensors, or the shards that model.safetensors.index.json names.
Result<Weights> open_safetensors(const std::filesystem::path& folder);

}  // namespace deepinfer
