// Codes with scales beside them, as AWQ, GPTQ, FP8 and compressed-tensors store them, to the packed layouts.
#include <emmintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "backend/cpu/linear.h"
#include "backend/cpu/pack.h"
#include "base/check.h"
#include "tensor/half.h"

namespace deepinfer::cpu {
namespace {

constexpr int kOffsetU8 = 128;    // packed codes and zero points of U8 are signed
constexpr float kF8Scale = 256;   // 2^8, by which the kernels' conversion makes F8 too small
constexpr int kLineBytes = 64;    // of a row that are packed before the next row's
constexpr int kTopExponent = 14;  // of a row's largest scale in F16, when the row has a factor

// Zero points with which code - zero times 32 activations stays exact in F32.
struct ZeroRange {
  int first, last;
};
ZeroRange zero_range(DType dtype) {
  return dtype == DType::kU4 ? ZeroRange{0, 255} : ZeroRange{-1024, 1024};
}

float scale_of(const LinearSource& s, const LinearPart& part, int64_t at) {
  if (s.scale_dtype == DType::kF32) {
    float scale;
    std::memcpy(&scale, static_cast<const std::byte*>(part.scale) + at * 4, sizeof scale);
    return scale;
  }
  uint16_t bits;
  std::memcpy(&bits, static_cast<const std::byte*>(part.scale) + at * 2, sizeof bits);
  return s.scale_dtype == DType::kF16 ? f16_to_float(bits) : bf16_to_float(bits);
}

bool f16_holds(float scale) {
  return f16_to_float(float_to_f16(scale)) == scale;
}

// What the scales and zero points of some rows ask for.
struct Needs {
  bool wide_scale = false;  // one that F16 does not hold
  int least_zero = std::numeric_limits<int16_t>::max(), most_zero = std::numeric_limits<int16_t>::min();

  void add(const Needs& other) {
    wide_scale |= other.wide_scale;
    least_zero = std::min(least_zero, other.least_zero);
    most_zero = std::max(most_zero, other.most_zero);
  }
};

Needs needs_of(const LinearSource& s, const LinearPart& part, int64_t first, int64_t last) {
  Needs n;
  if (part.zero == nullptr) n.least_zero = n.most_zero = s.zero;
  for (int64_t i = first; part.zero != nullptr && i < last; ++i) {
    n.least_zero = std::min<int>(n.least_zero, part.zero[i]);
    n.most_zero = std::max<int>(n.most_zero, part.zero[i]);
  }
  if (s.scale_dtype != DType::kF16)
    for (int64_t i = first; i < last; ++i) n.wide_scale |= !f16_holds(scale_of(s, part, i));
  return n;
}

Needs needs_of(Context& context, const LinearSource& s) {
  const int threads = context.pool->size();
  std::vector<Needs> found(threads);
  context.pool->run([&](int t) {
    for (const LinearPart& part : s.parts) {
      const Share mine = share(part.rows * s.groups(), t, threads);
      found[t].add(needs_of(s, part, mine.first, mine.last));
    }
  });
  for (int t = 1; t < threads; ++t) found[0].add(found[t]);
  return found[0];
}

// What a row's scales are divided by before they become F16.
float row_factor(const LinearSource& s, const RowAt& at) {
  const int64_t groups = s.groups();
  if (groups == 1) return scale_of(s, *at.part, at.row);
  float largest = 0;
  for (int64_t g = 0; g < groups; ++g)
    largest = std::max(largest, std::fabs(scale_of(s, *at.part, at.row * groups + g)));
  if (largest == 0) return 1;
  // Not below the normal numbers: the inverse has to exist.
  return std::ldexp(1.0f, std::max(std::ilogb(largest) - kTopExponent, -126));
}

// The scales and zero points of 16 rows for one run of columns.
struct LaneScales {
  uint16_t d[kGroupRows] = {};
  int16_t z[kGroupRows] = {};
};

LaneScales lane_scales(const LinearSource& s, const GroupRows& rows, const float* factors, int64_t group) {
  const int64_t groups = s.groups();
  LaneScales lanes;
  for (int lane = 0; lane < kGroupRows; ++lane) {
    const auto& [part, row] = rows[lane];
    if (part == nullptr) continue;  // a scale of zero
    const int64_t at = row * groups + group;
    if (s.scale_dtype == DType::kF16)
      std::memcpy(&lanes.d[lane], static_cast<const std::byte*>(part->scale) + at * 2, 2);
    else if (factors == nullptr)
      lanes.d[lane] = float_to_f16(scale_of(s, *part, at));
    else  // of one group: the factor is the scale
      lanes.d[lane] = float_to_f16(groups == 1 ? 1.0f : scale_of(s, *part, at) / factors[lane]);
    lanes.z[lane] = part->zero != nullptr ? part->zero[at] : s.zero;
  }
  return lanes;
}

template <class Tile>
void pack_scales(const LinearSource& s, const GroupRows& rows, const float* factors, Tile* tiles) {
  for (int64_t group = 0; group < s.groups(); ++group) {
    const LaneScales lanes = lane_scales(s, rows, factors, group);
    Tile like;
    std::memcpy(like.d, lanes.d, sizeof like.d);
    if constexpr (requires { like.z; }) {
      constexpr int kOffset = kBytes<Tile> ? kOffsetU8 : 0;
      for (int lane = 0; lane < kGroupRows; ++lane)
        like.z[lane] = static_cast<std::remove_reference_t<decltype(like.z[0])>>(lanes.z[lane] - kOffset);
    }
    const int64_t first = group * s.group / kColumnsOf<Tile>;
    const int64_t last = std::min((group + 1) * s.group, s.cols) / kColumnsOf<Tile>;
    for (int64_t b = first; b < last; ++b) std::memcpy(tiles[b].d, like.d, sizeof(Tile) - offsetof(Tile, d));
  }
}

// The codes of 16 rows; where the group is padding, those of the first row (its scale is zero).
using Codes = const std::byte* [kGroupRows];

__m128i load16(const std::byte* p) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
}
void store16(void* p, __m128i v) {
  _mm_storeu_si128(static_cast<__m128i*>(p), v);
}

// 16 bytes of four rows each: dword j of all of them to to[j].
void store_dwords(const __m128i (&row)[4], int lane, const auto& to) {
  const __m128i low01 = _mm_unpacklo_epi32(row[0], row[1]), high01 = _mm_unpackhi_epi32(row[0], row[1]);
  const __m128i low23 = _mm_unpacklo_epi32(row[2], row[3]), high23 = _mm_unpackhi_epi32(row[2], row[3]);
  store16(to(0) + lane * 4, _mm_unpacklo_epi64(low01, low23));
  store16(to(1) + lane * 4, _mm_unpackhi_epi64(low01, low23));
  store16(to(2) + lane * 4, _mm_unpacklo_epi64(high01, high23));
  store16(to(3) + lane * 4, _mm_unpackhi_epi64(high01, high23));
}

// 32 nibbles in order to GGUF's: low nibbles are the first 16.
__m128i split_halves(__m128i v) {
  const __m128i mask = _mm_set1_epi8(15);
  const __m128i even = _mm_and_si128(v, mask), odd = _mm_and_si128(_mm_srli_epi16(v, 4), mask);
  const __m128i first = _mm_unpacklo_epi8(even, odd), second = _mm_unpackhi_epi8(even, odd);
  return _mm_or_si128(first, _mm_slli_epi16(second, 4));
}

template <class Tile>
void pack_block(const Codes& codes, int64_t b, int lane, Tile* tiles) {
  constexpr int kHalves = kBytes<Tile> ? 2 : 1;
  auto& q = tiles[b / kBlocksOf<Tile>].q[b % kBlocksOf<Tile>];
  for (int half = 0; half < kHalves; ++half) {
    __m128i row[4];
    for (int i = 0; i < 4; ++i) {
      const __m128i v = load16(codes[lane + i] + (b * kHalves + half) * 16);
      row[i] = kBytes<Tile> ? _mm_xor_si128(v, _mm_set1_epi8(-128)) : split_halves(v);
    }
    store_dwords(row, lane, [&](int j) { return q[half * 4 + j]; });
  }
}

template <class Tile>
void pack_tiles(const Codes& codes, int64_t cols, Tile* tiles) {
  constexpr int kChunk = kLineBytes / (kBytes<Tile> ? 32 : 16);
  const int64_t blocks = cols / kTileK;
  for (int64_t b = 0; b < blocks; b += kChunk)
    for (int lane = 0; lane < kGroupRows; lane += 4)
      for (int64_t i = b; i < std::min(b + kChunk, blocks); ++i) pack_block(codes, i, lane, tiles);
}

// 16 columns of 8 rows from `lane` on to [8 pairs of columns][16 rows][2]. Their codes that are not a number
// are set in `nan`.
void pack_f8_rows(const Codes& codes, int lane, int64_t column, std::byte* out, __m128i& nan) {
  const __m128i last = _mm_set1_epi8(0x7f);
  __m128i a[8], b[8];
  for (int i = 0; i < 8; ++i) {
    a[i] = load16(codes[lane + i] + column);
    nan = _mm_or_si128(nan, _mm_cmpeq_epi8(_mm_and_si128(a[i], last), last));
  }
  for (int i = 0; i < 4; ++i) {  // words of rows i and i + 4 side by side, then of all even and all odd rows
    b[2 * i] = _mm_unpacklo_epi16(a[i], a[i + 4]);
    b[2 * i + 1] = _mm_unpackhi_epi16(a[i], a[i + 4]);
  }
  for (int i = 0; i < 4; ++i) {
    a[2 * i] = _mm_unpacklo_epi16(b[i], b[i + 4]);
    a[2 * i + 1] = _mm_unpackhi_epi16(b[i], b[i + 4]);
  }
  for (int i = 0; i < 4; ++i) {
    b[2 * i] = _mm_unpacklo_epi16(a[i], a[i + 4]);
    b[2 * i + 1] = _mm_unpackhi_epi16(a[i], a[i + 4]);
  }
  for (int pair = 0; pair < 8; ++pair) store16(out + pair * 2 * kGroupRows + lane * 2, b[pair]);
}

bool pack_f8(const Codes& codes, int64_t cols, std::byte* out) {
  __m128i nan = _mm_setzero_si128();
  const int64_t whole = cols / 16 * 16;
  for (int64_t line = 0; line < whole; line += kLineBytes)
    for (int lane = 0; lane < kGroupRows; lane += 8)
      for (int64_t k = line; k < std::min<int64_t>(line + kLineBytes, whole); k += 16)
        pack_f8_rows(codes, lane, k, out + k * kGroupRows, nan);
  bool numbers = _mm_movemask_epi8(nan) == 0;
  for (int64_t k = whole; k < cols; ++k) {
    for (int lane = 0; lane < kGroupRows; ++lane) {
      const std::byte code = codes[lane][k];
      out[(k / 2 * kGroupRows + lane) * 2 + k % 2] = code;
      numbers &= (code & std::byte{0x7f}) != std::byte{0x7f};
    }
  }
  return numbers;
}

void pack_f8_scales(const LinearSource& s, const GroupRows& rows, float* scales) {
  const int64_t groups = s.groups();
  for (int64_t g = 0; g < groups; ++g, scales += kGroupRows)
    for (int lane = 0; lane < kGroupRows; ++lane)
      if (const auto& [part, row] = rows[lane]; part != nullptr)
        scales[lane] = kF8Scale * scale_of(s, *part, row * groups + g);
}

template <class Tile>
void pack_integers(const LinearSource& s, const GroupRows& rows, const Codes& codes, std::byte* out,
                   float* factors) {
  for (int lane = 0; factors != nullptr && lane < kGroupRows; ++lane)
    if (rows[lane].part != nullptr) factors[lane] = row_factor(s, rows[lane]);
  Tile* const tiles = reinterpret_cast<Tile*>(out);
  pack_tiles(codes, s.cols, tiles);
  pack_scales(s, rows, factors, tiles);
}

}  // namespace

Result<void> check_codes(const LinearSource& s) {
  const int64_t step = s.dtype == DType::kF8E4M3 ? 2 : kTileK;
  if (s.cols <= 0 || s.cols % step != 0)
    return make_error(ErrorCode::kUnsupported,
                      "weight columns: got {}, expected a multiple of {} ({} on a CPU)", s.cols, step,
                      info(s.dtype).name);
  if (s.group < 1 || s.group > s.cols || (s.group != s.cols && s.group % kTileK != 0))
    return make_error(ErrorCode::kUnsupported,
                      "weight groups: got {} of {} columns, expected a multiple of {}, or all", s.group,
                      s.cols, kTileK);
  if (s.scale_dtype != DType::kF16 && s.scale_dtype != DType::kBF16 && s.scale_dtype != DType::kF32)
    return make_error(ErrorCode::kUnsupported, "weight scales: got {}, expected F16, BF16 or F32",
                      info(s.scale_dtype).name);
  for (const LinearPart& part : s.parts)
    if (part.scale == nullptr)
      return make_error(ErrorCode::kUnsupported, "weight scales: got none for {} rows of {}", part.rows,
                        info(s.dtype).name);
  if (!s.column_order.empty() && std::ssize(s.column_order) != s.cols)
    return make_error(ErrorCode::kUnsupported, "weight column order: got {} entries, expected {}",
                      s.column_order.size(), s.cols);
  for (const int32_t column : s.column_order)
    if (column < 0 || column >= s.cols)
      return make_error(ErrorCode::kUnsupported, "weight column order: got column {} of {}", column, s.cols);
  return {};
}

Result<PackedShape> plan_codes(Context& context, const LinearSource& s, int64_t rows) {
  PackedShape shape{.cols = s.cols, .row_groups = row_groups(rows, s.order), .run = s.group};
  const Needs needs = needs_of(context, s);
  if (s.dtype == DType::kF8E4M3) {
    if (needs.least_zero != 0 || needs.most_zero != 0)
      return make_error(ErrorCode::kUnsupported, "weight zero points: got {} to {}, F8_E4M3 has none",
                        needs.least_zero, needs.most_zero);
    shape.layout = s.group == s.cols ? Layout::kF8 : Layout::kF8Groups;
    shape.row_scaled = s.group == s.cols;
    return shape;
  }
  const auto [first, last] = zero_range(s.dtype);
  if (needs.least_zero < first || needs.most_zero > last)
    return make_error(ErrorCode::kUnsupported,
                      "weight zero points: got {} to {}, expected {} to {} ({} on a CPU)", needs.least_zero,
                      needs.most_zero, first, last, info(s.dtype).name);
  const bool nibbles = s.dtype == DType::kU4;
  const int middle = nibbles ? 8 : kOffsetU8;
  if (needs.least_zero == middle && needs.most_zero == middle)
    shape.layout = nibbles ? Layout::kQ4_0 : Layout::kQ8_0;
  else
    shape.layout = nibbles ? Layout::kU4 : Layout::kU8;
  const bool wide = s.cols % kColumnsOf<TileU4<kWide>> == 0 &&
                    (s.group == s.cols || s.group % kColumnsOf<TileU4<kWide>> == 0);
  if (wide) shape.layout = widened(shape.layout);
  shape.row_scaled = needs.wide_scale;
  return shape;
}

bool pack_codes(const LinearSource& s, const PackedShape& shape, int64_t g, std::byte* out, float* scales) {
  const GroupRows rows = find_rows(s, g);
  const int64_t stride = row_bytes(s.dtype, s.cols);
  Codes codes;
  for (int lane = 0; lane < kGroupRows; ++lane) {
    const RowAt& at = rows[lane].part != nullptr ? rows[lane] : rows[0];
    codes[lane] = static_cast<const std::byte*>(at.part->data) + at.row * stride;
  }
  switch (shape.layout) {
    case Layout::kQ4_0:
      pack_integers<TileS4<1>>(s, rows, codes, out, scales);
      return true;
    case Layout::kQ4_0Wide:
      pack_integers<TileS4<kWide>>(s, rows, codes, out, scales);
      return true;
    case Layout::kU4:
      pack_integers<TileU4<1>>(s, rows, codes, out, scales);
      return true;
    case Layout::kU4Wide:
      pack_integers<TileU4<kWide>>(s, rows, codes, out, scales);
      return true;
    case Layout::kQ8_0:
      pack_integers<TileS8<1>>(s, rows, codes, out, scales);
      return true;
    case Layout::kQ8_0Wide:
      pack_integers<TileS8<kWide>>(s, rows, codes, out, scales);
      return true;
    case Layout::kU8:
      pack_integers<TileU8<1>>(s, rows, codes, out, scales);
      return true;
    case Layout::kU8Wide:
      pack_integers<TileU8<kWide>>(s, rows, codes, out, scales);
      return true;
    default:
      pack_f8_scales(s, rows, scales);
      return pack_f8(codes, s.cols, out);
  }
}

}  // namespace deepinfer::cpu
