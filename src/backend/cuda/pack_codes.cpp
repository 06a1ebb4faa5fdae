// Codes with scales beside them (U4, U8) into the layout of packed.h.
#include "backend/cuda/pack_codes.h"

#include <algorithm>
#include <cstring>
#include <iterator>

#include "base/check.h"

namespace deepinfer::cuda {
namespace {

constexpr int64_t kBlock = 32;

// U4 minus a zero point is exact in BF16 as 128 + code minus 128 + zero, a byte each. U8: integers up to 256
// are exact in BF16.
int16_t most_zero(DType dtype) {
  return dtype == DType::kU8 ? 256 : 127;
}

bool zero_fits(DType dtype, int16_t zero) {
  return zero >= 0 && zero <= most_zero(dtype);
}

bool has_zeros(const LinearSource& s) {
  return std::any_of(s.parts.begin(), s.parts.end(), [](const LinearPart& p) { return p.zero != nullptr; });
}

// 32 codes of a row, zeros past its end.
struct Block {
  alignas(8) std::byte codes[kBlock] = {};
};
Block block_at(DType dtype, const std::byte* row, int64_t cols, int64_t first) {
  Block b;
  const int64_t codes = std::min(kBlock, cols - first);
  const auto per_byte = dtype == DType::kU4 ? 2 : 1;
  std::memcpy(b.codes, row + first / per_byte, codes / per_byte);
  return b;
}

void put_block(Layout layout, const Block& b, int g, int half, int block, std::byte* unit) {
  for (int t = 0; t < 4; ++t) {
    std::byte* lane = unit + (4 * g + t) * 16;
    if (layout == Layout::kU8) {
      std::memcpy(lane + block * 512 + half * 8, b.codes + 8 * t, 8);
      continue;
    }
    // Eight columns in four bytes, the even ones below. Spread, so that each pair has 16 bits.
    uint32_t word;
    std::memcpy(&word, b.codes + 4 * t, 4);
    uint64_t wide = word;
    wide = (wide | wide << 16) & 0x0000ffff0000ffff;
    wide = (wide | wide << 8) & 0x00ff00ff00ff00ff;
    word = even_nibbles(wide) | even_nibbles(wide >> 4) << 16;
    std::memcpy(lane + block * 8 + half * 4, &word, 4);
  }
}

void put_groups(const Packing& p, const RowFinder::Row& row, int place, const TileBytes& to) {
  const LinearSource& s = p.source;
  const int bytes = scale_bytes(p.form.scale);
  for (int64_t group = 0; group < p.size.groups; ++group) {
    const int64_t from = row.row * p.size.groups + group, at = group * kTileRows + place;
    std::memcpy(to.scales + at * bytes, static_cast<const std::byte*>(row.part->scale) + from * bytes, bytes);
    if (!p.form.has_zeros) continue;
    const auto zero = static_cast<uint16_t>(row.part->zero != nullptr ? row.part->zero[from] : s.zero);
    std::memcpy(to.zeros + at * zero_bytes(p.form.layout), &zero, zero_bytes(p.form.layout));
  }
}

}  // namespace

Result<void> check_codes_fit(const LinearSource& s) {
  // The rest is check_codes()'s, in front of every backend.
  DI_CHECK(s.group > 0 && s.group <= s.cols && (s.group == s.cols || s.group % kBlock == 0) &&
               s.cols % 2 == 0 && (s.column_order.empty() || std::ssize(s.column_order) == s.cols),
           "codes [.., {}] in groups of {} with a column order of {}: not checked", s.cols, s.group,
           s.column_order.size());
  const auto wrong = [&](int16_t zero) {
    return make_error(ErrorCode::kUnsupported, "zero point of {}: got {}, CUDA takes 0 to {}",
                      info(s.dtype).name, zero, most_zero(s.dtype));
  };
  for (const LinearPart& part : s.parts) {
    if (part.zero == nullptr) {
      if (!zero_fits(s.dtype, s.zero)) return wrong(s.zero);
      continue;
    }
    for (int64_t i = 0; i < part.rows * s.groups(); ++i)
      if (!zero_fits(s.dtype, part.zero[i])) return wrong(part.zero[i]);
  }
  return {};
}

PackedForm codes_form(const LinearSource& s, Layout layout) {
  return {.layout = layout,
          .scale = s.scale_dtype == DType::kF32    ? ScaleType::kF32
                   : s.scale_dtype == DType::kBF16 ? ScaleType::kBF16
                                                   : ScaleType::kF16,
          .has_zeros = has_zeros(s),
          .zero = has_zeros(s) ? int16_t{0} : s.zero};
}

void pack_codes(const Packing& p, int64_t tile, const TileBytes& to) {
  std::memset(to.data, 0, p.size.tile_data);
  std::memset(to.scales, 0, p.size.tile_scales);
  std::memset(to.zeros, 0, p.size.tile_zeros);
  const int64_t cols = p.source.cols, unit_bytes = quant_unit_bytes(p.form.layout);
  for (int r = 0; r < kTileRows; ++r) {
    const RowFinder::Row row = p.find(tile * kTileRows + r);
    if (row.data == nullptr) continue;
    for (int64_t b = 0; b * kBlock < cols; ++b)
      put_block(p.form.layout, block_at(p.source.dtype, row.data, cols, b * kBlock), r % 8, r / 8,
                static_cast<int>(b % 2), to.data + b / 2 * unit_bytes);
    put_groups(p, row, r % 8 * 2 + r / 8, to);
  }
}

}  // namespace deepinfer::cuda
