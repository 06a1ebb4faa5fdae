// The layouts of packed weights: one buffer serves every instruction set, one column or many.
//
// Rows stand in groups of 16 (the last one padded with zero rows). A group is one sequential stream: tiles of
// 16 rows x 32 k for integers, [k][16 rows] for floats, [k / 2][16 rows][2] for bytes of F8. Paired weights
// alternate: group 2g holds 16 rows of the first part, group 2g + 1 the rows of the second that belong to
// them. Behind the last group stand scales of whole rows, or of rows and runs of columns, in F32.
#pragma once

#include <cstdint>

namespace deepinfer::cpu {

inline constexpr int kGroupRows = 16;
inline constexpr int kTileK = 32;

// q[j] byte [16 rows][4]: low nibbles are k = 4j..4j+3 of the rows, high nibbles k = 16 + 4j..
// (so a byte is one of GGUF's, moved). Value: d * (q - 8).
struct TileQ4_0 {
  uint8_t q[4][64];
  uint16_t d[16];  // F16
};

// Value: d * q + m.
struct TileQ4_1 {
  uint8_t q[4][64];
  uint16_t d[16];  // F16
  uint16_t m[16];  // F16
};

// Value: d * (q - z).
struct TileU4 {
  uint8_t q[4][64];
  uint16_t d[16];  // F16
  uint8_t z[16];
};

// q[j] byte [16 rows][4]: k = 4j..4j+3. Value: d * q.
struct TileQ8_0 {
  int8_t q[8][64];
  uint16_t d[16];  // F16
};

// Value: d * (q - z); both 128 below the checkpoint's.
struct TileU8 {
  int8_t q[8][64];
  uint16_t d[16];  // F16
  int16_t z[16];
};

static_assert(sizeof(TileQ4_0) == 288 && sizeof(TileQ4_1) == 320 && sizeof(TileQ8_0) == 544);
static_assert(sizeof(TileU4) == 304 && sizeof(TileU8) == 576);

enum class Layout : uint8_t {
  kF32,
  kF16,
  kBF16,
  kF8,        // bytes of E4M3; a row's values are 2^8 times what the kernels' conversion gives
  kF8Groups,  // the same with F32 scales [group][run of columns][16 rows] behind all bytes (2^8 included)
  kQ4_0,
  kQ4_1,
  kQ8_0,
  kU4,
  kU8,
};

static constexpr bool is_integer(Layout layout) {
  return layout >= Layout::kQ4_0;
}

}  // namespace deepinfer::cpu
