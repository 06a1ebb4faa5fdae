// Copies of whole KV blocks. Grid: [pieces of a block, copies of a launch]. The copies travel as the kernel's
// argument, so no memory of the host must outlive the call.
#include <algorithm>

#include "backend/cuda.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/parts.h"
#include "backend/cuda/ptx.h"
#include "base/check.h"

namespace deepinfer::cuda {
namespace {

constexpr int kThreads = 256;
constexpr size_t kPieceBytes = size_t{kThreads} * 16 * 4;
constexpr int kCopiesAtOnce = 64;

struct CopyArgs {
  std::byte* base = nullptr;
  size_t block_bytes = 0;  // a multiple of 16
  BlockCopy copies[kCopiesAtOnce];
};

__global__ void __launch_bounds__(kThreads) copy_kernel(const CopyArgs a) {
  grid_dependency_wait();
  grid_launch_dependents();
  const BlockCopy copy = a.copies[blockIdx.y];
  const std::byte* const from = a.base + a.block_bytes * copy.src;
  std::byte* const to = a.base + a.block_bytes * copy.dst;
  const size_t begin = blockIdx.x * kPieceBytes, end = minimum(begin + kPieceBytes, a.block_bytes);
  for (size_t at = begin + threadIdx.x * 16; at < end; at += kThreads * 16)
    store_128(to + at, load_128(from + at));
}

// Whether `copy` must see what an earlier one of the launch wrote, or must not overwrite what one reads.
bool depends(std::span<const BlockCopy> earlier, const BlockCopy& copy) {
  return std::any_of(earlier.begin(), earlier.end(), [&](const BlockCopy& e) {
    return e.dst == copy.src || e.dst == copy.dst || e.src == copy.dst;
  });
}

}  // namespace

void copy_blocks(Context& context, const KvCache& cache, std::span<const BlockCopy> copies) {
  CopyArgs args{.base = cache.layer(0, 0).base,
                .block_bytes = KvCache::block_bytes(cache.groups(), cache.block_size()),
                .copies = {}};
  int count = 0;
  const auto flush = [&] {
    if (count == 0) return;
    launch({.grid = dim3(static_cast<unsigned>((args.block_bytes + kPieceBytes - 1) / kPieceBytes), count),
            .block = dim3(kThreads),
            .stream = stream_of(context),
            .pdl = context.gpu->pdl},
           copy_kernel, args);
    count = 0;
  };
  for (const BlockCopy& c : copies) {
    DI_CHECK(c.src >= 0 && c.src < cache.num_blocks() && c.dst >= 0 && c.dst < cache.num_blocks(),
             "copy of block {} to {}, the cache has {}", c.src, c.dst, cache.num_blocks());
    if (c.src == c.dst) continue;
    if (count == kCopiesAtOnce || depends({args.copies, static_cast<size_t>(count)}, c)) flush();
    args.copies[count++] = c;
  }
  flush();
}

}  // namespace deepinfer::cuda
