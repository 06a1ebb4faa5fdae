// Writes safetensors files. Format: README of huggingface/safetensors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "deepinfer/result.h"

namespace deepinfer::quantize {

struct OutTensor {
  std::string name;
  std::string dtype;  // as the format calls it: "I32", "F16", "BF16", "F8_E4M3"
  std::vector<int64_t> shape;
  std::vector<std::byte> data;
};

// A tensor that stands somewhere else.
struct TensorExtent {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;
  const std::byte* data = nullptr;
  uint64_t bytes = 0;
};
TensorExtent extent_of(const OutTensor& tensor);

// A file that is there complete or not at all: written beside its place, then renamed. kModel with the path
// and the reason.
Result<void> write_tensors(const std::filesystem::path& path, const std::vector<TensorExtent>& tensors);
Result<void> write_bytes(const std::filesystem::path& path, const void* data, size_t bytes);

// model.safetensors, or numbered shards of at most `shard_bytes` (but one tensor at least) with
// model.safetensors.index.json.
Result<void> write_shards(const std::filesystem::path& folder, const std::vector<TensorExtent>& tensors,
                          uint64_t shard_bytes);

}  // namespace deepinfer::quantize
