// From a checkpoint's rows to the packed layout (layout.h), in one pass over the file's pages.
#include "backend/cpu/pack.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>

#include "backend/cpu.h"
#include "backend/cpu/layout.h"
#include "backend/cpu/linear.h"
#include "base/check.h"
#include "ops/pack_source.h"

namespace deepinfer::cpu {
namespace {

// GGUF's blocks of 32, as they stand in the file (ggml-common.h of llama.cpp).
struct BlockQ4_0 {
  uint16_t d;
  uint8_t q[16];
};
struct BlockQ4_1 {
  uint16_t d, m;
  uint8_t q[16];
};
struct BlockQ8_0 {
  uint16_t d;
  int8_t q[32];
};
static_assert(sizeof(BlockQ4_0) == 18 && sizeof(BlockQ4_1) == 20 && sizeof(BlockQ8_0) == 34);

// 16 rows; null where the group is padding.
using Rows = const std::byte* [kGroupRows];

template <class Block, class Tile>
void pack_blocks(const Rows& rows, int64_t cols, std::byte* out) {
  Tile* tile = reinterpret_cast<Tile*>(out);
  for (int64_t b = 0; b < cols / kTileK; ++b, ++tile) {
    for (int lane = 0; lane < kGroupRows; ++lane) {
      if (rows[lane] == nullptr) continue;
      Block block;  // the file's alignment is not the type's
      std::memcpy(&block, rows[lane] + b * sizeof(Block), sizeof(Block));
      tile->d[lane] = block.d;
      if constexpr (requires { tile->m; }) tile->m[lane] = block.m;
      for (size_t j = 0; j < sizeof(block.q) / 4; ++j)
        std::memcpy(&tile->q[0][j][lane * 4], &block.q[j * 4], 4);
    }
  }
}

template <class Type>
void pack_floats(const Rows& rows, int64_t cols, std::byte* out) {
  for (int lane = 0; lane < kGroupRows; ++lane) {
    if (rows[lane] == nullptr) continue;
    for (int64_t k = 0; k < cols; ++k)
      std::memcpy(out + (k * kGroupRows + lane) * sizeof(Type), rows[lane] + k * sizeof(Type), sizeof(Type));
  }
}

void pack_group(DType dtype, const Rows& rows, int64_t cols, std::byte* out) {
  switch (dtype) {
    case DType::kQ4_0:
      return pack_blocks<BlockQ4_0, TileS4<1>>(rows, cols, out);
    case DType::kQ4_1:
      return pack_blocks<BlockQ4_1, TileQ4_1>(rows, cols, out);
    case DType::kQ8_0:
      return pack_blocks<BlockQ8_0, TileS8<1>>(rows, cols, out);
    case DType::kF32:
      return pack_floats<float>(rows, cols, out);
    default:
      return pack_floats<uint16_t>(rows, cols, out);
  }
}

bool has_codes(DType dtype) {
  return dtype == DType::kU4 || dtype == DType::kU8 || dtype == DType::kF8E4M3;
}

// Of what is not codes: one layout each.
Layout layout_of(DType dtype) {
  switch (dtype) {
    case DType::kQ4_0:
      return Layout::kQ4_0;
    case DType::kQ4_1:
      return Layout::kQ4_1;
    case DType::kQ8_0:
      return Layout::kQ8_0;
    case DType::kF32:
      return Layout::kF32;
    case DType::kF16:
      return Layout::kF16;
    default:
      return Layout::kBF16;
  }
}

bool known(DType dtype) {
  return dtype == DType::kBF16 || layout_of(dtype) != Layout::kBF16 || has_codes(dtype);
}

Result<void> check(const LinearSource& s) {
  if (!known(s.dtype))
    return make_error(
        ErrorCode::kUnsupported,
        "weight type: got {}, the CPU has F32, F16, BF16, Q4_0, Q4_1, Q8_0, and U4, U8, F8_E4M3 with scales",
        info(s.dtype).name);
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max() / 8;
  return check_shape(s, {.cols = std::numeric_limits<int32_t>::max(),
                         .rows = kMost / std::max<int64_t>(s.cols, 1) - 2 * kGroupRows});
}

void pack_group(const LinearSource& s, int64_t g, std::byte* out) {
  const GroupRows at = find_rows(s, g);
  const int64_t stride = row_bytes(s.dtype, s.cols);
  Rows rows;
  for (int lane = 0; lane < kGroupRows; ++lane)
    rows[lane] = at[lane].part == nullptr
                     ? nullptr
                     : static_cast<const std::byte*>(at[lane].part->data) + at[lane].row * stride;
  pack_group(s.dtype, rows, s.cols, out);
}

Result<PackedShape> plan(Context& context, const LinearSource& s, int64_t rows) {
  if (has_codes(s.dtype)) return plan_codes(context, s, rows);
  return PackedShape{.layout = layout_of(s.dtype), .cols = s.cols, .row_groups = row_groups(rows, s.order)};
}

Result<Buffer> copy(Context& context, const void* from, size_t bytes) {
  if (context.weights == nullptr) context.weights = std::make_shared<BufferSlab>();
  DI_ASSIGN(Buffer b, context.weights->allocate(bytes));
  if (bytes != 0) std::memcpy(b.data(), from, bytes);
  return b;
}

}  // namespace

GroupRows find_rows(const LinearSource& s, int64_t g) {
  const bool paired = s.order == RowOrder::kPaired;
  size_t part = paired ? static_cast<size_t>(g % 2) : 0;
  int64_t row = (paired ? g / 2 : g) * kGroupRows;
  GroupRows rows;
  for (RowAt& at : rows) {
    while (!paired && part < s.parts.size() && row >= s.parts[part].rows) row -= s.parts[part++].rows;
    if (part < s.parts.size() && row < s.parts[part].rows) at = {&s.parts[part], row};
    ++row;
  }
  return rows;
}

Result<LinearWeight> pack_linear(Context& context, const LinearSource& source) {
  DI_TRY(check(source));
  const bool codes = has_codes(source.dtype);
  if (codes) DI_TRY(check_codes(source));
  LinearWeight w = begin_weight(source, context.device);
  DI_ASSIGN(const PackedShape shape, plan(context, source, w.rows));
  w.kernel = shape.kernel();
  if (codes) {
    DI_ASSIGN(w.column_order, copy(context, source.column_order.data(), source.column_order.size() * 4));
  }
  if (context.weights == nullptr) context.weights = std::make_shared<BufferSlab>();
  DI_ASSIGN(w.packed, context.weights->allocate(static_cast<size_t>(shape.bytes())));
  const int threads = context.pool->size();
  std::atomic<bool> numbers = true;
  const auto work = [&](int t) {
    const Share mine = share(shape.row_groups, t, threads);
    for (int64_t g = mine.first; g < mine.last; ++g) {
      std::byte* const out = w.packed.data() + g * shape.group_bytes();
      if (!codes)
        pack_group(source, g, out);
      else if (!pack_codes(source, shape, g, out, packed_scales(w, shape, g)))
        numbers = false;
    }
  };
  context.pool->run(std::ref(work));
  if (!numbers)
    return make_error(ErrorCode::kUnsupported,
                      "weight of {} x {}: got {} codes that are not a number, expected finite ones", w.rows,
                      w.cols, info(source.dtype).name);
  return w;
}

Result<Buffer> upload(Context& context, std::span<const float> values) {
  return copy(context, values.data(), values.size_bytes());
}

}  // namespace deepinfer::cpu
