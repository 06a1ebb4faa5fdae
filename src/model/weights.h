// A checkpoint on disk, opened: its tensors by Hugging Face's names, whatever the file. Memory-mapped:
// nothing is read yet.
#pragma once

#include <cstddef>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/arena.h"
#include "base/mapped_file.h"
#include "deepinfer/result.h"
#include "tensor/raw_tensor.h"

namespace deepinfer {

class QuantReader;  // quant/method.h

struct Weights {
  std::map<std::string, RawTensor> tensors;  // "model.layers.0.self_attn.q_proj.weight"
  std::vector<MappedFile> files;             // keep the data alive
  std::vector<Buffer> copies;                // of tensors that stand misaligned in their file
  // Tensors of a dtype that is not built: name -> "model.safetensors: dtype F8_E4M3". Refused when asked for.
  std::map<std::string, std::string> unsupported;
  std::shared_ptr<const QuantReader> quant;  // what made the codes in `tensors`; null: nothing did
  std::string online;                        // model.quantization to be done while loading, or empty

  // kModel when missing, of another shape, or of a dtype that is not built.
  Result<const RawTensor*> get(const std::string& name, std::vector<int64_t> shape) const;
  const RawTensor* find(const std::string& name) const;  // null when missing
  // Drops what was read of the files from this process's resident memory.
  void release_pages() const;
};

// A plain matrix that weights.online quantizes: those of the layers. Embeddings and lm_head stay as they are.
bool is_quantized_online(const Weights& weights, const std::string& name);

}  // namespace deepinfer
