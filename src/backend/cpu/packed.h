// How large the parts of a packed weight are, and where they stand. Not for the kernel files, which see
// pointers only.
#pragma once

#include <cstdint>

#include "backend/cpu/layout.h"
#include "ops/linear_weight.h"

namespace deepinfer::cpu {

// What `LinearWeight::kernel` says, and how large the parts of `LinearWeight::packed` are.
struct PackedShape {
  Layout layout = Layout::kF32;
  bool row_scaled = false;  // F32 [group][16 rows] behind all groups: y of a row is multiplied with its scale
  int64_t cols = 0;
  int64_t row_groups = 0;  // of 16 rows
  int64_t run = 0;         // kF8Groups: columns that share a scale

  int64_t runs() const { return layout == Layout::kF8Groups ? (cols + run - 1) / run : 0; }
  int64_t group_bytes() const;  // of one group's stream
  template <class Tile>
  int64_t tiles_bytes() const {
    return cols / kColumnsOf<Tile> * static_cast<int64_t>(sizeof(Tile));
  }
  int64_t scale_offset() const { return (row_groups * group_bytes() + 63) / 64 * 64; }
  int64_t group_scales() const { return kGroupRows * (layout == Layout::kF8Groups ? runs() : row_scaled); }
  int64_t bytes() const { return scale_offset() + row_groups * group_scales() * int64_t{sizeof(float)}; }

  int kernel() const { return static_cast<int>(layout) | (row_scaled ? 0x100 : 0); }
};

inline int64_t PackedShape::group_bytes() const {
  switch (layout) {
    case Layout::kF32:
      return cols * kGroupRows * 4;
    case Layout::kF16:
    case Layout::kBF16:
      return cols * kGroupRows * 2;
    case Layout::kF8:
    case Layout::kF8Groups:
      return cols * kGroupRows;
    case Layout::kQ4_0:
      return tiles_bytes<TileS4<1>>();
    case Layout::kQ4_0Wide:
      return tiles_bytes<TileS4<kWide>>();
    case Layout::kQ4_1:
      return tiles_bytes<TileQ4_1>();
    case Layout::kU4:
      return tiles_bytes<TileU4<1>>();
    case Layout::kU4Wide:
      return tiles_bytes<TileU4<kWide>>();
    case Layout::kQ8_0:
      return tiles_bytes<TileS8<1>>();
    case Layout::kQ8_0Wide:
      return tiles_bytes<TileS8<kWide>>();
    case Layout::kU8:
      return tiles_bytes<TileU8<1>>();
    case Layout::kU8Wide:
      return tiles_bytes<TileU8<kWide>>();
  }
  return 0;
}

inline int64_t row_groups(int64_t rows) {
  return (rows + kGroupRows - 1) / kGroupRows;
}

// Of rows that stand together in one weight: row_groups() of all, or of each half.
inline int64_t row_groups(int64_t rows, RowOrder order) {
  return order == RowOrder::kPaired ? 2 * row_groups(rows / 2) : row_groups(rows);
}

inline PackedShape packed_shape(const LinearWeight& w) {
  return {.layout = static_cast<Layout>(w.kernel & 0xff),
          .row_scaled = (w.kernel & 0x100) != 0,
          .cols = w.cols,
          .row_groups = row_groups(w.rows, w.order),
          .run = w.group};
}

// Scales of packed group `group`; null where there are none.
inline float* packed_scales(const LinearWeight& w, const PackedShape& shape, int64_t group) {
  if (shape.group_scales() == 0) return nullptr;
  return reinterpret_cast<float*>(w.packed.data() + shape.scale_offset()) + group * shape.group_scales();
}

}  // namespace deepinfer::cpu
