// A small paged attention on the device with random contents, for the self-check and for tests: pages in any
// order, of a pool that a second layer shares; NaN wherever no kernel may look.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "backend/cuda/attention.h"
#include "backend/cuda_gpu.h"
#include "base/arena.h"
#include "deepinfer/result.h"

namespace deepinfer::cuda {

struct SampleRow {
  int context = 0;  // positions before this step
  int tokens = 1;
  bool padding = false;  // one token of position -1
};

struct SampleShape {
  int heads = 8, kv_heads = 2, dim = 128;
  int block_size = 16, window = 0;
  DType activation = DType::kBF16, kv_dtype = DType::kBF16;
  float k_scale = 1, v_scale = 1;
  std::vector<SampleRow> rows;  // those of one token first
  uint64_t seed = 1;
};

// Owner: whoever made it, before the Gpu goes.
class AttentionSample {
 public:
  // Waits for the device. kMemory.
  static Result<std::unique_ptr<AttentionSample>> make(Gpu& gpu, const SampleShape& shape);

  // With `out` full of NaN; the pointers live as long as this.
  const PagedAttention& attention() const { return attention_; }
  void clear_out(Gpu& gpu);

  // Waits for the device: of tokens [first, last), [heads, dim] each.
  Result<std::vector<float>> read_out(Gpu& gpu, int first, int last);

  int decode_rows() const { return batch_.decode_rows; }
  int tokens() const { return attention_.tokens; }

 private:
  Buffer memory_;
  DeviceBatch batch_;
  PagedAttention attention_;
};

}  // namespace deepinfer::cuda
