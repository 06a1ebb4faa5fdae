// A block of threads for each row; neighbouring threads write neighbouring elements. Every element is
// computed by itself: 30 instructions for 2 bytes, 8 billion of them in some hundredths of a second.
#include "backend/cuda/launch.h"
#include "backend/cuda/packed.h"
#include "backend/cuda/parts.h"
#include "backend/cuda/random_fill.h"

namespace deepinfer::cuda {
namespace {

constexpr int kThreads = 256;

template <bool kHalf>
__global__ void fill_random_kernel(RandomValues values, RandomRows r) {
  const auto row = static_cast<int64_t>(blockIdx.x);
  constexpr int64_t kGroup = kTileRows / 2;
  const int64_t place = r.first_row + (r.paired ? row / kGroup * kTileRows + row % kGroup : row);
  uint16_t* out = reinterpret_cast<uint16_t*>(r.to) + place * r.stride;
  for (int64_t c = threadIdx.x; c < r.cols; c += kThreads)
    out[c] = kHalf ? random_f16(values, row * r.cols + c) : random_bf16(values, row * r.cols + c);
}

}  // namespace

void fill_random(Gpu& gpu, const RandomValues& values, const RandomRows& rows) {
  if (rows.rows == 0 || rows.cols == 0) return;
  launch({.grid = dim3(static_cast<unsigned>(rows.rows)), .block = dim3(kThreads), .stream = stream_of(gpu)},
         rows.dtype == DType::kF16 ? fill_random_kernel<true> : fill_random_kernel<false>, values, rows);
}

}  // namespace deepinfer::cuda
