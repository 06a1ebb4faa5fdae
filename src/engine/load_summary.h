// What loading a model chose, for people to read.
#pragma once

#include <cstdint>
#include <string>

namespace deepinfer {

struct LoadSummary {
  std::string device;        // "CPU: 2 threads, avx512 kernels", "cuda:0 NVIDIA L4 (compute capability 8.9)"
  std::string memory;        // of a GPU, by what it is for; empty: nothing to add
  std::string weights;       // "bfloat16", "AWQ 4-bit, groups of 128"
  int64_t weight_bytes = 0;  // as they are packed on the device
  int64_t kv_bytes = 0;      // of the whole pool
  int64_t kv_blocks = 0;
  int block_size = 0;  // tokens
  std::string kv_dtype;
};

}  // namespace deepinfer
