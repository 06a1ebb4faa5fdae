// What the kernels of own attention get, by value, and who launches them.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "backend/cuda/attention.h"

namespace deepinfer::cuda {

struct AttendArgs {
  int32_t first_row = 0, last_row = 0;         // rows of the step that a launch serves
  int32_t heads = 0, kv_heads = 0, group = 0;  // group: query heads of a KV head
  int32_t dim_k = 0, dim_v = 0;
  int32_t block_shift = 4;  // log2 of the block size
  int32_t window = 0;
  int32_t max_blocks = 0;
  float score_scale = 1;  // from what the tensor cores give to powers of two; with a cap: of its tanh
  float cap_scale = 0;    // 2 log2(e) / soft_cap, times the scale of the scores; 0: no cap
  float out_scale = 1;
  // Stretches of keys that one block takes begin where cut_begin() says, whatever the row's length is.
  bool fixed = false;
  int32_t splits = 1;  // at most: blocks that share the keys of a tile of rows

  const void* q = nullptr;  // [T, heads, dim_k]
  void* out = nullptr;      // [T, heads, dim_v]
  const std::byte* k = nullptr;
  const std::byte* v = nullptr;
  size_t block_stride = 0;
  const int32_t* row_start = nullptr;
  const int32_t* position = nullptr;
  const int32_t* row_blocks = nullptr;

  float* parts = nullptr;      // [tokens of the launch, heads, splits, dim_v] before the division
  float* part_sum = nullptr;   // [.., 2] their maximum and sum
  int32_t* arrived = nullptr;  // of every tile of rows: blocks that have written their parts; zeros between
  float* state = nullptr;      // [T, heads, dim_v] of fixed stretches that a warp joins itself
};

// Keys that are taken together: the order of sums depends on it, so it is the same for all kernels.
inline constexpr int kKeysAtOnce = 32;
// The stretches of `fixed`: 16 of 512 keys, then 8 for every doubling of the context.
inline constexpr int32_t kCutKeys = 512, kEvenCuts = 16, kCutsPerDoubling = 8;

// Shared by host and device, so without the library.
#ifdef __CUDACC__
#define DI_HOST_DEVICE __host__ __device__
#else
#define DI_HOST_DEVICE
#endif

// Where stretch i begins.
DI_HOST_DEVICE constexpr int32_t cut_begin(int32_t i) {
  if (i < kEvenCuts) return i * kCutKeys;
  const int32_t doubling = (i - kEvenCuts) / kCutsPerDoubling, part = (i - kEvenCuts) % kCutsPerDoubling;
  return kCutKeys * kEvenCuts / kCutsPerDoubling * (kCutsPerDoubling + part) << doubling;
}

// The stretch that holds `key`.
DI_HOST_DEVICE constexpr int32_t cut_of(int32_t key) {
  constexpr int32_t kEven = kCutKeys * kEvenCuts;
  if (key < kEven) return key / kCutKeys;
  int32_t doubling = 0;
  while (key / kEven >> doubling > 1) ++doubling;
  const int32_t length = kEven / kCutsPerDoubling << doubling;
  return kEvenCuts + doubling * kCutsPerDoubling + (key - (kEven << doubling)) / length;
}

struct AttendShape {
  DType activation = DType::kBF16;
  bool fp8 = false;  // the cache
  int dim = 64;      // 64, 128 or 256: what dim_k and dim_v are padded to
};

// A warp a block. decode_shared_bytes: of a block.
size_t decode_shared_bytes(int dim);
void launch_decode(const AttendShape& shape, const AttendArgs& args, cudaStream_t stream, bool pdl);

inline constexpr int kPrefillRows = 64;  // tokens x query heads of a group that a block takes
size_t prefill_shared_bytes(int dim);
// At least as many tiles as the launch's rows have, of `tokens` tokens together: each row's last one may be a
// part of one.
inline int64_t prefill_tiles(int64_t tokens, int64_t rows, int64_t group) {
  return tokens * group / kPrefillRows + rows;
}
void launch_prefill(const AttendShape& shape, const AttendArgs& args, int64_t tokens, cudaStream_t stream,
                    bool pdl);

}  // namespace deepinfer::cuda
