// Round to nearest: F32 rows into codes with scales (quant/codes.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/thread_pool.h"
#include "ops/linear_weight.h"

namespace deepinfer {

// value = scale * (code - zero). The scale is rounded to scale_dtype before the codes are computed with it.
//   symmetric U4, U8: scale = absmax / 7.5 (127.5), zero 8 (128), as compressed-tensors and GPTQ have it
//   asymmetric U4, U8: from min(x, 0) to max(x, 0), one zero point a group
//   F8_E4M3: scale = absmax / 448, to the nearest even, saturating
struct RoundSpec {
  DType dtype = DType::kU4;  // kU4, kU8, kF8E4M3
  int64_t group = 128;       // columns that share a scale; the last group may be short. 0: the whole row
  bool symmetric = true;     // F8 has no zero points
  DType scale_dtype = DType::kF16;

  int64_t group_of(int64_t cols) const { return group == 0 || group > cols ? cols : group; }
  int64_t groups(int64_t cols) const { return (cols + group_of(cols) - 1) / group_of(cols); }
  int16_t zero() const;  // of symmetric codes: 8, 128; 0 of F8
};

// One row x [cols], cols even: codes [row_bytes(dtype, cols)], scales [groups] of scale_dtype, zeros [groups]
// or null when symmetric. NaN and infinity give meaningless codes: refuse them before (all_finite).
void round_row(const RoundSpec& spec, const float* x, int64_t cols, std::byte* codes, void* scales,
               int16_t* zeros);

// The same with scales [groups] (and zeros, unless null) that somebody else has chosen: codes alone.
void round_row_with(const RoundSpec& spec, const float* x, int64_t cols, const void* scales,
                    const int16_t* zeros, std::byte* codes);

// A scale as it is stored, and back.
void store_scale(DType scale_dtype, float scale, void* scales, int64_t at);
float load_scale(DType scale_dtype, const void* scales, int64_t at);

bool all_finite(const float* x, int64_t n);

// A matrix in codes, owned.
struct CodedRows {
  RoundSpec spec;
  int64_t rows = 0, cols = 0;
  std::vector<std::byte> codes, scales;
  std::vector<int16_t> zeros;  // empty when symmetric

  LinearPart part() const;      // borrows
  LinearSource source() const;  // of this one part; borrows
};

// x [rows, cols], split over the pool's threads (null: this one).
CodedRows round_rows(const RoundSpec& spec, const float* x, int64_t rows, int64_t cols,
                     ThreadPool* pool = nullptr);

}  // namespace deepinfer
