// y = W x for integer weights, in tiles of 16 rows x up to kIntColumns columns.
//
// Every element of y is one chain over the blocks of 32 k; inside a block the sum is exact, its zero point
// included (below 2^24: in F32 as well). AVX-512 VNNI
// multiplies 64 unsigned by signed bytes and adds four of each into 32 bits; AVX2 and SSSE3 do it by pairs in
// 16 bits: 8 products of a nibble fit (8 * 2 * 15 * 127 = 30480).
#pragma once

#include "backend/cpu/epilogue-inl.h"
#include "backend/cpu/kernels.h"
#include "backend/cpu/layout.h"
#include "backend/cpu/simd-inl.h"

namespace deepinfer::cpu {
namespace {

// Columns [c, c + N) of one panel.
struct PanelView {
  const int8_t* q;
  const float* scale;
  const float* sum;
  const int32_t* correction;
  int64_t width;  // columns of the panel
};

DI_INLINE PanelView panel_view(const Columns& x, int64_t column) {
  const int64_t panel = column / kPanel, in_panel = column % kPanel, blocks = x.k / kTileK;
  const int64_t left = x.count - panel * kPanel;
  const int64_t at = panel * kPanel * blocks + in_panel;
  return {x.q + at * kTileK, x.scale + at, x.sum + at, x.correction + at, left < kPanel ? left : kPanel};
}

DI_INLINE int32_t four_bytes(const int8_t* p) {
  return load_as<int32_t>(p);
}

// What is multiplied is moved against the value's code, by the same in every row: Columns::correction.
template <class Tile>
constexpr bool kCorrected = kBytes<Tile> || (!requires(Tile t) { t.m; } && !requires(Tile t) { t.z; });

// A block of a tile, with the first one what stands behind the last.
template <class Tile>
DI_INLINE void prefetch_block(const Tile& w, int block) {
  prefetch(w.q[block], sizeof(w.q[block]));
  if (block + 1 == kBlocksOf<Tile>) prefetch(w.d, sizeof(Tile) - sizeof(w.q));
}

#if defined(__AVX512VNNI__)

constexpr int kIntColumns = 8;

// 64 unsigned bytes for each group of four k. Signed ones are moved up by 128, their correction is -128 *
// sum.
template <class Tile>
DI_INLINE void unpack(const Tile& w, int block, __m512i (&p)[8]) {
  const auto& q = w.q[block];
  if constexpr (kBytes<Tile>) {
    DI_UNROLL for (int j = 0; j < 8; ++j) {
      p[j] = _mm512_xor_si512(_mm512_loadu_si512(q[j]), _mm512_set1_epi8(-128));
    }
  } else {
    DI_UNROLL for (int j = 0; j < 4; ++j) {
      const __m512i v = _mm512_loadu_si512(q[j]);
      p[j] = _mm512_and_si512(v, _mm512_set1_epi8(15));
      p[j + 4] = _mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(15));
    }
  }
}
template <int Blocks>
DI_INLINE __m512 zero_points(const TileU4<Blocks>& w) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w.z))));
}
template <int Blocks>
DI_INLINE __m512 zero_points(const TileU8<Blocks>& w) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w.z))));
}

// f += one block of a tile times N columns; d: the tile's scales.
template <class Tile, int N>
DI_INLINE void add_block(const Tile& w, int block, __m512 d, const PanelView& x, int64_t at, __m512 (&f)[N]) {
  __m512i p[8];
  unpack(w, block, p);
  const int8_t* q = x.q + at * kTileK;
  // One or two columns: two chains each, for the latency.
  constexpr int kChains = N <= 2 ? 2 : 1;
  __m512i i[N][2];
  DI_UNROLL for (int c = 0; c < N; ++c) {
    i[c][0] = kCorrected<Tile> ? _mm512_set1_epi32(x.correction[at + c]) : _mm512_setzero_si512();
    i[c][1] = _mm512_setzero_si512();
  }
  DI_UNROLL for (int j = 0; j < 8; ++j) DI_UNROLL for (int c = 0; c < N; ++c) {
    __m512i& sum = i[c][j % kChains];
    sum = _mm512_dpbusd_epi32(sum, p[j], _mm512_set1_epi32(four_bytes(q + c * kTileK + 4 * j)));
  }
  DI_UNROLL for (int c = 0; c < N; ++c) {
    if constexpr (kChains == 2) i[c][0] = _mm512_add_epi32(i[c][0], i[c][1]);
    if constexpr (requires { w.m; }) {
      const __m512 m = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w.m)));
      f[c] = _mm512_fmadd_ps(m, _mm512_set1_ps(x.sum[at + c]), f[c]);
    }
    __m512 dots = _mm512_cvtepi32_ps(i[c][0]);
    if constexpr (requires { w.z; })
      dots = _mm512_fnmadd_ps(zero_points(w), _mm512_set1_ps(x.sum[at + c]), dots);
    f[c] = _mm512_fmadd_ps(dots, _mm512_mul_ps(d, _mm512_set1_ps(x.scale[at + c])), f[c]);
  }
}

template <class Tile, int N>
static void int_tile(const Tile* w, int64_t blocks, const PanelView& x, float* y) {
  __m512 f[N];
  DI_UNROLL for (int c = 0; c < N; ++c) f[c] = _mm512_setzero_ps();
  for (int64_t b = 0; b < blocks; ++w) {
    const __m512 d = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w->d)));
    DI_NO_UNROLL for (int block = 0; block < kBlocksOf<Tile>; ++block, ++b) {
      prefetch_block(*w, block);
      add_block(*w, block, d, x, b * x.width, f);
    }
  }
  DI_UNROLL for (int c = 0; c < N; ++c) _mm512_storeu_ps(y + c * kGroupRows, f[c]);
}

#else

#if defined(__AVX2__)
constexpr int kIntColumns = 4;
using Bytes = __m256i;
DI_INLINE Bytes zero_bytes() {
  return _mm256_setzero_si256();
}
DI_INLINE Bytes set_bytes(char v) {
  return _mm256_set1_epi8(v);
}
DI_INLINE Bytes set_words(short v) {
  return _mm256_set1_epi16(v);
}
DI_INLINE Bytes set_dwords(int32_t v) {
  return _mm256_set1_epi32(v);
}
DI_INLINE Bytes high_nibbles(Bytes v) {
  return _mm256_and_si256(_mm256_srli_epi16(v, 4), set_bytes(15));
}
DI_INLINE Bytes bit_and(Bytes a, Bytes b) {
  return _mm256_and_si256(a, b);
}
DI_INLINE Bytes pairs(Bytes u, Bytes s) {
  return _mm256_maddubs_epi16(u, s);
}
DI_INLINE Bytes add16(Bytes a, Bytes b) {
  return _mm256_add_epi16(a, b);
}
DI_INLINE Bytes add32(Bytes a, Bytes b) {
  return _mm256_add_epi32(a, b);
}
DI_INLINE Bytes widen(Bytes a) {
  return _mm256_madd_epi16(a, set_words(1));
}
DI_INLINE Bytes abs8(Bytes a) {
  return _mm256_abs_epi8(a);
}
DI_INLINE Bytes sign8(Bytes a, Bytes b) {
  return _mm256_sign_epi8(a, b);
}
#else
constexpr int kIntColumns = 2;
using Bytes = __m128i;
DI_INLINE Bytes zero_bytes() {
  return _mm_setzero_si128();
}
DI_INLINE Bytes set_bytes(char v) {
  return _mm_set1_epi8(v);
}
DI_INLINE Bytes set_words(short v) {
  return _mm_set1_epi16(v);
}
DI_INLINE Bytes set_dwords(int32_t v) {
  return _mm_set1_epi32(v);
}
DI_INLINE Bytes high_nibbles(Bytes v) {
  return _mm_and_si128(_mm_srli_epi16(v, 4), set_bytes(15));
}
DI_INLINE Bytes bit_and(Bytes a, Bytes b) {
  return _mm_and_si128(a, b);
}
DI_INLINE Bytes pairs(Bytes u, Bytes s) {
  return _mm_maddubs_epi16(u, s);
}
DI_INLINE Bytes add16(Bytes a, Bytes b) {
  return _mm_add_epi16(a, b);
}
DI_INLINE Bytes add32(Bytes a, Bytes b) {
  return _mm_add_epi32(a, b);
}
DI_INLINE Bytes widen(Bytes a) {
  return _mm_madd_epi16(a, set_words(1));
}
DI_INLINE Bytes abs8(Bytes a) {
  return _mm_abs_epi8(a);
}
DI_INLINE Bytes sign8(Bytes a, Bytes b) {
  return _mm_sign_epi8(a, b);
}
#endif

// A register's share of the 16 rows.
constexpr int kParts = 64 / sizeof(Bytes);
constexpr int kPartRows = kGroupRows / kParts;
using PartF32 = float __attribute__((vector_size(sizeof(Bytes))));
using PartI32 = int32_t __attribute__((vector_size(sizeof(Bytes))));

DI_INLINE PartF32 part_of_f16(const uint16_t* h, int part) {
#if defined(__F16C__)
  return reinterpret_cast<PartF32>(
      _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(h + part * kPartRows))));
#else
  const F32 all = f16_to_f32(load_as<U16>(h));
  return load_as<PartF32>(reinterpret_cast<const char*>(&all) + part * sizeof(PartF32));
#endif
}

template <int Blocks>
DI_INLINE PartF32 zero_points(const TileU4<Blocks>& w, int part) {
  using Part = uint8_t __attribute__((vector_size(kPartRows)));
  return __builtin_convertvector(load_as<Part>(w.z + part * kPartRows), PartF32);
}
template <int Blocks>
DI_INLINE PartF32 zero_points(const TileU8<Blocks>& w, int part) {
  using Part = int16_t __attribute__((vector_size(2 * kPartRows)));
  return __builtin_convertvector(load_as<Part>(w.z + part * kPartRows), PartF32);
}

// The exact dot products of one block for a register's rows and N columns.
template <class Tile, int N>
DI_INLINE void nibble_dots(const Tile& w, int block, int part, const PanelView& x, int64_t at,
                           Bytes (&i)[N]) {
  const size_t offset = part * sizeof(Bytes);
  DI_UNROLL for (int c = 0; c < N; ++c) i[c] = zero_bytes();
  DI_UNROLL for (int j = 0; j < 4; ++j) {
    const Bytes v = load_as<Bytes>(w.q[block][j] + offset);
    const Bytes low = bit_and(v, set_bytes(15)), high = high_nibbles(v);
    DI_UNROLL for (int c = 0; c < N; ++c) {
      const int8_t* q = x.q + (at + c) * kTileK;
      const Bytes a = pairs(low, set_dwords(four_bytes(q + 4 * j)));
      const Bytes b = pairs(high, set_dwords(four_bytes(q + 4 * j + 16)));
      i[c] = add16(i[c], add16(a, b));
    }
  }
  DI_UNROLL for (int c = 0; c < N; ++c) {
    i[c] = widen(i[c]);
    if constexpr (kCorrected<Tile>) i[c] = add32(i[c], set_dwords(x.correction[at + c]));
  }
}

// |w| * (sign of w) x: a pair of products of bytes fits 16 bits, not more.
template <class Tile, int N>
DI_INLINE void byte_dots(const Tile& w, int block, int part, const PanelView& x, int64_t at, Bytes (&i)[N]) {
  const size_t offset = part * sizeof(Bytes);
  DI_UNROLL for (int c = 0; c < N; ++c) i[c] = zero_bytes();
  DI_UNROLL for (int j = 0; j < 8; ++j) {
    const Bytes v = load_as<Bytes>(w.q[block][j] + offset);
    const Bytes magnitude = abs8(v);
    DI_UNROLL for (int c = 0; c < N; ++c) {
      const int8_t* q = x.q + (at + c) * kTileK;
      i[c] = add32(i[c], widen(pairs(magnitude, sign8(set_dwords(four_bytes(q + 4 * j)), v))));
    }
  }
}

// f += one block of a tile times N columns.
template <class Tile, int N>
DI_INLINE void add_block(const Tile& w, int block, const PanelView& x, int64_t at, PartF32 (&f)[N][kParts]) {
  DI_UNROLL for (int p = 0; p < kParts; ++p) {
    Bytes i[N];
    if constexpr (kBytes<Tile>)
      byte_dots(w, block, p, x, at, i);
    else
      nibble_dots(w, block, p, x, at, i);
    const PartF32 d = part_of_f16(w.d, p);
    DI_UNROLL for (int c = 0; c < N; ++c) {
      if constexpr (requires { w.m; }) f[c][p] = part_of_f16(w.m, p) * x.sum[at + c] + f[c][p];
      PartF32 dots = __builtin_convertvector(reinterpret_cast<PartI32>(i[c]), PartF32);
      if constexpr (requires { w.z; }) dots = dots - zero_points(w, p) * x.sum[at + c];
      const PartF32 scale = d * x.scale[at + c];
      f[c][p] = dots * scale + f[c][p];
    }
  }
}

template <class Tile, int N>
static void int_tile(const Tile* w, int64_t blocks, const PanelView& x, float* y) {
  PartF32 f[N][kParts];
  DI_UNROLL for (int c = 0; c < N; ++c) DI_UNROLL for (int p = 0; p < kParts; ++p) f[c][p] = PartF32{};
  for (int64_t b = 0; b < blocks; ++w) {
    DI_NO_UNROLL for (int block = 0; block < kBlocksOf<Tile>; ++block, ++b) {
      prefetch_block(*w, block);
      add_block(*w, block, x, b * x.width, f);
    }
  }
  DI_UNROLL for (int c = 0; c < N; ++c) {
    DI_UNROLL for (int p = 0; p < kParts; ++p) store_as(y + c * kGroupRows + p * kPartRows, f[c][p]);
  }
}

#endif

// y [n][16] of columns [column, column + n).
template <class Tile>
static void any_int_tile(const Tile* w, const Columns& x, int64_t column, int64_t n, float* y) {
  const int64_t blocks = x.k / kTileK;
  const PanelView view = panel_view(x, column);
  switch (n) {
    case 1:
      return int_tile<Tile, 1>(w, blocks, view, y);
    case 2:
      return int_tile<Tile, 2>(w, blocks, view, y);
    case 3:
      if constexpr (kIntColumns >= 3) return int_tile<Tile, 3>(w, blocks, view, y);
      break;
    case 4:
      if constexpr (kIntColumns >= 4) return int_tile<Tile, 4>(w, blocks, view, y);
      break;
    case 5:
      if constexpr (kIntColumns >= 5) return int_tile<Tile, 5>(w, blocks, view, y);
      break;
    case 6:
      if constexpr (kIntColumns >= 6) return int_tile<Tile, 6>(w, blocks, view, y);
      break;
    case 7:
      if constexpr (kIntColumns >= 7) return int_tile<Tile, 7>(w, blocks, view, y);
      break;
    case 8:
      if constexpr (kIntColumns >= 8) return int_tile<Tile, 8>(w, blocks, view, y);
      break;
    default:
      break;
  }
}

// Row groups outside, columns inside: a group's weights stay in the first-level cache, the columns in the
// second.
template <class Tile>
static void int_matmul(const MatmulArgs& a, const Columns& x, int64_t first, int64_t last) {
  const int64_t tiles = x.k / kColumnsOf<Tile>;
  const bool gated = a.epilogue == Epilogue::kGated;
  alignas(64) float y[kIntColumns * kGroupRows], up[kIntColumns * kGroupRows];
  static_assert(kPanel % kIntColumns == 0);  // a tile stays inside a panel
  for (int64_t g = first; g < last; ++g) {
    const Tile* w = reinterpret_cast<const Tile*>(a.weight) + (gated ? 2 * g : g) * tiles;
    for (int64_t column = 0; column < x.count; column += kIntColumns) {
      const int64_t left = x.count - column, n = left < kIntColumns ? left : kIntColumns;
      any_int_tile(w, x, column, n, y);
      if (gated) any_int_tile(w + tiles, x, column, n, up);
      for (int64_t c = 0; c < n; ++c)
        finish(a, g * kGroupRows, column + c, y + c * kGroupRows, up + c * kGroupRows);
    }
  }
}

}  // namespace
}  // namespace deepinfer::cpu
