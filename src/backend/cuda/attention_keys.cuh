// Tiles of keys and values on their way from the paged cache into shared memory: cp.async into one of two
// stages while the other one is in use. An fp8 cache arrives as it is and is converted when its turn comes.
//
// Positions outside of [first, end) become zeros and are not read, wherever their block is: what stands
// there, NaN included, must not reach a product.
#pragma once

#include "backend/cuda/attention_args.h"
#include "backend/cuda/attention_tile.cuh"
#include "backend/cuda/ptx.h"

namespace deepinfer::cuda {

// Of one row and KV head.
struct KeyRange {
  const int32_t* blocks = nullptr;  // of the row, by position
  int kv_head = 0;
  int first = 0, end = 0;
};

// kThreads: 32 (a warp of its own) or a whole block of as many.
template <class T, int D, bool kFp8, int kKeys, int kThreads>
class KeyStages {
 public:
  static constexpr int kElements = kKeys * D;  // of a tile
  static constexpr int kTileBytes = kElements * (kFp8 ? 1 : 2);
  // Stages of K and V; then, for fp8, one tile of each converted.
  static constexpr int kSharedBytes = 4 * kTileBytes + (kFp8 ? 2 * kElements * 2 : 0);

  __device__ KeyStages(const AttendArgs& args, const KeyRange& range, unsigned char* shared)
      : args_(args), range_(range), shared_(shared) {
    if constexpr (!kFp8) {
      // Columns past the head's end: never copied, so zeros once and for all.
#pragma unroll
      for (int stage = 0; stage < 2; ++stage) {
        clear_padding(tile(stage, 0), args.dim_k);
        clear_padding(tile(stage, 1), args.dim_v);
      }
    }
  }

  // Starts the copy of keys [key, key + kKeys), a multiple of 16; a group of cp.async.
  __device__ void start(int stage, int key) {
    copy(stage, 0, args_.k, args_.dim_k, key);
    copy(stage, 1, args_.v, args_.dim_v, key);
  }

  // After the stage has arrived for all threads. Ends with a barrier if it writes.
  __device__ void convert(int stage, int key) {
    if constexpr (kFp8) {
      convert(stage, 0, args_.dim_k, key);
      convert(stage, 1, args_.dim_v, key);
      barrier();
    }
  }

  __device__ const T* keys(int stage) const { return operand(stage, 0); }
  __device__ const T* values(int stage) const { return operand(stage, 1); }

  __device__ static void barrier() {
    if constexpr (kThreads == kWarp)
      sync_warp();
    else
      sync_threads();
  }

 private:
  static constexpr int kChunks = D / 8;                // of a key's row of T
  static constexpr int kKeyStep = kThreads / kChunks;  // keys that all threads copy at once
  static constexpr int kUnrolled = D == 256 ? 2 : 8;   // copies whose addresses are at hand at once
  static_assert(kThreads % kChunks == 0 && 16 % kKeyStep == 0);

  __device__ static int thread() { return static_cast<int>(threadIdx.x) % kThreads; }
  __device__ unsigned char* raw(int stage, int which) const {
    return shared_ + (2 * stage + which) * kTileBytes;
  }
  __device__ T* tile(int stage, int which) const { return reinterpret_cast<T*>(raw(stage, which)); }
  __device__ T* converted(int which) const {
    return reinterpret_cast<T*>(shared_ + 4 * kTileBytes) + which * kElements;
  }
  __device__ const T* operand(int stage, int which) const {
    return kFp8 ? converted(which) : tile(stage, which);
  }
  __device__ bool wanted(int key) const { return key >= range_.first && key < range_.end; }

  __device__ void clear_padding(T* to, int dim) {
    const int chunk = thread() % kChunks;
    if (8 * chunk < dim) return;
    for (int key = thread() / kChunks; key < kKeys; key += kKeyStep)
      store_128(to + tile_at<D>(key, chunk), {});
  }

  // The 16 positions from `key` on, of this KV head; null: none of them is wanted.
  __device__ const std::byte* group(const std::byte* cache, int row_bytes, int key) const {
    if (key >= range_.end || key + 16 <= range_.first) return nullptr;
    const int32_t block = ldg(range_.blocks + (key >> args_.block_shift));
    if (block < 0) return nullptr;
    const int inside = (range_.kv_head << args_.block_shift) + (key & ((1 << args_.block_shift) - 1));
    return cache + args_.block_stride * block + static_cast<size_t>(inside) * row_bytes;
  }

  __device__ void copy(int stage, int which, const std::byte* cache, int dim, int key) {
    const std::byte* groups[kKeys / 16];
#pragma unroll
    for (int i = 0; i < kKeys / 16; ++i) groups[i] = group(cache, dim * (kFp8 ? 1 : 2), key + 16 * i);
    if constexpr (kFp8) {
      // 16 rows of dim bytes stand together.
#pragma unroll
      for (int i = 0; i < kKeys / 16; ++i) {
        if (groups[i] == nullptr) continue;
        for (int chunk = thread(); chunk < dim; chunk += kThreads)
          cp_async_16(raw(stage, which) + (i * dim + chunk) * 16, groups[i] + chunk * 16);
      }
    } else {
      const int chunk = thread() % kChunks;
      if (8 * chunk >= dim) return;
#pragma unroll
      for (int i = 0; i < kKeys / 16; ++i) {
#pragma unroll kUnrolled
        for (int j = thread() / kChunks; j < 16; j += kKeyStep) {
          const int row = 16 * i + j;
          const bool read = groups[i] != nullptr && wanted(key + row);
          cp_async_16(tile(stage, which) + tile_at<D>(row, chunk),
                      read ? groups[i] + (j * dim + 8 * chunk) * 2 : cache, read);
        }
      }
    }
  }

  __device__ void convert(int stage, int which, int dim, int key) {
    const int chunk = thread() % kChunks;
#pragma unroll 4
    for (int i = 0; i < kKeys; i += kKeyStep) {
      const int row = i + thread() / kChunks;
      Bits128 out{};
      if (8 * chunk < dim && wanted(key + row)) {
        const uint2 in = *reinterpret_cast<const uint2*>(raw(stage, which) + row * dim + 8 * chunk);
        out.x[0] = from_e4m3x2<T>(static_cast<uint16_t>(in.x));
        out.x[1] = from_e4m3x2<T>(static_cast<uint16_t>(in.x >> 16));
        out.x[2] = from_e4m3x2<T>(static_cast<uint16_t>(in.y));
        out.x[3] = from_e4m3x2<T>(static_cast<uint16_t>(in.y >> 16));
      }
      store_128(converted(which) + tile_at<D>(row, chunk), out);
    }
  }

  const AttendArgs& args_;
  const KeyRange range_;
  unsigned char* const shared_;
};

// Calls body(key, stage) for the tiles from `begin` (a multiple of 16) on, two stages at work.
template <class Stages, int kKeys, class Body>
__device__ inline void walk_keys(Stages& stages, int begin, int end, Body&& body) {
  stages.start(0, begin);
  cp_async_commit();
  int stage = 0;
  for (int key = begin; key < end; key += kKeys, stage ^= 1) {
    if (key + kKeys < end) stages.start(stage ^ 1, key + kKeys);
    cp_async_commit();
    cp_async_wait<1>();
    Stages::barrier();
    stages.convert(stage, key);
    body(key, stage);
    Stages::barrier();
  }
}

}  // namespace deepinfer::cuda
