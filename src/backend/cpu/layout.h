// The layouts of packed weights: one buffer serves every instruction set, one column or many.
//
// Rows stand in groups of 16 (the last one padded with zero rows). A group is one sequential stream: tiles of
// 16 rows x 32 k (or 128) for integers, [k][16 rows] for floats, [k / 2][16 rows][2] for bytes of F8. Paired
// weights alternate: group 2g holds 16 rows of the first part, group 2g + 1 the rows of the second that
// belong to them. Behind the last group stand scales of whole rows, or of rows and runs of columns, in F32.
#pragma once

#include <cstdint>

namespace deepinfer::cpu {

inline constexpr int kGroupRows = 16;
inline constexpr int kTileK = 32;

// A tile: q of `Blocks` blocks of 32 k, then what each of its rows has once for all of them. Where scales
// stand for 128 columns or more, tiles of 128 k hold fewer of them.
inline constexpr int kWide = 4;

// Nibbles. q[block][j] byte [16 rows][4]: low nibbles are k = 4j..4j+3 of the rows, high nibbles k = 16 +
// 4j.. (so a byte is one of GGUF's, moved). Value: d * (q - 8).
template <int Blocks>
struct TileS4 {
  uint8_t q[Blocks][4][64];
  uint16_t d[16];  // F16
};

// Value: d * (q - z).
template <int Blocks>
struct TileU4 {
  uint8_t q[Blocks][4][64];
  uint16_t d[16];  // F16
  uint8_t z[16];
};

// Value: d * q + m.
struct TileQ4_1 {
  uint8_t q[1][4][64];
  uint16_t d[16];  // F16
  uint16_t m[16];  // F16
};

// Bytes. q[block][j] byte [16 rows][4]: k = 4j..4j+3. Value: d * q.
template <int Blocks>
struct TileS8 {
  int8_t q[Blocks][8][64];
  uint16_t d[16];  // F16
};

// Value: d * (q - z); both 128 below the checkpoint's.
template <int Blocks>
struct TileU8 {
  int8_t q[Blocks][8][64];
  uint16_t d[16];  // F16
  int16_t z[16];
};

template <class Tile>
inline constexpr int kBlocksOf = sizeof(Tile::q) / sizeof(Tile::q[0]);
template <class Tile>
inline constexpr int kColumnsOf = kBlocksOf<Tile> * kTileK;
template <class Tile>
inline constexpr bool kBytes = sizeof(Tile::q[0]) == 8 * 64;

static_assert(sizeof(TileS4<1>) == 288 && sizeof(TileQ4_1) == 320 && sizeof(TileS8<1>) == 544);
static_assert(sizeof(TileU4<1>) == 304 && sizeof(TileU8<1>) == 576 && sizeof(TileU4<kWide>) == 1072);

enum class Layout : uint8_t {
  kF32,
  kF16,
  kBF16,
  kF8,        // bytes of E4M3; a row's values are 2^8 times what the kernels' conversion gives
  kF8Groups,  // the same with F32 scales [group][run of columns][16 rows] behind all bytes (2^8 included)
  kQ4_0,
  kQ4_0Wide,
  kQ4_1,
  kU4,
  kU4Wide,
  kQ8_0,
  kQ8_0Wide,
  kU8,
  kU8Wide,
};

// The layout of integers with the same tiles, but wide.
static constexpr Layout widened(Layout layout) {
  return static_cast<Layout>(static_cast<int>(layout) + 1);
}

static constexpr bool is_integer(Layout layout) {
  return layout >= Layout::kQ4_0;
}

}  // namespace deepinfer::cpu
