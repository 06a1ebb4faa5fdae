// The cuts of llama.cpp's samplers, as SampleRow says, by a block of threads for one row. Sums are of
// integers, as all of a row's; what one number decides, thread 0 computes in doubles for all.
#pragma once

#include "backend/cuda/sample_block.cuh"
#include "backend/cuda/sample_layout.h"

namespace deepinfer::cuda::sampling {

inline constexpr float kNoWeight = 87;        // e^-87 of the largest is no candidate
inline constexpr int32_t kSlopeTokens = 100;  // of mirostat 1

// What `cut` keeps of the logits from `floor` on; the largest in any case.
__device__ inline Cut raised(Cut cut, double floor, float largest) {
  const auto least = static_cast<float>(
      minimum(maximum(floor, -static_cast<double>(kLargest)), static_cast<double>(largest)));
  const uint32_t key = key_of(clean(least));
  return key > cut.key ? Cut{key, ~0u} : cut;
}

template <int kThreads>
struct Shape : Block<kThreads, true> {
  using B = Block<kThreads, true>;

  // value of thread 0, for all.
  static __device__ double from_first(double value) {
    Shared& s = B::shared();
    if (B::thread() == 0) s.shape = value;
    sync_threads();
    value = s.shape;
    sync_threads();
    return value;
  }

  // Of w * -log w, which is less than 1/2, as fixed-point numbers.
  static __device__ DI_NOINLINE uint64_t moment(Logits row, int32_t listed, Weights weights, Cut cut) {
    uint64_t own = 0;
    B::for_each_candidate(row, listed, [&](uint32_t key, int32_t id) {
      if (!cut.keeps(key, id)) return;
      const float d = (value_of(key) - weights.max) * weights.scale;
      if (d > -kNoWeight) own += static_cast<uint64_t>(expf(d) * -d * weights.unit);
    });
    return B::sum(own);
  }

  // In units of the range of logits: no square overflows. Halves, so that the range does not.
  static __device__ DI_NOINLINE Cut cut_sigma(Logits row, float max, Cut cut, float n) {
    uint32_t own_least = 0;  // of the keys, reversed
    B::for_each(row, [&](int32_t id, float x) {
      const uint32_t key = key_of(x);
      if (cut.keeps(key, id)) own_least = maximum(own_least, ~key);
    });
    const float least = value_of(~static_cast<uint32_t>(B::max(own_least)));
    const float half = max * 0.5f - least * 0.5f, unit = unit_of(row.vocab);
    if (half == 0) return cut;
    uint64_t sum = 0, squares = 0, count = 0;
    B::for_each(row, [&](int32_t id, float x) {
      if (!cut.keeps(key_of(x), id)) return;
      const float u = (max * 0.5f - x * 0.5f) / half;
      sum += static_cast<uint64_t>(u * unit);
      squares += static_cast<uint64_t>(u * u * unit);
      ++count;
    });
    sum = B::sum(sum);
    squares = B::sum(squares);
    count = B::sum(count);
    double floor = 0;
    if (B::thread() == 0) {
      const double all = static_cast<double>(count) * static_cast<double>(unit);
      const double mean = static_cast<double>(sum) / all;
      const double variance = maximum(static_cast<double>(squares) / all - mean * mean, 0.0);
      floor =
          static_cast<double>(max) - static_cast<double>(n) * sqrt(variance) * 2 * static_cast<double>(half);
    }
    return raised(cut, from_first(floor), max);
  }

  static __device__ DI_NOINLINE double dynamic_temperature(Logits row, Weights weights, Cut cut,
                                                           const DeviceShape& shape) {
    weights.scale = 1;
    const auto sum = static_cast<double>(B::weigh(row, -1, weights, cut));
    const auto moments = static_cast<double>(moment(row, -1, weights, cut));
    double temperature = 0;
    if (B::thread() == 0) {
      const double entropy = maximum(log(sum / static_cast<double>(weights.unit)) + moments / sum, 0.0);
      const double part =
          pow(entropy / log(static_cast<double>(row.vocab)), static_cast<double>(shape.dynatemp_exponent));
      const double mean = shape.temperature, range = shape.dynatemp_range;
      const double low = maximum(mean - range, 0.0);
      temperature = low + (mean + range - low) * minimum(part, 1.0);
    }
    return from_first(temperature);
  }

  // In both of -log p and the entropy stands the log of the sum: it falls out of their distance.
  static __device__ uint32_t nearness(uint32_t key, Weights weights, float mean) {
    const float d = multiply(value_of(key) - weights.max, weights.scale);
    return ~bit_cast<uint32_t>(fabsf(d - mean));
  }

  // A radix selection of the distance at which the sum exceeds its part; the rest becomes -inf.
  static __device__ DI_NOINLINE void cut_typical(Logits row, float* values, int32_t listed, Weights weights,
                                                 Cut cut, float part) {
    const uint64_t sum = B::weigh(row, listed, weights, cut);
    const auto mean = -static_cast<float>(static_cast<double>(moment(row, listed, weights, cut)) /
                                          static_cast<double>(sum));
    uint64_t need =
        minimum(static_cast<uint64_t>(static_cast<double>(part) * static_cast<double>(sum)) + 1, sum);
    uint32_t least = 0, known = 0;
    for (int shift = 21; shift >= 0; shift = shift == 21 ? 10 : shift - 10) {
      const uint32_t digit = shift == 0 ? 1023u : 2047u;
      B::clear_bins();
      B::for_each_candidate(row, listed, [&](uint32_t key, int32_t id) {
        if (!cut.keeps(key, id)) return;
        const uint32_t near = nearness(key, weights, mean);
        if ((near & known) == least) B::add(near >> shift & digit, weights.of(value_of(key)));
      });
      Bin bin;
      if (!B::find_bin(need, &bin)) return;
      need -= bin.above;
      least |= static_cast<uint32_t>(bin.index) << shift;
      known |= digit << shift;
    }
    keep_only(row, values, [&](uint32_t key, int32_t id) {
      return cut.keeps(key, id) && nearness(key, weights, mean) >= least;
    });
  }

  // All with at least the threshold become -inf, but the last of them in rank.
  static __device__ DI_NOINLINE void cut_xtc(Logits row, float* values, int32_t listed, Weights weights,
                                             Cut cut, float threshold) {
    const uint64_t sum = B::weigh(row, listed, weights, cut);
    const double part = maximum(static_cast<double>(threshold), 1e-7);
    const auto need = static_cast<uint64_t>(ceil(part * static_cast<double>(sum)));
    uint64_t own = 0;  // of the ranks, reversed
    B::for_each_candidate(row, listed, [&](uint32_t key, int32_t id) {
      if (cut.keeps(key, id) && weights.of(value_of(key)) >= need)
        own = maximum(own, ~Ranked::of(key, id).bits);
    });
    const uint64_t last = ~B::max(own);
    if (last == ~uint64_t{0}) return;
    keep_only(row, values, [&](uint32_t key, int32_t id) { return Ranked::of(key, id).bits <= last; });
  }

  template <class Keep>
  static __device__ void keep_only(const Logits& row, float* values, Keep keep) {
    for (int32_t i = B::thread(); i < row.vocab; i += kThreads)
      if (!keep(key_of(row.at(i)), i)) values[i] = kNone;
    sync_threads();
  }

  // Mirostat 2: those whose -log2 p is at most mu, or the first.
  static __device__ DI_NOINLINE Cut cut_surprise(Logits row, Weights weights, Cut cut, Ranked best,
                                                 const DeviceShape& shape) {
    const auto sum = static_cast<double>(B::weigh(row, -1, weights, {key_of(-kLargest), ~0u}));
    double floor = 0;
    if (B::thread() == 0) {
      constexpr double kLog2 = 0.69314718055994530942;
      const double bits =
          log(sum / static_cast<double>(weights.unit)) - static_cast<double>(shape.mu) * kLog2;
      floor = static_cast<double>(weights.max) + bits * static_cast<double>(shape.temperature);
    }
    floor = from_first(floor);
    if (floor > static_cast<double>(weights.max)) return {best.key(), static_cast<uint32_t>(best.id())};
    return raised(cut, floor, weights.max);
  }

  // Mirostat 1: how many tokens have together the surprise mu, by the slope of the first, which `top` keeps.
  static __device__ DI_NOINLINE int32_t zipf_tokens(Logits row, int32_t listed, Weights weights, Cut top,
                                                    float mu) {
    Shared& s = B::shared();
    uint32_t* const keys = s.low;  // as in write_top(): the list may be of more
    uint32_t* const ids = s.high;
    if (B::thread() == 0) s.count = 0;
    sync_threads();
    B::for_each_candidate(row, listed, [&](uint32_t key, int32_t id) {
      if (!top.keeps(key, id)) return;
      const uint32_t at = atomic_add(&s.count, 1u);
      keys[at] = key;
      ids[at] = static_cast<uint32_t>(id);
    });
    sync_threads();
    const auto n = static_cast<int32_t>(s.count);
    for (int32_t i = B::thread(); i < n; i += kThreads) {
      int32_t rank = 0;
      for (int32_t j = 0; j < n; ++j)
        rank += keys[j] > keys[i] || (keys[j] == keys[i] && ids[j] < ids[i]) ? 1 : 0;
      s.key[rank] = keys[i];
    }
    sync_threads();
    auto* const logs = reinterpret_cast<float*>(s.low);
    for (int32_t i = B::thread(); i + 1 < n; i += kThreads)
      logs[i] = logf(static_cast<float>(i + 2) / static_cast<float>(i + 1));
    sync_threads();
    double found = 1;
    if (B::thread() == 0 && n > 1) found = zipf_count(s.key, logs, n, weights, mu, row.vocab);
    found = from_first(found);
    return found >= static_cast<double>(row.vocab) ? row.vocab : maximum(static_cast<int32_t>(found), 1);
  }

  static __device__ double zipf_count(const uint32_t* keys, const float* logs, int32_t n, Weights weights,
                                      float mu, int32_t vocab) {
    float products = 0, squares = 0;
    for (int32_t i = 0; i + 1 < n; ++i) {
      products += logs[i] * (value_of(keys[i]) - value_of(keys[i + 1])) * weights.scale;
      squares += logs[i] * logs[i];
    }
    const double slope = maximum(static_cast<double>(products) / static_cast<double>(squares), 1e-9),
                 epsilon = slope - 1;
    const double log_vocab = log(static_cast<double>(vocab));
    const double quotient = fabs(epsilon) < 1e-6 ? 1 / log_vocab : epsilon / (1 - exp(-epsilon * log_vocab));
    constexpr double kLog2 = 0.69314718055994530942;
    return exp((log(quotient) + static_cast<double>(mu) * kLog2) / slope);
  }
};

}  // namespace deepinfer::cuda::sampling
