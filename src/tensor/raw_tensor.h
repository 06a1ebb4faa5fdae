// A tensor of a checkpoint as it stands in its file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tensor/dtype.h"
#include "tensor/random_values.h"

namespace deepinfer {

struct RawTensor {
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;       // outermost first, as in PyTorch (GGUF's order reversed)
  const std::byte* data = nullptr;  // inside a mapped file; aligned to an element (to 8 bytes for blocks)
  size_t bytes = 0;
  std::string origin;  // "model.gguf: blk.0.attn_q.weight", for messages
  // A BF16 matrix that stands nowhere: data is null, whoever needs the values makes them.
  std::optional<RandomValues> random = {};
};

}  // namespace deepinfer
