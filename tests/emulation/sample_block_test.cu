// The steps of a block that samples, one by one.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

#include "backend/cuda/sample_block.cuh"
#include "emulation/device_array.h"

namespace deepinfer::cuda::sampling {
namespace {

constexpr int kThreads = 128;
using B = Block<kThreads>;
using Random = std::mt19937_64;
using emulation::DeviceArray;

__global__ void add_all(const uint32_t* bins, const uint64_t* values, int n, uint64_t* sums) {
  B::clear_bins();
  for (int i = B::thread(); i < n; i += kThreads) B::add(bins[i], values[i]);
  sync_threads();
  for (int i = B::thread(); i < kBins; i += kThreads) sums[i] = B::bin_sum(i);
}

// Neither a carry nor the high half of a value may be lost.
TEST(SampleBlock, HistogramsAddUpExactly) {
  Random random(3);
  constexpr int kN = 5000;
  std::vector<uint32_t> bins(kN);
  std::vector<uint64_t> values(kN), expected(kBins, 0);
  for (int i = 0; i < kN; ++i) {
    bins[i] = i % 3 ? static_cast<uint32_t>(random() % kBins) : 7;
    values[i] = random() >> (i % 4 ? 34 : 12);
    expected[bins[i]] += values[i];
  }
  const DeviceArray<uint32_t> b(bins);
  const DeviceArray<uint64_t> v(values), sums(kBins);
  launch({.grid = dim3(1), .block = dim3(kThreads)}, add_all, b.data(), v.data(), kN, sums.data());
  EXPECT_EQ(sums.read(), expected);
}

struct Found {
  Cut cut;
  int32_t listed;
};

template <bool kMass>
__global__ void select_from(Logits row, Weights weights, bool list, Cut cut, uint64_t need, Found* found) {
  const int32_t listed = list ? B::collect(row, cut) : -1;
  const Cut kept = B::select<kMass>(row, listed, weights, cut, need);
  if (B::thread() == 0) *found = {kept, listed};
}

// Ranked by a sort: the fewest first tokens that count or weigh `need`.
std::vector<int32_t> expected_tokens(const std::vector<float>& x, Cut cut, const Weights* weights,
                                     uint64_t need) {
  std::vector<int32_t> ids, kept;
  for (int32_t i = 0; i < static_cast<int32_t>(x.size()); ++i)
    if (cut.keeps(key_of(clean(x[i])), i)) ids.push_back(i);
  std::sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) {
    return clean(x[a]) != clean(x[b]) ? clean(x[a]) > clean(x[b]) : a < b;
  });
  for (uint64_t sum = 0; const int32_t id : ids) {
    if (sum >= need) break;
    kept.push_back(id);
    sum += weights == nullptr ? 1 : weights->of(clean(x[id]));
  }
  std::sort(kept.begin(), kept.end());
  return kept;
}

TEST(SampleBlock, SelectsTheFirstOfTheRanking) {
  Random random(4);
  for (const int32_t vocab : {1, 5, 127, 900, 2047, 2049, 3333}) {
    for (int round = 0; round < 12; ++round) {
      std::normal_distribution<float> normal(0, 3);
      std::vector<float> x(vocab);
      // Few different values in every second round: most are equal.
      for (float& v : x) v = round % 2 ? std::round(normal(random)) : normal(random);
      const float most = *std::max_element(x.begin(), x.end());
      const Weights weights{most, 0.7f, unit_of(vocab)};
      uint64_t sum = 0;
      for (const float v : x) sum += weights.of(clean(v));
      const Cut all{key_of(-kLargest), ~0u};
      const Cut cut =
          round % 3 ? all : Cut{key_of(clean(x[random() % vocab])), static_cast<uint32_t>(vocab / 2)};
      const bool list = round % 4 < 2;
      const uint64_t count = 1 + random() % (vocab + 3), mass = 1 + random() % (sum + sum / 8 + 1);
      const DeviceArray<float> logits(x);
      const DeviceArray<Found> found(2);
      const Logits row{.x = logits.data(), .vocab = vocab};
      const LaunchConfig config{.grid = dim3(1), .block = dim3(kThreads)};
      launch(config, select_from<false>, row, Weights{}, list, cut, count, found.data());
      launch(config, select_from<true>, row, weights, list, cut, mass, found.data() + 1);
      const std::vector<Found> got = found.read();
      for (const bool by_mass : {false, true}) {
        SCOPED_TRACE(testing::Message()
                     << "vocabulary " << vocab << " round " << round << " mass " << by_mass);
        std::vector<int32_t> kept;
        for (int32_t i = 0; i < vocab; ++i)
          if (got[by_mass].cut.keeps(key_of(clean(x[i])), i) && cut.keeps(key_of(clean(x[i])), i))
            kept.push_back(i);
        EXPECT_EQ(kept, expected_tokens(x, cut, by_mass ? &weights : nullptr, by_mass ? mass : count));
        if (list && cut.key == all.key) EXPECT_EQ(got[by_mass].listed, vocab <= kListSize ? vocab : -1);
      }
    }
  }
}

}  // namespace
}  // namespace deepinfer::cuda::sampling
