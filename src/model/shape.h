// What a model of a shape holds, from its config.json alone: which tensors, of how many bytes, and what a
// token takes of the KV cache. Nothing here has values.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "deepinfer/result.h"
#include "model/checkpoint.h"
#include "model/model_config.h"
#include "tensor/kv_cache.h"

namespace deepinfer {

struct PlannedTensor {
  std::string name;  // Hugging Face's
  std::vector<int64_t> shape;
};

// The tensors of the llama family.
std::vector<PlannedTensor> planned_tensors(const ModelConfig& config);

// Of a model whose layers all look back on everything.
std::vector<KvGroupSpec> full_attention_groups(const ModelConfig& config, int layers, DType kv_dtype);

// A checkpoint that is not there: config, and tensors without data, of the dtype that config.json names (auto
// means bfloat16) or of the bits that its quantization_config does. `folder` stands in messages, and may hold
// the file that old quantized checkpoints have beside config.json. `file_bytes`: of the real weight files, 0:
// unknown; then coded matrices are as large as the files say. Loading it fails. kModel.
Result<Checkpoint> planned_checkpoint(std::string_view config_json, const std::filesystem::path& folder,
                                      int64_t file_bytes = 0);

}  // namespace deepinfer
