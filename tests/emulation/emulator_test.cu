// The execution model of the emulation: barriers, shuffles, votes, atomics, orders.
#include <gtest/gtest.h>

#include <numeric>

#include "backend/cuda/launch.h"
#include "backend/cuda/ptx.h"
#include "emulation/device_array.h"
#include "emulation/emulated_gpu.h"

namespace deepinfer::cuda {
namespace {

using emulation::DeviceArray;

class Emulator : public ::testing::TestWithParam<uint64_t> {
 protected:
  void SetUp() override { emulation::set_seed(GetParam()); }
  void TearDown() override { emulation::reset_machine(); }
};
INSTANTIATE_TEST_SUITE_P(Seeds, Emulator, ::testing::Values(1, 2, 3, 17));

// out[block * n + i] = in[block * n + n - 1 - i], through shared memory.
__global__ void reverse(const int* in, int* out) {
  DI_DYNAMIC_SHARED(bytes);
  DI_SHARED(int, offset);
  int* values = reinterpret_cast<int*>(bytes);
  const int n = static_cast<int>(blockDim.x), i = static_cast<int>(threadIdx.x);
  if (i == 0) offset = static_cast<int>(blockIdx.x) * n;
  sync_threads();
  values[i] = in[offset + i];
  sync_threads();
  out[offset + i] = values[n - 1 - i];
}

TEST_P(Emulator, BlockBarrierAndSharedMemory) {
  for (const int n : {1, 31, 32, 33, 200, 1024}) {
    std::vector<int> in(static_cast<size_t>(5 * n));
    std::iota(in.begin(), in.end(), 0);
    const DeviceArray<int> from(in), to(in.size());
    launch({.grid = dim3(5), .block = dim3(n), .smem = n * sizeof(int)}, reverse, from.data(), to.data());
    const std::vector<int> out = to.read();
    for (int b = 0; b < 5; ++b)
      for (int i = 0; i < n; ++i) ASSERT_EQ(out[b * n + i], b * n + n - 1 - i) << n;
  }
}

__global__ void coordinates(uint32_t* out) {
  const uint32_t block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const uint32_t thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] = 1000 * block + thread;
}

TEST_P(Emulator, CoordinatesInThreeDimensions) {
  const DeviceArray<uint32_t> out(24 * 30);
  launch({.grid = dim3(2, 3, 4), .block = dim3(5, 3, 2)}, coordinates, out.data());
  const auto values = out.read();
  for (uint32_t i = 0; i < values.size(); ++i) ASSERT_EQ(values[i], 1000 * (i / 30) + i % 30);
}

struct Wide {
  float value;
  int index;
  double more;
};

__global__ void shuffles(int* out, double* wide_out) {
  const int lane = static_cast<int>(threadIdx.x);
  int* mine = out + 8 * lane;
  mine[0] = shfl(100 + lane, 5);
  mine[1] = shfl_xor(100 + lane, 7);
  mine[2] = shfl_up(100 + lane, 3);
  mine[3] = shfl_down(100 + lane, 4);
  mine[4] = shfl(100 + lane, 2, kFullMask, 8);
  mine[5] = shfl_up(100 + lane, 3, kFullMask, 8);
  mine[6] = shfl_down(100 + lane, 3, kFullMask, 16);
  mine[7] = shfl(static_cast<uint8_t>(lane), lane + 33);
  const Wide wide = shfl_xor(Wide{1.0f * lane, lane, 0.5 * lane}, 1);
  wide_out[lane] = wide.value + 100 * wide.index + 10000 * wide.more;
}

TEST_P(Emulator, Shuffles) {
  const DeviceArray<int> out(8 * 32);
  const DeviceArray<double> wide(32);
  launch({.grid = dim3(1), .block = dim3(32)}, shuffles, out.data(), wide.data());
  const auto v = out.read();
  const auto w = wide.read();
  for (int lane = 0; lane < 32; ++lane) {
    const int in_8 = lane % 8, in_16 = lane % 16, start = lane - in_8;
    const int expected[8] = {105,
                             100 + (lane ^ 7),
                             100 + (lane < 3 ? lane : lane - 3),
                             100 + (lane > 27 ? lane : lane + 4),
                             100 + start + 2,
                             100 + (in_8 < 3 ? lane : lane - 3),
                             100 + (in_16 > 12 ? lane : lane + 3),
                             (lane + 1) % 32};
    for (int i = 0; i < 8; ++i)
      EXPECT_EQ(v[8 * lane + i], expected[i]) << "lane " << lane << ", shuffle " << i;
    EXPECT_EQ(w[lane], (lane ^ 1) * 5101.0);
  }
}

// The two halves of the warp go separate ways, each with shuffles of its own, as often as the lane's half
// says.
__global__ void partial_masks(int* out) {
  const int lane = static_cast<int>(threadIdx.x);
  const bool low = lane < 16;
  int sum = lane;
  if (low) {
    for (int bits = 8; bits; bits >>= 1) sum += shfl_xor(sum, bits, 0x0000ffffu);
  } else {
    for (int round = 0; round < 3; ++round)
      sum = shfl(sum, 16 + round, 0xffff0000u) + (lane == 16 + round + 1);
  }
  sync_warp();
  out[lane] = sum + 1000 * shfl(sum, 0);
}

TEST_P(Emulator, PartialMasks) {
  const DeviceArray<int> out(32);
  launch({.grid = dim3(1), .block = dim3(32)}, partial_masks, out.data());
  const auto v = out.read();
  // High half: 16, then lane 17 holds one more, then lane 18 one more than that.
  for (int lane = 0; lane < 32; ++lane) {
    const int high = 18 + (lane == 19);
    EXPECT_EQ(v[lane], 120 * 1000 + (lane < 16 ? 120 : high)) << lane;
  }
}

// Lanes that have exited are not waited for.
__global__ void votes(uint32_t* out) {
  const uint32_t lane = threadIdx.x % 32;
  if (lane >= 24) return;
  const uint32_t odd = ballot(lane & 1), even = ballot(!(lane & 1), 0x00ffffffu);
  uint32_t* mine = out + 4 * threadIdx.x;
  mine[0] = odd;
  mine[1] = even;
  mine[2] = any(lane == 7) + 2 * any(lane == 30);
  mine[3] = all(lane < 24) + 2 * all(lane < 23);
}

TEST_P(Emulator, VotesOfLanesThatAreLeft) {
  const DeviceArray<uint32_t> out(4 * 56);
  launch({.grid = dim3(1), .block = dim3(56)}, votes, out.data());
  const auto v = out.read();
  for (int thread = 0; thread < 56; ++thread) {
    if (thread % 32 >= 24) continue;
    EXPECT_EQ(v[4 * thread], 0x00aaaaaau);
    EXPECT_EQ(v[4 * thread + 1], 0x00555555u);
    EXPECT_EQ(v[4 * thread + 2], 1u);
    EXPECT_EQ(v[4 * thread + 3], 1u);
  }
}

__global__ void block_votes(int* out) {
  const int i = static_cast<int>(threadIdx.x);
  const int count = sync_threads_count(i % 3 == 0);
  const bool some = sync_threads_or(i == 77), none = sync_threads_or(i < 0), each = sync_threads_and(i < 100);
  out[i] = count + 1000 * some + 2000 * none + 4000 * each;
}

TEST_P(Emulator, VotesOfABlock) {
  const DeviceArray<int> out(100);
  launch({.grid = dim3(1), .block = dim3(100)}, block_votes, out.data());
  for (const int v : out.read()) EXPECT_EQ(v, 34 + 1000 + 4000);
}

__global__ void atomics(int32_t* i, uint32_t* u, unsigned long long* w, uint32_t* last) {
  const auto rank = static_cast<int32_t>(blockIdx.x * blockDim.x + threadIdx.x);
  atomic_add(&i[0], rank);
  atomic_max(&i[1], rank - 1000);
  atomic_min(&i[2], -rank);
  atomic_or(&u[0], 1u << (rank % 32));
  atomic_and(&u[1], ~(1u << (rank % 7)));
  atomic_max(&w[0], 1ull << (rank % 50));
  atomic_add(&w[1], 1ull << 40);
  // A counter by compare and swap.
  for (uint32_t seen = load_volatile(&u[2]);;) {
    const uint32_t before = atomic_cas(&u[2], seen, seen + 2);
    if (before == seen) break;
    seen = before;
  }
  // The last block to arrive.
  threadfence();
  if (sync_threads_count(true) && threadIdx.x == 0 && atomic_add(&u[3], 1u) == gridDim.x - 1)
    *last = atomic_exch(&u[2], 5u);
}

TEST_P(Emulator, Atomics) {
  const DeviceArray<int32_t> i(std::vector<int32_t>{0, -5000, 0});
  const DeviceArray<uint32_t> u(std::vector<uint32_t>{0, ~0u, 0, 0}), last(1);
  const DeviceArray<unsigned long long> w(std::vector<unsigned long long>{0, 0});
  launch({.grid = dim3(6), .block = dim3(70)}, atomics, i.data(), u.data(), w.data(), last.data());
  EXPECT_EQ(i.read(), (std::vector<int32_t>{419 * 420 / 2, 419 - 1000, -419}));
  EXPECT_EQ(u.read(), (std::vector<uint32_t>{~0u, ~0x7fu, 5, 6}));
  EXPECT_EQ(w.read(), (std::vector<unsigned long long>{1ull << 49, 420ull << 40}));
  EXPECT_EQ(last.read()[0], 840u);
}

// Three stages in flight, zeros where the predicate says no.
__global__ void pipeline(const float* in, float* out, int steps) {
  DI_DYNAMIC_SHARED(bytes);
  auto* stages = reinterpret_cast<float*>(bytes);
  const int i = static_cast<int>(threadIdx.x), n = static_cast<int>(blockDim.x);
  const auto fetch = [&](int step) {
    if (step < steps)
      cp_async_16(stages + ((step % 3) * n + i) * 4, in + (step * n + i) * 4, (step + i) % 5 != 0);
    cp_async_commit();
  };
  fetch(0);
  fetch(1);
  float sum = 0;
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<1>();
    sync_threads();
    fetch(step + 2);
    const float* row = stages + ((step % 3) * n + (i + 1) % n) * 4;
    for (int k = 0; k < 4; ++k) sum += row[k];
  }
  out[i] = sum;
}

TEST_P(Emulator, AsynchronousCopies) {
  constexpr int kThreads = 48, kSteps = 9;
  std::vector<float> in(kThreads * kSteps * 4);
  std::iota(in.begin(), in.end(), 1.0f);
  const DeviceArray<float> from(in), to(kThreads);
  launch({.grid = dim3(1), .block = dim3(kThreads), .smem = 3 * kThreads * 16}, pipeline, from.data(),
         to.data(), kSteps);
  const auto out = to.read();
  for (int i = 0; i < kThreads; ++i) {
    float sum = 0;
    for (int step = 0; step < kSteps; ++step)
      for (int k = 0; k < 4; ++k)
        if (const int thread = (i + 1) % kThreads; (step + thread) % 5)
          sum += in[(step * kThreads + thread) * 4 + k];
    EXPECT_EQ(out[i], sum);
  }
}

__global__ void order_of_threads(int* order, int* count) {
  order[(*count)++] = static_cast<int>(threadIdx.x);
}

TEST(EmulatorOrder, FollowsTheSeed) {
  const auto order = [](uint64_t seed) {
    emulation::set_seed(seed);
    emulation::reset_machine();
    const DeviceArray<int> out(64), count(std::vector<int>{0});
    launch({.grid = dim3(1), .block = dim3(64)}, order_of_threads, out.data(), count.data());
    return out.read();
  };
  const auto first = order(1);
  EXPECT_EQ(first, order(1));
  EXPECT_NE(first, order(2));
  std::vector<int> sorted = first, all(64);
  std::sort(sorted.begin(), sorted.end());
  std::iota(all.begin(), all.end(), 0);
  EXPECT_EQ(sorted, all);
  EXPECT_NE(first, all);
}

}  // namespace
}  // namespace deepinfer::cuda
