// Packed weights in the card's memory. Rows are padded to 16 (an mma tile) and columns to 64, with zeros.
//
// Paired weights are interleaved by 8 rows: packed rows 16 i .. 16 i + 7 are rows 8 i .. 8 i + 7 of the first
// part (gate), the 8 after them the same rows of the second (up). So one 16-row mma tile holds both halves of
// a pair in one thread. All others stand in the order of their parts.
//
// F32, F16 and BF16 checkpoints become [rows][cols] of the activation dtype, row-major.
//
// Q4_0, Q4_1 and Q8_0 keep their integers and F16 scales, moved. The unit is 16 rows x 64 columns, two of
// GGUF's blocks a row; units follow each other along K, then the next 16 rows:
//   quants  [rows / 16][cols / 64][Q8: 2 blocks][32 lanes][16 bytes], the lane's mma fragments as they stand:
//           lane 4 g + t holds rows g and g + 8, columns 8 t .. 8 t + 7 of each block.
//           Q4: four words: (block 0, row g), (block 0, row g + 8), (block 1, row g), (block 1, row g + 8).
//               Column 8 t + 2 i is nibble i of a word, column 8 t + 2 i + 1 nibble i + 4.
//           Q8: 8 bytes of row g, 8 bytes of row g + 8; each byte is q + 128.
//   scales  [rows / 16][cols / 64][8 g][d of (block 0, row g), (block 0, row g + 8), (block 1, row g),
//           (block 1, row g + 8)][the same four m of Q4_1], F16.
// Values: Q4_0 d (q - 8), Q4_1 d q + m, Q8_0 d q.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/linear_weight.h"

namespace deepinfer::cuda {

inline constexpr int kTileRows = 16;
inline constexpr int kUnitCols = 64;

constexpr int64_t round_up(int64_t n, int64_t to) {
  return (n + to - 1) / to * to;
}

// LinearWeight::kernel on CUDA.
enum class Layout : int { kBF16, kF16, kQ4_0, kQ4_1, kQ8_0 };

constexpr bool is_quantized(Layout layout) {
  return layout >= Layout::kQ4_0;
}
constexpr int64_t quant_unit_bytes(Layout layout) {
  return layout == Layout::kQ8_0 ? 1024 : 512;
}
constexpr int64_t scale_unit_bytes(Layout layout) {
  return layout == Layout::kQ4_1 ? 128 : 64;
}

// What kernels read. Passed by value.
struct PackedView {
  const void* data = nullptr;    // dense values or quants
  const void* scales = nullptr;  // of quantized ones
  Layout layout = Layout::kBF16;
  int64_t rows = 0, cols = 0;  // padded: multiples of 16 and 64
};

PackedView packed_view(const LinearWeight& weight);

// Bytes of a packed weight, and where its scales begin.
struct PackedSize {
  int64_t rows = 0, cols = 0;  // padded
  size_t scales_at = 0, bytes = 0;
};
PackedSize packed_size(Layout layout, int64_t rows, int64_t cols, RowOrder order);

}  // namespace deepinfer::cuda
