// How a weight is packed: what pack.cpp and the packers of codes share.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/cuda/packed.h"
#include "deepinfer/result.h"
#include "ops/linear_weight.h"

namespace deepinfer::cuda {

// Finds the checkpoint's row that stands in a packed one.
class RowFinder {
 public:
  explicit RowFinder(const LinearSource& s) : source_(s), stride_(row_bytes(s.dtype, s.cols)) {}

  struct Row {
    const std::byte* data = nullptr;  // null: padding
    const LinearPart* part = nullptr;
    int64_t row = 0;  // of the part
  };
  Row operator()(int64_t packed) const {
    size_t part = 0;
    int64_t row = packed;
    if (source_.order == RowOrder::kPaired) {
      part = packed % kTileRows >= 8 ? 1 : 0;
      row = packed / kTileRows * 8 + packed % 8;
      if (row >= source_.parts[part].rows) return {};
    } else {
      while (part < source_.parts.size() && row >= source_.parts[part].rows)
        row -= source_.parts[part++].rows;
      if (part == source_.parts.size()) return {};
    }
    const LinearPart& p = source_.parts[part];
    return {static_cast<const std::byte*>(p.data) + row * stride_, &p, row};
  }

 private:
  const LinearSource& source_;
  int64_t stride_;
};

struct Packing {
  const LinearSource& source;
  RowFinder find;
  PackedForm form;
  PackedSize size;
};

// Where a tile of 16 rows goes.
struct TileBytes {
  std::byte* data;
  std::byte* scales;
  std::byte* zeros;
};

// The low nibbles of bytes 0, 2, 4 and 6, side by side.
inline uint32_t even_nibbles(uint64_t bytes) {
  bytes &= 0x000f000f000f000f;
  bytes = (bytes | bytes >> 12) & 0x000000ff000000ff;
  return static_cast<uint32_t>((bytes | bytes >> 24) & 0xffff);
}

// Codes (U4, U8) that passed check_codes(). What that does not know: zero points that the kernels subtract
// exactly.
Result<void> check_codes_fit(const LinearSource& source);
PackedForm codes_form(const LinearSource& source, Layout layout);
void pack_codes(const Packing& p, int64_t tile, const TileBytes& to);

}  // namespace deepinfer::cuda
