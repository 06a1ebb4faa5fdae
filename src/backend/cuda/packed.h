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
//
// U4 and U8 (ops/linear_weight.h) have their quants in the same places, the codes as they are; scales and
// zero points stand once a group, not once a unit:
//   scales  [rows / 16][groups][8 g][row g, row g + 8], F16, BF16 or F32 as in the checkpoint
//   zeros   [rows / 16][groups][8 g][row g, row g + 8], bytes of U4, 16 bits of U8; absent when all are alike
// Value: scale (code - zero). A group is a multiple of 32 columns, the last one of a row may be short. Padded
// rows have scale 0, padded columns codes that meet zeros of x.
//
// F8 keeps its codes as they are, [rows][cols] row-major, for cuBLASLt reads them too; then F32 scales,
// [groups of 128 columns, the last may be short][rows], or [rows] where a row has one scale.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/linear_weight.h"

namespace deepinfer::cuda {

inline constexpr int kTileRows = 16;
inline constexpr int kUnitCols = 64;
inline constexpr int kF8Group = 128;  // columns of F8 that share a scale, where a row has several

constexpr int64_t round_up(int64_t n, int64_t to) {
  return (n + to - 1) / to * to;
}

enum class Layout : uint8_t { kBF16, kF16, kQ4_0, kQ4_1, kQ8_0, kU4, kU8, kF8 };

constexpr bool is_quantized(Layout layout) {
  return layout >= Layout::kQ4_0;
}
// Codes: scales stand by groups.
constexpr bool has_groups(Layout layout) {
  return layout == Layout::kU4 || layout == Layout::kU8;
}
constexpr int64_t quant_unit_bytes(Layout layout) {
  return layout >= Layout::kU8 || layout == Layout::kQ8_0 ? 1024 : 512;
}
constexpr int64_t scale_unit_bytes(Layout layout) {
  return layout == Layout::kQ4_1 ? 128 : 64;
}

enum class ScaleType : uint8_t { kF16, kBF16, kF32 };

constexpr int scale_bytes(ScaleType type) {
  return type == ScaleType::kF32 ? 4 : 2;
}
constexpr int zero_bytes(Layout layout) {
  return layout == Layout::kU8 ? 2 : 1;
}

// LinearWeight::kernel on CUDA.
struct PackedForm {
  Layout layout = Layout::kBF16;
  // Codes only.
  ScaleType scale = ScaleType::kF16;
  bool has_zeros = false;
  int16_t zero = 0;  // everywhere, without zero points

  int number() const {
    return static_cast<int>(layout) | static_cast<int>(scale) << 8 | (has_zeros ? 1 << 10 : 0) | zero << 16;
  }
  static PackedForm of(int number) {
    return {.layout = static_cast<Layout>(number & 0xff),
            .scale = static_cast<ScaleType>(number >> 8 & 3),
            .has_zeros = (number >> 10 & 1) != 0,
            .zero = static_cast<int16_t>(number >> 16)};
  }
};

// What kernels read. Passed by value.
struct PackedView {
  const void* data = nullptr;    // dense values or quants
  const void* scales = nullptr;  // of quantized ones
  Layout layout = Layout::kBF16;
  int64_t rows = 0, cols = 0;  // padded: multiples of 16 and 64

  // Codes only.
  ScaleType scale = ScaleType::kF16;
  int32_t zero = 0;             // everywhere, if `zeros` is null
  int32_t groups = 0;           // of a row; F8: 1, or groups of kF8Group columns
  uint32_t inverse = 0;         // for group_of()
  const void* zeros = nullptr;  // zero points
};

PackedView packed_view(const LinearWeight& weight);

// 2^31 over the 32-column blocks of a group, rounded up.
constexpr uint32_t group_inverse(int64_t group) {
  const int64_t blocks = (group + 31) / 32;
  return static_cast<uint32_t>(((int64_t{1} << 31) + blocks - 1) / blocks);
}

// Bytes of a packed weight, and where its parts begin.
struct PackedSize {
  int64_t rows = 0, cols = 0;  // padded
  int64_t groups = 0;          // of a row of codes
  size_t scales_at = 0, zeros_at = 0, bytes = 0;

  // Of a tile of 16 rows.
  int64_t tile_data = 0, tile_scales = 0, tile_zeros = 0;
};
// group: of codes, else 0.
PackedSize packed_size(const PackedForm& form, int64_t rows, int64_t cols, RowOrder order, int64_t group);

}  // namespace deepinfer::cuda
