// Element types, those of GGUF's quantized blocks included.
#pragma once

#include <cstdint>
#include <string_view>

namespace deepinfer {

enum class DType : uint8_t { kF32, kF16, kBF16, kI32, kI8, kU8, kQ4_0, kQ4_1, kQ8_0, kF8E4M3, kU4 };

struct DTypeInfo {
  std::string_view name;
  int block_elems;  // elements that are stored together along the last dimension
  int block_bytes;
};

// Q4_0: fp16 d, 16 bytes; Q4_1: fp16 d, fp16 m, 16 bytes; Q8_0: fp16 d, 32 bytes. A block holds 32 elements:
// ggml-common.h of llama.cpp is the specification. U4: two codes a byte, the even element in the low nibble.
const DTypeInfo& info(DType dtype);

// Bytes of `elems` elements of one row; elems is a multiple of the block.
int64_t row_bytes(DType dtype, int64_t elems);

}  // namespace deepinfer
