// From a checkpoint's rows to the packed layout (packed.h) in the card's memory, through pinned buffers: one
// pass over the file's pages. Random values are made there (random_fill.h).
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "backend/cuda.h"
#include "backend/cuda/pack_codes.h"
#include "backend/cuda/pack_f8.h"
#include "backend/cuda/parts.h"
#include "backend/cuda/random_fill.h"
#include "backend/cuda/staging.h"
#include "base/check.h"
#include "ops/pack_source.h"
#include "tensor/half.h"

namespace deepinfer::cuda {
namespace {

constexpr int64_t kBlock = 32;  // columns of a GGUF block

Layout layout_of(DType source, DType activation) {
  switch (source) {
    case DType::kU4:
      return Layout::kU4;
    case DType::kU8:
      return Layout::kU8;
    case DType::kQ4_0:
      return Layout::kQ4_0;
    case DType::kQ4_1:
      return Layout::kQ4_1;
    case DType::kQ8_0:
      return Layout::kQ8_0;
    default:
      return activation == DType::kF16 ? Layout::kF16 : Layout::kBF16;
  }
}

Result<void> check(const LinearSource& s) {
  const bool known = s.dtype == DType::kF32 || s.dtype == DType::kF16 || s.dtype == DType::kBF16 ||
                     s.dtype == DType::kQ4_0 || s.dtype == DType::kQ4_1 || s.dtype == DType::kQ8_0 ||
                     s.dtype == DType::kU4 || s.dtype == DType::kU8;
  if (!known)
    return make_error(ErrorCode::kUnsupported,
                      "weight type: got {}, CUDA has F32, F16, BF16, Q4_0, Q4_1, Q8_0, U4 and U8",
                      info(s.dtype).name);
  // A tile of 16 rows goes through one staging buffer.
  constexpr int64_t kMostCols = Staging::kSlotBytes / (4 * kTileRows);
  constexpr int64_t kMostRows = std::numeric_limits<int32_t>::max() - 2 * kTileRows;
  DI_TRY(check_shape(s, {.cols = kMostCols, .rows = kMostRows, .random = true}));
  for (const LinearPart& part : s.parts)
    DI_CHECK(
        part.random.has_value() == s.parts[0].random.has_value() && (!part.random || s.dtype == DType::kBF16),
        "a weight of {} whose values are random in part, or not BF16", info(s.dtype).name);
  if (has_groups(layout_of(s.dtype, DType::kBF16))) DI_TRY(check_codes_fit(s));
  return {};
}

template <class T>
T read(const std::byte* p) {
  T v;
  std::memcpy(&v, p, sizeof(T));  // the file's alignment is not the type's
  return v;
}

float float_at(DType dtype, const std::byte* row, int64_t i) {
  if (dtype == DType::kF32) return read<float>(row + i * 4);
  const uint16_t bits = read<uint16_t>(row + i * 2);
  return dtype == DType::kF16 ? f16_to_float(bits) : bf16_to_float(bits);
}

template <class A>
void convert_row(DType dtype, const std::byte* row, int64_t cols, std::byte* out) {
  for (int64_t i = 0; i < cols; ++i) {
    A value;
    if constexpr (std::is_same_v<A, __half>)
      value = __float2half_rn(float_at(dtype, row, i));
    else
      value = __float2bfloat16_rn(float_at(dtype, row, i));
    std::memcpy(out + i * 2, &value, 2);
  }
}

void pack_dense(const Packing& p, int64_t row, std::byte* out) {
  const std::byte* from = p.find(row).data;
  const int64_t cols = from == nullptr ? 0 : p.source.cols;
  if (cols > 0) {
    const bool half = p.form.layout == Layout::kF16;
    const bool same = p.source.dtype == (half ? DType::kF16 : DType::kBF16);
    if (same)
      std::memcpy(out, from, cols * 2);
    else if (half)
      convert_row<__half>(p.source.dtype, from, cols, out);
    else
      convert_row<__nv_bfloat16>(p.source.dtype, from, cols, out);
  }
  std::memset(out + cols * 2, 0, (p.size.cols - cols) * 2);
}

// A block of GGUF: d, for Q4_1 m, then the quants.
void pack_block(Layout layout, const std::byte* block, int g, int half, int b, std::byte* quants,
                std::byte* scales) {
  const bool min = layout == Layout::kQ4_1;
  const int at = g * (min ? 8 : 4) + b * 2 + half;
  std::memcpy(scales + at * 2, block, 2);
  if (min) std::memcpy(scales + (at + 4) * 2, block + 2, 2);
  const std::byte* q = block + (min ? 4 : 2);
  for (int t = 0; t < 4; ++t) {
    std::byte* lane = quants + (4 * g + t) * 16;
    if (layout == Layout::kQ8_0) {
      const uint64_t bytes = read<uint64_t>(q + 8 * t) ^ 0x8080808080808080;
      std::memcpy(lane + b * 512 + half * 8, &bytes, 8);
      continue;
    }
    // GGUF: column c < 16 is the low nibble of byte c, column c + 16 its high nibble.
    const uint64_t columns = read<uint64_t>(q + t % 2 * 8) >> (t < 2 ? 0 : 4);
    const uint32_t word = even_nibbles(columns) | even_nibbles(columns >> 8) << 16;
    std::memcpy(lane + b * 8 + half * 4, &word, 4);
  }
}

// Tile `tile`: its quants and its scales, all units. What is padding has scale 0.
void pack_blocks(const Packing& p, int64_t tile, const TileBytes& to) {
  std::memset(to.data, 0, p.size.tile_data);
  std::memset(to.scales, 0, p.size.tile_scales);
  const Layout layout = p.form.layout;
  const int64_t quant_bytes = quant_unit_bytes(layout), scale_bytes = scale_unit_bytes(layout);
  const int block_bytes = info(p.source.dtype).block_bytes;
  for (int r = 0; r < kTileRows; ++r) {
    const std::byte* row = p.find(tile * kTileRows + r).data;
    if (row == nullptr) continue;
    for (int64_t b = 0; b < p.source.cols / kBlock; ++b)
      pack_block(layout, row + b * block_bytes, r % 8, r / 8, static_cast<int>(b % 2),
                 to.data + b / 2 * quant_bytes, to.scales + b / 2 * scale_bytes);
  }
}

void pack_tile(const Packing& p, int64_t tile, const TileBytes& to) {
  if (has_groups(p.form.layout)) return pack_codes(p, tile, to);
  if (is_quantized(p.form.layout)) return pack_blocks(p, tile, to);
  for (int r = 0; r < kTileRows; ++r) pack_dense(p, tile * kTileRows + r, to.data + r * p.size.cols * 2);
}

Result<void> send(Context& context, const Packing& p, std::byte* to) {
  Gpu& gpu = *context.gpu;
  Staging& staging = *gpu.parts().staging;
  const PackedSize& s = p.size;
  const int64_t tile_bytes = s.tile_data + s.tile_scales + s.tile_zeros, tiles = s.rows / kTileRows;
  const int64_t at_once = std::clamp<int64_t>(Staging::kSlotBytes / tile_bytes, 1, tiles);
  for (int64_t first = 0; first < tiles; first += at_once) {
    const int64_t n = std::min(at_once, tiles - first);
    DI_ASSIGN(std::byte * slot, staging.next(gpu, n * tile_bytes));
    std::byte* scales = slot + n * s.tile_data;
    std::byte* zeros = scales + n * s.tile_scales;
    share_work(context.pool, n, n * s.tile_data, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        pack_tile(p, first + i,
                  {slot + i * s.tile_data, scales + i * s.tile_scales, zeros + i * s.tile_zeros});
    });
    gpu.copy_in(to + first * s.tile_data, slot, n * s.tile_data);
    if (s.tile_scales > 0) gpu.copy_in(to + s.scales_at + first * s.tile_scales, scales, n * s.tile_scales);
    if (s.tile_zeros > 0) gpu.copy_in(to + s.zeros_at + first * s.tile_zeros, zeros, n * s.tile_zeros);
    staging.sent(gpu);
  }
  return {};
}

// What random values are made into: nothing is read and nothing copied.
void make_random(Gpu& gpu, const Packing& p, int64_t rows, std::byte* to) {
  const bool padded = p.size.rows != rows || p.size.cols != p.source.cols;
  if (padded) gpu.fill(to, 0, p.size.bytes);
  const bool paired = p.source.order == RowOrder::kPaired;
  int64_t first = 0;
  for (const LinearPart& part : p.source.parts) {
    fill_random(gpu, *part.random,
                {.to = to,
                 .dtype = p.form.layout == Layout::kF16 ? DType::kF16 : DType::kBF16,
                 .rows = part.rows,
                 .cols = p.source.cols,
                 .stride = p.size.cols,
                 .first_row = first,
                 .paired = paired});
    first += paired ? kTileRows / 2 : part.rows;
  }
}

// The order of the columns, if it is not that of x.
Result<void> send_order(Context& context, const LinearSource& source, LinearWeight& w) {
  if (source.column_order.empty()) return {};
  Gpu& gpu = *context.gpu;
  const size_t bytes = source.column_order.size() * sizeof(int32_t);
  DI_ASSIGN(w.column_order, gpu.allocate(bytes));
  DI_ASSIGN(std::byte * slot, gpu.parts().staging->next(gpu, static_cast<int64_t>(bytes)));
  std::memcpy(slot, source.column_order.data(), bytes);
  gpu.copy_in(w.column_order.data(), slot, bytes);
  gpu.parts().staging->sent(gpu);
  return {};
}

}  // namespace

PackedSize packed_size(const PackedForm& form, int64_t rows, int64_t cols, RowOrder order, int64_t group) {
  PackedSize s;
  s.rows = order == RowOrder::kPaired ? 2 * round_up(rows / 2, kTileRows / 2) : round_up(rows, kTileRows);
  s.cols = round_up(cols, kUnitCols);
  const int64_t units = s.cols / kUnitCols, tiles = s.rows / kTileRows;
  s.tile_data =
      is_quantized(form.layout) ? units * quant_unit_bytes(form.layout) : kTileRows * s.cols * int64_t{2};
  if (has_groups(form.layout)) {
    s.groups = (cols + group - 1) / group;
    s.tile_scales = s.groups * kTileRows * scale_bytes(form.scale);
    s.tile_zeros = form.has_zeros ? s.groups * kTileRows * zero_bytes(form.layout) : 0;
  } else if (form.layout == Layout::kF8) {
    s.groups = (cols + group - 1) / group;
    s.tile_scales = s.groups * kTileRows * int64_t{sizeof(float)};
  } else if (is_quantized(form.layout)) {
    s.tile_scales = units * scale_unit_bytes(form.layout);
  }
  s.scales_at = static_cast<size_t>(tiles * s.tile_data);
  s.zeros_at = s.scales_at + static_cast<size_t>(tiles * s.tile_scales);
  s.bytes = s.zeros_at + static_cast<size_t>(tiles * s.tile_zeros);
  return s;
}

PackedView packed_view(const LinearWeight& w) {
  const PackedForm form = PackedForm::of(w.kernel);
  const PackedSize s = packed_size(form, w.rows, w.cols, w.order, w.group);
  DI_CHECK(w.packed.size() == s.bytes, "a packed weight of {} bytes, expected {}", w.packed.size(), s.bytes);
  PackedView v{.data = w.packed.data(),
               .scales = is_quantized(form.layout) ? w.packed.data() + s.scales_at : nullptr,
               .layout = form.layout,
               .rows = s.rows,
               .cols = s.cols};
  v.groups = static_cast<int32_t>(s.groups);
  if (!has_groups(form.layout)) return v;
  v.scale = form.scale;
  v.zero = form.zero;
  v.inverse = group_inverse(w.group);
  if (form.has_zeros) v.zeros = w.packed.data() + s.zeros_at;
  return v;
}

Result<LinearWeight> pack_linear(Context& context, const LinearSource& source) {
  DI_CHECK(context.gpu != nullptr, "pack_linear: the context has no GPU");
  DI_CHECK(context.activation == DType::kBF16 || context.activation == DType::kF16,
           "pack_linear: activations of {}, expected BF16 or F16", info(context.activation).name);
  if (source.dtype == DType::kF8E4M3) return pack_f8(context, source);
  DI_TRY(check(source));
  Gpu& gpu = *context.gpu;
  LinearWeight w = begin_weight(source, context.device);
  PackedForm form{.layout = layout_of(source.dtype, context.activation)};
  if (has_groups(form.layout)) form = codes_form(source, form.layout);
  w.kernel = form.number();
  const Packing p{source, RowFinder(source), form, packed_size(form, w.rows, w.cols, w.order, source.group)};
  Result<Buffer> packed = gpu.allocate(p.size.bytes);
  if (!packed)
    return make_error(packed.error().code, "{}, for a weight of {} [{}, {}]", packed.error().message,
                      info(source.dtype).name, w.rows, w.cols);
  w.packed = std::move(packed).value();
  if (source.parts[0].random) {
    make_random(gpu, p, w.rows, w.packed.data());
    return w;
  }
  want_staging(gpu);
  DI_TRY(send(context, p, w.packed.data()));
  DI_TRY(send_order(context, source, w));
  return w;
}

Result<Buffer> upload(Context& context, std::span<const float> values) {
  DI_CHECK(context.gpu != nullptr, "upload: the context has no GPU");
  Gpu& gpu = *context.gpu;
  DI_ASSIGN(Buffer b, gpu.allocate(values.size_bytes()));
  want_staging(gpu);
  constexpr size_t kMost = Staging::kSlotBytes / sizeof(float);
  for (size_t first = 0; first < values.size(); first += kMost) {
    const std::span<const float> part = values.subspan(first, std::min(kMost, values.size() - first));
    DI_ASSIGN(std::byte * slot, gpu.parts().staging->next(gpu, part.size_bytes()));
    std::memcpy(slot, part.data(), part.size_bytes());
    gpu.copy_in(b.data() + first * sizeof(float), slot, part.size_bytes());
    gpu.parts().staging->sent(gpu);
  }
  return b;
}

}  // namespace deepinfer::cuda
