// What the threads of a block do together for one row of logits: sums, scans, the first of a ranking.
//
// Weights are integers (fixed point, scaled by the vocabulary's size so that no sum overflows). So sums do
// not depend on their order, histograms are filled by atomics, and a result depends on the row alone.
#pragma once

#include <cstdint>
#include <limits>

#include "backend/cuda/launch.h"
#include "backend/cuda/ptx.h"

// Phases of a row are functions of their own: as one, they would need more registers than a thread of a large
// block has.
#define DI_NOINLINE __attribute__((noinline))

namespace deepinfer::cuda::sampling {

inline constexpr float kNone = -std::numeric_limits<float>::infinity();
inline constexpr float kLargest = std::numeric_limits<float>::max();
inline constexpr int kBins = 2048;      // of a radix step: 11 bits
inline constexpr int kListSize = 2048;  // candidates that fit shared memory
inline constexpr uint32_t kIdBits = 22;
inline constexpr uint32_t kLastId = (1u << kIdBits) - 1;

// NaN is -inf, +inf the largest number, -0 is 0.
__device__ inline float clean(float x) {
  if (x != x) return kNone;
  if (x > kLargest) return kLargest;
  return x == 0 ? 0.0f : x;
}

// Keeps the order of cleaned logits.
__device__ inline uint32_t key_of(float x) {
  const auto bits = bit_cast<uint32_t>(x);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ inline float value_of(uint32_t key) {
  return bit_cast<float>(key >> 31 ? key & 0x7fffffffu : ~key);
}

// Key and token as one number: larger for the larger key, then for the lower id.
struct Ranked {
  uint64_t bits = 0;

  static __device__ Ranked of(uint32_t key, int32_t id) {
    return {static_cast<uint64_t>(key) << 32 | static_cast<uint32_t>(~id)};
  }
  __device__ uint32_t key() const { return static_cast<uint32_t>(bits >> 32); }
  __device__ int32_t id() const { return static_cast<int32_t>(~static_cast<uint32_t>(bits)); }
};

// A row of logits as it is read: cleaned, and -inf where the mask does not allow a token.
struct Logits {
  const float* x = nullptr;        // [vocab]
  const uint32_t* mask = nullptr;  // [ceil(vocab / 32)] or null
  int32_t vocab = 0;

  __device__ float at(int32_t i) const {
    if (mask != nullptr && !(mask[i / 32] >> (i % 32) & 1)) return kNone;
    return clean(x[i]);
  }
  __device__ bool aligned() const { return reinterpret_cast<uintptr_t>(x) % 16 == 0; }
  // Tokens i to i + 3 (i a multiple of 4) as far as they are below `end`; the others are not set.
  __device__ void load4(int32_t i, int32_t end, float (&v)[4]) const {
    if (i >= end) return;
    if (i + 4 <= vocab && aligned()) {
      const Bits128 bits = load_128(x + i);
#pragma unroll
      for (int j = 0; j < 4; ++j) v[j] = bit_cast<float>(bits.x[j]);
    } else {
      for (int j = 0; j < 4; ++j)
        if (i + j < end) v[j] = x[i + j];
    }
    const uint32_t allowed = mask == nullptr ? 15u : mask[i / 32] >> (i % 32);
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (i + j < end) v[j] = allowed >> j & 1 ? clean(v[j]) : kNone;
  }
};

// e^((x - max) * scale) as an integer. Below one unit it is nothing.
struct Weights {
  float max = 0, scale = 1, unit = 1;

  __device__ uint64_t of(float x) const { return static_cast<uint64_t>(expf((x - max) * scale) * unit); }
};

// 2^62 / vocab or less: what the weight 1 counts.
__device__ inline float unit_of(int32_t vocab) {
  return static_cast<float>(uint64_t{1} << (62 - (32 - clz(static_cast<uint32_t>(vocab)))));
}

// The tokens that are left: those with a larger key, and of equal ones the ids up to `last`.
struct Cut {
  uint32_t key = 0, last = ~0u;

  __device__ bool keeps(uint32_t k, int32_t id) const {
    return k > key || (k == key && static_cast<uint32_t>(id) <= last);
  }
};

struct Bin {
  uint64_t above = 0, inside = 0;
  int32_t index = 0;
};

// Shared memory of a block.
struct Shared {
  uint32_t low[kBins], high[kBins];  // halves of a histogram's sums
  uint32_t key[kListSize];
  int32_t id[kListSize];
  uint64_t part[32];  // of each warp
  Bin bin;
  uint32_t count;
  int32_t token;
  float max;       // of the raw logits
  double log_sum;  // of their weights
  double shape;    // what thread 0 found out for all
};

// kShaped: for the kernel of rows with llama.cpp's samplers, which has functions of its own, so that the
// other one's have no registers to save.
template <int kThreads, bool kShaped = false>
struct Block {
  static_assert(kThreads % 32 == 0 && kThreads <= 1024 && kBins % kThreads == 0);
  static constexpr int kWarps = kThreads / 32;

  // Named here alone, so that it is known for shared memory in every phase.
  static __device__ Shared& shared() {
    DI_SHARED(Shared, memory);
    return memory;
  }

  static __device__ int thread() { return static_cast<int>(threadIdx.x); }
  static __device__ int warp() { return thread() / 32; }
  static __device__ int lane() { return thread() % 32; }

  // Each warp reads a part of the row of its own, in the order of ids.
  static __device__ int32_t segment(int32_t vocab) {
    return static_cast<int32_t>((static_cast<uint32_t>(vocab) + kWarps - 1) / kWarps + 127) / 128 * 128;
  }

  // use(id, logit) for every token; a thread sees its tokens in ascending order.
  template <class Use>
  static __device__ void for_each(const Logits& row, Use use) {
    constexpr int kAhead = 4;  // loads on their way
    const int32_t size = segment(row.vocab), begin = warp() * size, end = minimum(row.vocab, begin + size);
    int32_t i = begin + lane() * 4;
    if (row.mask == nullptr && row.aligned()) {
      for (; i + (kAhead - 1) * 128 + 4 <= end; i += kAhead * 128) {
        Bits128 bits[kAhead];
#pragma unroll
        for (int a = 0; a < kAhead; ++a) bits[a] = load_128(row.x + i + a * 128);
#pragma unroll
        for (int a = 0; a < kAhead; ++a) {
#pragma unroll
          for (int j = 0; j < 4; ++j) use(i + a * 128 + j, clean(bit_cast<float>(bits[a].x[j])));
        }
      }
    }
    for (; i < end; i += 128) {
      float v[4];
      row.load4(i, end, v);
      for (int j = 0; j < 4; ++j)
        if (i + j < end) use(i + j, v[j]);
    }
  }

  static __device__ uint64_t warp_sum(uint64_t v) {
#pragma unroll
    for (int bits = 16; bits > 0; bits /= 2) v += shfl_xor(v, bits);
    return v;
  }

  // Of the threads before this one; *total: of all.
  static __device__ uint64_t exclusive_scan(uint64_t v, uint64_t* total) {
    Shared& s = shared();
    uint64_t sum = v;
#pragma unroll
    for (unsigned by = 1; by < 32; by *= 2) {
      const uint64_t below = shfl_up(sum, by);
      if (lane() >= static_cast<int>(by)) sum += below;
    }
    if (lane() == 31) s.part[warp()] = sum;
    sync_threads();
    uint64_t before = 0, all = 0;
#pragma unroll 4
    for (int w = 0; w < kWarps; ++w) {
      const uint64_t part = s.part[w];
      if (w < warp()) before += part;
      all += part;
    }
    sync_threads();
    *total = all;
    return before + sum - v;
  }

  static __device__ uint64_t sum(uint64_t v) {
    Shared& s = shared();
    v = warp_sum(v);
    if (lane() == 0) s.part[warp()] = v;
    sync_threads();
    uint64_t all = 0;
#pragma unroll 4
    for (int w = 0; w < kWarps; ++w) all += s.part[w];
    sync_threads();
    return all;
  }

  static __device__ uint64_t max(uint64_t v) {
    Shared& s = shared();
#pragma unroll
    for (int bits = 16; bits > 0; bits /= 2) v = maximum(v, shfl_xor(v, bits));
    if (lane() == 0) s.part[warp()] = v;
    sync_threads();
    v = 0;
#pragma unroll 4
    for (int w = 0; w < kWarps; ++w) v = maximum(v, s.part[w]);
    sync_threads();
    return v;
  }

  // use(key, id) for every candidate: those of the list, or all tokens of the row when there is none.
  template <class Use>
  static __device__ void for_each_candidate(const Logits& row, int32_t listed, Use use) {
    Shared& s = shared();
    if (listed >= 0) {
      for (int32_t i = thread(); i < listed; i += kThreads) use(s.key[i], s.id[i]);
    } else {
      for_each(row, [&](int32_t id, float x) { use(key_of(x), id); });
    }
  }

  // The tokens that `cut` keeps, in no order, into the list. Returns how many, or -1: too many for a list.
  static __device__ DI_NOINLINE int32_t collect(Logits row, Cut cut) {
    Shared& s = shared();
    if (thread() == 0) s.count = 0;
    sync_threads();
    for_each(row, [&](int32_t id, float x) {
      const uint32_t key = key_of(x);
      if (!cut.keeps(key, id) || load_volatile(&s.count) > kListSize) return;
      const uint32_t at = atomic_add(&s.count, 1u);
      if (at >= kListSize) return;
      s.key[at] = key;
      s.id[at] = id;
    });
    sync_threads();
    const uint32_t count = s.count;
    sync_threads();
    return count > kListSize ? -1 : static_cast<int32_t>(count);
  }

  // The largest of all; *own: the key of this thread's largest.
  static __device__ DI_NOINLINE Ranked largest(Logits row, uint32_t* own) {
    uint32_t key = 0;
    int32_t id = 0;
    for_each(row, [&](int32_t i, float v) {
      const uint32_t k = key_of(v);
      if (k > key) {
        key = k;
        id = i;
      }
    });
    *own = key;
    return {max(Ranked::of(key, id).bits)};
  }

  // Of the candidates that `cut` keeps, by warp in `part` (the parts of the row, in order, when there is no
  // list).
  static __device__ DI_NOINLINE uint64_t weigh(Logits row, int32_t listed, Weights weights, Cut cut) {
    uint64_t own = 0;
    for_each_candidate(row, listed, [&](uint32_t key, int32_t id) {
      if (cut.keeps(key, id)) own += weights.of(value_of(key));
    });
    return sum(own);
  }

  static __device__ void clear_bins() {
    Shared& s = shared();
    for (int i = thread(); i < kBins; i += kThreads) s.low[i] = s.high[i] = 0;
    sync_threads();
  }

  // 64-bit sums from 32-bit atomics: a carry goes to the other half whenever the low half wraps.
  static __device__ void add(uint32_t bin, uint64_t v) {
    Shared& s = shared();
    const auto low = static_cast<uint32_t>(v);
    const uint32_t old = atomic_add(&s.low[bin], low);
    const uint32_t high = static_cast<uint32_t>(v >> 32) + (old + low < old ? 1 : 0);
    if (high != 0) atomic_add(&s.high[bin], high);
  }
  static __device__ uint64_t bin_sum(int bin) {
    Shared& s = shared();
    return static_cast<uint64_t>(s.high[bin]) << 32 | s.low[bin];
  }

  // The bin in which the sum from the highest bin down reaches `need`. False: all bins together do not.
  static __device__ bool find_bin(uint64_t need, Bin* found) {
    Shared& s = shared();
    sync_threads();
    constexpr int kEach = kBins / kThreads;
    const int top = kBins - 1 - thread() * kEach;
    uint64_t own = 0, total;
    for (int i = 0; i < kEach; ++i) own += bin_sum(top - i);
    uint64_t above = exclusive_scan(own, &total);
    if (total < need) return false;
    if (above < need && need <= above + own) {
      for (int i = 0;; ++i) {
        const uint64_t inside = bin_sum(top - i);
        if (above + inside >= need) {
          s.bin = {above, inside, top - i};
          break;
        }
        above += inside;
      }
    }
    sync_threads();
    *found = s.bin;
    sync_threads();
    return true;
  }

  // Of the candidates that `cut` keeps: the fewest first ones, by falling logit and ascending id, that
  // together count (kMass: weigh) at least `need`. All of them when they do not reach it. A radix selection.
  template <bool kMass>
  static __device__ DI_NOINLINE Cut select(Logits row, int32_t listed, Weights weights, Cut cut,
                                           uint64_t need) {
    Shared& s = shared();
    uint32_t key = 0, known = 0;
    Bin bin;
    for (int shift = 21; shift >= 0; shift = shift == 21 ? 10 : shift - 10) {
      const uint32_t digit = shift == 0 ? 1023u : 2047u;
      clear_bins();
      for_each_candidate(row, listed, [&](uint32_t k, int32_t id) {
        if ((k & known) != key || !cut.keeps(k, id)) return;
        if constexpr (kMass)
          add(k >> shift & digit, weights.of(value_of(k)));
        else
          atomic_add(&s.low[k >> shift & digit], 1u);
      });
      if (!find_bin(need, &bin)) return cut;
      need -= bin.above;
      key |= static_cast<uint32_t>(bin.index) << shift;
      known |= digit << shift;
    }
    uint64_t equal = bin.inside, wanted = need;
    if constexpr (kMass) {
      const uint64_t each = weights.of(value_of(key));
      equal = bin.inside / each;
      wanted = (need + each - 1) / each;
    }
    if (wanted >= equal) return {key, cut.key == key ? cut.last : ~0u};
    return {key, last_id<false>(row, listed, {}, {key, ~0u}, wanted)};
  }

  // Going up by id through the candidates that count, the one at which they count (kMass: weigh) `need`. They
  // do so together. kMass: those that `cut` keeps, else those with the cut's key.
  template <bool kMass>
  static __device__ DI_NOINLINE uint32_t last_id(Logits row, int32_t listed, Weights weights, Cut cut,
                                                 uint64_t need) {
    Shared& s = shared();
    uint32_t reversed = 0, known = 0;  // the lowest ids have the highest digits
    for (int shift = 11; shift >= 0; shift -= 11) {
      clear_bins();
      for_each_candidate(row, listed, [&](uint32_t key, int32_t id) {
        const uint32_t r = kLastId - static_cast<uint32_t>(id);
        if ((r & known) != reversed) return;
        if constexpr (kMass) {
          if (cut.keeps(key, id)) add(r >> shift & 2047u, weights.of(value_of(key)));
        } else {
          if (key == cut.key) atomic_add(&s.low[r >> shift & 2047u], 1u);
        }
      });
      Bin bin;
      find_bin(need, &bin);
      need -= bin.above;
      reversed |= static_cast<uint32_t>(bin.index) << shift;
      known |= 2047u << shift;
    }
    return kLastId - reversed;
  }
};

}  // namespace deepinfer::cuda::sampling
