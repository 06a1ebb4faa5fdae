// The layouts of packed weights: one buffer serves every instruction set, one column or many.
//
// Rows stand in groups of 16 (the last one padded with zero rows). A group is one sequential stream: tiles of
// 16 rows x 32 k for blocks of integers, [k][16 rows] for floats. Paired weights alternate: group 2g holds 16
// rows of the first part, group 2g + 1 the rows of the second that belong to them.
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

// q[j] byte [16 rows][4]: k = 4j..4j+3. Value: d * q.
struct TileQ8_0 {
  int8_t q[8][64];
  uint16_t d[16];  // F16
};

static_assert(sizeof(TileQ4_0) == 288 && sizeof(TileQ4_1) == 320 && sizeof(TileQ8_0) == 544);

}  // namespace deepinfer::cpu
