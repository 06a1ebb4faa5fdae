// From a checkpoint's rows to the packed layout (packed.h) in the card's memory, through pinned buffers: one
// pass over the file's pages. Random values are made there (random_fill.h).
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "backend/cuda.h"
#include "backend/cuda/packed.h"
#include "backend/cuda/parts.h"
#include "backend/cuda/random_fill.h"
#include "backend/cuda/staging.h"
#include "base/check.h"
#include "tensor/half.h"

namespace deepinfer::cuda {
namespace {

constexpr int64_t kBlock = 32;  // columns of a GGUF block

Layout layout_of(DType source, DType activation) {
  switch (source) {
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
                     s.dtype == DType::kQ4_0 || s.dtype == DType::kQ4_1 || s.dtype == DType::kQ8_0;
  if (!known)
    return make_error(ErrorCode::kUnsupported,
                      "weight type: got {}, CUDA has F32, F16, BF16, Q4_0, Q4_1 and Q8_0",
                      info(s.dtype).name);
  // A tile of 16 rows goes through one staging buffer.
  constexpr int64_t kMostCols = Staging::kSlotBytes / (4 * kTileRows);
  if (s.cols <= 0 || s.cols > kMostCols || s.cols % info(s.dtype).block_elems != 0)
    return make_error(ErrorCode::kUnsupported,
                      "weight columns: got {}, expected a multiple of {} ({}) up to {}", s.cols,
                      info(s.dtype).block_elems, info(s.dtype).name, kMostCols);
  if (s.parts.empty())
    return make_error(ErrorCode::kUnsupported, "weight: got no rows, expected at least one part");
  constexpr int64_t kMostRows = std::numeric_limits<int32_t>::max();
  int64_t rows = 0;
  for (const LinearPart& part : s.parts) {
    if ((part.data == nullptr && !part.random) || part.rows <= 0 ||
        part.rows > kMostRows - rows - 2 * kTileRows)
      return make_error(ErrorCode::kUnsupported,
                        "weight rows: got a part of {} x {}, expected one that exists", part.rows, s.cols);
    rows += part.rows;
    DI_CHECK(
        part.random.has_value() == s.parts[0].random.has_value() && (!part.random || s.dtype == DType::kBF16),
        "a weight of {} whose values are random in part, or not BF16", info(s.dtype).name);
  }
  if (s.order == RowOrder::kPaired && (s.parts.size() != 2 || s.parts[0].rows != s.parts[1].rows))
    return make_error(ErrorCode::kUnsupported,
                      "paired weight: got {} parts of {} rows first, expected two of equal size",
                      s.parts.size(), s.parts[0].rows);
  return {};
}

// Finds the checkpoint's row that stands in a packed one.
class RowFinder {
 public:
  explicit RowFinder(const LinearSource& s) : source_(s), stride_(row_bytes(s.dtype, s.cols)) {}

  // Null: padding.
  const std::byte* operator()(int64_t packed) const {
    size_t part = 0;
    int64_t row = packed;
    if (source_.order == RowOrder::kPaired) {
      part = packed % kTileRows >= 8 ? 1 : 0;
      row = packed / kTileRows * 8 + packed % 8;
      if (row >= source_.parts[part].rows) return nullptr;
    } else {
      while (part < source_.parts.size() && row >= source_.parts[part].rows)
        row -= source_.parts[part++].rows;
      if (part == source_.parts.size()) return nullptr;
    }
    return static_cast<const std::byte*>(source_.parts[part].data) + row * stride_;
  }

 private:
  const LinearSource& source_;
  int64_t stride_;
};

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

struct Packing {
  const LinearSource& source;
  RowFinder find;
  Layout layout;
  PackedSize size;
};

void pack_dense(const Packing& p, int64_t row, std::byte* out) {
  const std::byte* from = p.find(row);
  const int64_t cols = from == nullptr ? 0 : p.source.cols;
  if (cols > 0) {
    const bool same = p.source.dtype == (p.layout == Layout::kF16 ? DType::kF16 : DType::kBF16);
    if (same)
      std::memcpy(out, from, cols * 2);
    else if (p.layout == Layout::kF16)
      convert_row<__half>(p.source.dtype, from, cols, out);
    else
      convert_row<__nv_bfloat16>(p.source.dtype, from, cols, out);
  }
  std::memset(out + cols * 2, 0, (p.size.cols - cols) * 2);
}

// The low nibbles of bytes 0, 2, 4 and 6, side by side.
uint32_t even_nibbles(uint64_t bytes) {
  bytes &= 0x000f000f000f000f;
  bytes = (bytes | bytes >> 12) & 0x000000ff000000ff;
  return static_cast<uint32_t>((bytes | bytes >> 24) & 0xffff);
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
void pack_quantized(const Packing& p, int64_t tile, std::byte* quants, std::byte* scales) {
  const int64_t units = p.size.cols / kUnitCols, blocks = p.source.cols / kBlock;
  const int64_t quant_bytes = quant_unit_bytes(p.layout), scale_bytes = scale_unit_bytes(p.layout);
  std::memset(scales, 0, units * scale_bytes);
  std::memset(quants, 0, units * quant_bytes);
  const int block_bytes = info(p.source.dtype).block_bytes;
  for (int r = 0; r < kTileRows; ++r) {
    const std::byte* row = p.find(tile * kTileRows + r);
    if (row == nullptr) continue;
    for (int64_t b = 0; b < blocks; ++b)
      pack_block(p.layout, row + b * block_bytes, r % 8, r / 8, static_cast<int>(b % 2),
                 quants + b / 2 * quant_bytes, scales + b / 2 * scale_bytes);
  }
}

Result<void> send(Context& context, const Packing& p, std::byte* to) {
  Gpu& gpu = *context.gpu;
  Staging& staging = *gpu.parts().staging;
  const bool quantized = is_quantized(p.layout);
  const int64_t units = p.size.cols / kUnitCols;
  const int64_t data = quantized ? units * quant_unit_bytes(p.layout) : kTileRows * p.size.cols * 2;
  const int64_t scales = quantized ? units * scale_unit_bytes(p.layout) : 0;  // bytes of a tile
  const int64_t tiles = p.size.rows / kTileRows;
  const int64_t at_once = std::clamp<int64_t>(Staging::kSlotBytes / (data + scales), 1, tiles);
  for (int64_t first = 0; first < tiles; first += at_once) {
    const int64_t n = std::min(at_once, tiles - first);
    DI_ASSIGN(std::byte * slot, staging.next(gpu, n * (data + scales)));
    std::byte* slot_scales = slot + n * data;
    if (quantized) {
      share_work(context.pool, n, n * data, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          pack_quantized(p, first + i, slot + i * data, slot_scales + i * scales);
      });
    } else {
      share_work(context.pool, n * kTileRows, n * data, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          pack_dense(p, first * kTileRows + i, slot + i * p.size.cols * 2);
      });
    }
    gpu.copy_in(to + first * data, slot, n * data);
    if (quantized) gpu.copy_in(to + p.size.scales_at + first * scales, slot_scales, n * scales);
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
                 .dtype = p.layout == Layout::kF16 ? DType::kF16 : DType::kBF16,
                 .rows = part.rows,
                 .cols = p.source.cols,
                 .stride = p.size.cols,
                 .first_row = first,
                 .paired = paired});
    first += paired ? kTileRows / 2 : part.rows;
  }
}

void want_staging(Gpu& gpu) {
  if (gpu.parts().staging == nullptr) gpu.parts().staging = std::make_shared<Staging>();
}

}  // namespace

PackedSize packed_size(Layout layout, int64_t rows, int64_t cols, RowOrder order) {
  PackedSize s;
  s.rows = order == RowOrder::kPaired ? 2 * round_up(rows / 2, kTileRows / 2) : round_up(rows, kTileRows);
  s.cols = round_up(cols, kUnitCols);
  if (!is_quantized(layout)) {
    s.bytes = s.scales_at = static_cast<size_t>(s.rows * s.cols) * 2;
    return s;
  }
  const int64_t units = s.rows / kTileRows * (s.cols / kUnitCols);
  s.scales_at = static_cast<size_t>(units * quant_unit_bytes(layout));
  s.bytes = s.scales_at + static_cast<size_t>(units * scale_unit_bytes(layout));
  return s;
}

PackedView packed_view(const LinearWeight& w) {
  const auto layout = static_cast<Layout>(w.kernel);
  const PackedSize s = packed_size(layout, w.rows, w.cols, w.order);
  DI_CHECK(w.packed.size() == s.bytes, "a packed weight of {} bytes, expected {}", w.packed.size(), s.bytes);
  return {.data = w.packed.data(),
          .scales = is_quantized(layout) ? w.packed.data() + s.scales_at : nullptr,
          .layout = layout,
          .rows = s.rows,
          .cols = s.cols};
}

Result<LinearWeight> pack_linear(Context& context, const LinearSource& source) {
  DI_TRY(check(source));
  DI_CHECK(context.gpu != nullptr, "pack_linear: the context has no GPU");
  DI_CHECK(context.activation == DType::kBF16 || context.activation == DType::kF16,
           "pack_linear: activations of {}, expected BF16 or F16", info(context.activation).name);
  Gpu& gpu = *context.gpu;
  LinearWeight w{
      .source = source.dtype, .cols = source.cols, .order = source.order, .device = context.device};
  for (const LinearPart& part : source.parts) {
    w.part_rows.push_back(part.rows);
    w.rows += part.rows;
  }
  const Layout layout = layout_of(source.dtype, context.activation);
  w.kernel = static_cast<int>(layout);
  const Packing p{source, RowFinder(source), layout, packed_size(layout, w.rows, w.cols, w.order)};
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
