// Kernels that are wrong, each beside the right one: the emulation must tell them apart. Template parameter
// kWrong takes the line away that matters.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "backend/cuda/arrive.cuh"
#include "backend/cuda/launch.h"
#include "backend/cuda/ptx.h"
#include "emulation/device_array.h"
#include "emulation/emulated_gpu.h"

#if __has_feature(address_sanitizer)
#define DI_NEEDS_ASAN() (void)0
#else
#define DI_NEEDS_ASAN() GTEST_SKIP() << "AddressSanitizer finds it, and this build is without"
#endif

namespace deepinfer::cuda {
namespace {

using emulation::DeviceArray;
using ::testing::AllOf;
using ::testing::HasSubstr;

class Mutation : public ::testing::Test {
 protected:
  void SetUp() override { emulation::set_seed(7); }
  void TearDown() override { emulation::reset_machine(); }

  // What the launch's failure says; empty if it does not fail.
  template <class... P, class... A>
  static std::string failure(const LaunchConfig& config, void (*kernel)(P...), A... args) {
    launch(config, kernel, args...);
    try {
      DI_CUDA_CHECK(cudaDeviceSynchronize());
    } catch (const emulation::Failure& e) {
      EXPECT_EQ(emulation::take_failures(), 1);
      return e.what();
    }
    return "";
  }
};

template <bool kWrong>
__global__ void sum_of_block(const float* in, float* out) {
  DI_SHARED(float[8], parts);
  float sum = in[blockIdx.x * blockDim.x + threadIdx.x];
  for (int bits = 16; bits; bits >>= 1) sum += shfl_xor(sum, bits);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
  if (!kWrong) sync_threads();
  sum = 0;
  for (const float part : parts) sum += part;
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

TEST_F(Mutation, RemovedBarrier) {
  std::vector<float> in(1024);
  std::iota(in.begin(), in.end(), 0.0f);
  const DeviceArray<float> from(in), to(1024);
  const auto wrong = [&](auto kernel) {
    launch({.grid = dim3(4), .block = dim3(256)}, kernel, from.data(), to.data());
    const auto out = to.read();
    int count = 0;
    for (int i = 0; i < 1024; ++i) count += out[i] != 256 * (256 * (i / 256)) + 255 * 128;
    return count;
  };
  EXPECT_EQ(wrong(sum_of_block<false>), 0);
  EXPECT_GT(wrong(sum_of_block<true>), 256);
}

// One thread may write the next round's value while another still reads this round's.
template <bool kWrong>
__global__ void rounds(int* out) {
  DI_SHARED(int, value);
  int sum = 0;
  for (int round = 0; round < 4; ++round) {
    if (static_cast<int>(threadIdx.x) == 7 * round) value = round;
    sync_threads();
    sum += value;
    if (!kWrong) sync_threads();
  }
  out[threadIdx.x] = sum;
}

TEST_F(Mutation, RemovedBarrierBeforeTheNextRound) {
  const DeviceArray<int> out(64);
  launch({.grid = dim3(1), .block = dim3(64)}, rounds<false>, out.data());
  EXPECT_EQ(out.read(), std::vector<int>(64, 6));
  launch({.grid = dim3(1), .block = dim3(64)}, rounds<true>, out.data());
  EXPECT_NE(out.read(), std::vector<int>(64, 6));
}

template <bool kWrong>
__global__ void exchange_in_warp(int* out) {
  DI_SHARED(int[32], values);
  const int lane = static_cast<int>(threadIdx.x);
  values[lane] = lane;
  if (!kWrong) sync_warp();
  out[lane] = values[lane ^ 1];
}

TEST_F(Mutation, RemovedBarrierOfAWarp) {
  const DeviceArray<int> out(32);
  launch({.grid = dim3(1), .block = dim3(32)}, exchange_in_warp<true>, out.data());
  const auto v = out.read();
  int wrong = 0;
  for (int lane = 0; lane < 32; ++lane) wrong += v[lane] != (lane ^ 1);
  EXPECT_GE(wrong, 16);
}

template <bool kWrong>
__global__ void copy_through_shared(const float* in, float* out) {
  DI_DYNAMIC_SHARED(bytes);
  auto* values = reinterpret_cast<float*>(bytes);
  const int i = static_cast<int>(threadIdx.x);
  cp_async_16(values + 4 * i, in + 4 * i);
  cp_async_commit();
  if (kWrong)
    cp_async_wait<1>();
  else
    cp_async_wait<0>();
  sync_threads();
  for (int k = 0; k < 4; ++k) out[4 * i + k] = values[4 * i + k];
}

TEST_F(Mutation, MissingWaitForAnAsynchronousCopy) {
  const std::vector<float> in(128, 1.5f);
  const DeviceArray<float> from(in), to(128);
  launch({.grid = dim3(1), .block = dim3(32), .smem = 512}, copy_through_shared<false>, from.data(),
         to.data());
  EXPECT_EQ(to.read(), in);
  launch({.grid = dim3(1), .block = dim3(32), .smem = 512}, copy_through_shared<true>, from.data(),
         to.data());
  for (const float v : to.read()) EXPECT_TRUE(std::isnan(v));
}

__global__ void writes_dynamic(int index) {
  DI_DYNAMIC_SHARED(bytes);
  bytes[index] = 1;
}

__global__ void writes_static(int index) {
  DI_SHARED(float[32], values);
  float* p = values;  // the compiler's own check of the bound sees no array here
  p[index] = 1;
}

__global__ void writes_static_array(int index) {
  DI_SHARED(float[32], values);
  values[index] = 1;
}

TEST_F(Mutation, SharedIndexOutOfBounds) {
  DI_NEEDS_ASAN();
  const auto run = [](auto kernel, int index) {
    launch({.grid = dim3(1), .block = dim3(1), .smem = 100}, kernel, index);
    DI_CUDA_CHECK(cudaDeviceSynchronize());
  };
  run(writes_dynamic, 99);
  run(writes_static, 31);
  run(writes_static_array, 31);
  EXPECT_DEATH(run(writes_dynamic, 100), "heap-buffer-overflow");
  EXPECT_DEATH(run(writes_dynamic, -1), "heap-buffer-overflow");
  EXPECT_DEATH(run(writes_static, 32), "heap-buffer-overflow");
  EXPECT_DEATH(run(writes_static_array, 32), "out of bounds|heap-buffer-overflow");
}

__global__ void writes(float* out, int index) {
  out[index] = 1;
}

TEST_F(Mutation, DeviceMemoryOutOfBoundsOrFreedInFlight) {
  DI_NEEDS_ASAN();
  EXPECT_DEATH(
      {
        const DeviceArray<float> out(5);
        launch({.grid = dim3(1), .block = dim3(1)}, writes, out.data(), 5);
        (void)cudaDeviceSynchronize();
      },
      "heap-buffer-overflow");
  EXPECT_DEATH(
      {
        {
          const DeviceArray<float> out(5);
          launch({.grid = dim3(1), .block = dim3(1)}, writes, out.data(), 0);
        }
        (void)cudaDeviceSynchronize();
      },
      "heap-use-after-free");
}

__global__ void divergent_barrier(int* out) {
  if (threadIdx.x < 32)
    sync_threads();
  else
    sync_threads();
  out[threadIdx.x] = 1;
}

__global__ void skipped_barrier(int* out) {
  if (threadIdx.x == 40) return;
  sync_threads();
  out[threadIdx.x] = 1;
}

__global__ void barrier_against_shuffle(int* out) {
  if (threadIdx.x < 16)
    sync_threads();
  else
    out[threadIdx.x] = shfl(1, 0);
}

__global__ void divergent_shuffle(int* out) {
  if (threadIdx.x < 16)
    out[threadIdx.x] = shfl(1, 0);
  else
    out[threadIdx.x] = shfl_xor(1, 1);
}

__global__ void mask_without_self(int* out) {
  out[threadIdx.x] = shfl(1, 0, 0xffffu);
}

__global__ void mask_nobody_answers(int* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = shfl(1, 0, 0x0003ffffu);
  sync_threads();
}

TEST_F(Mutation, DivergentBarriersAndCollectives) {
  const DeviceArray<int> out(64);
  const auto run = [&](auto kernel) {
    return failure({.grid = dim3(1), .block = dim3(64)}, kernel, out.data());
  };
  EXPECT_THAT(run(divergent_barrier), AllOf(HasSubstr("kernel "), HasSubstr("block (0,0,0), thread ("),
                                            HasSubstr("threads wait at another one"), HasSubstr("seed 7")));
  EXPECT_THAT(run(skipped_barrier), HasSubstr("exited"));
  EXPECT_THAT(run(barrier_against_shuffle), HasSubstr("exited while"));
  EXPECT_THAT(run(divergent_shuffle), HasSubstr("while other lanes of its mask are in shfl"));
  EXPECT_THAT(run(mask_without_self), HasSubstr("not in its own mask"));
  EXPECT_THAT(run(mask_nobody_answers), AllOf(HasSubstr("waits for ever"), HasSubstr("wait in shfl"),
                                              HasSubstr("wait in a block barrier")));
}

#if __has_feature(address_sanitizer)
TEST_F(Mutation, FailureNamesTheKernel) {
  const DeviceArray<int> out(64);
  EXPECT_THAT(failure({.grid = dim3(1), .block = dim3(64)}, divergent_barrier, out.data()),
              HasSubstr("divergent_barrier"));
}
#endif

__global__ void partial_mma(float* out) {
  if (threadIdx.x == 31) return;
  const uint32_t a[4] = {}, b[2] = {};
  float d[4] = {};
  mma_m16n8k16<__half>(d, a, b);
  out[threadIdx.x] = d[0];
}

__global__ void ldmatrix_from(const void* row, int offset) {
  DI_DYNAMIC_SHARED(bytes);
  uint32_t r[4];
  ldmatrix_x4(r, row ? row : bytes + offset);
}

__global__ void cp_async_to(void* to, const void* from) {
  DI_DYNAMIC_SHARED(bytes);
  cp_async_16(to ? to : bytes, from);
}

TEST_F(Mutation, MisusedMatrixAndCopyInstructions) {
  const DeviceArray<float> data(64);
  const LaunchConfig config{.grid = dim3(1), .block = dim3(32), .smem = 64};
  EXPECT_THAT(failure(config, partial_mma, data.data()), HasSubstr("mma_m16n8k16"));
  EXPECT_THAT(failure(config, ldmatrix_from, data.data(), 0), HasSubstr("not the block's shared memory"));
  EXPECT_THAT(failure(config, ldmatrix_from, nullptr, 8), HasSubstr("multiple of 16"));
  EXPECT_THAT(failure(config, ldmatrix_from, nullptr, 64), HasSubstr("not the block's shared memory"));
  EXPECT_THAT(failure(config, cp_async_to, data.data(), data.data()),
              HasSubstr("not the block's shared memory"));
  EXPECT_THAT(failure(config, cp_async_to, nullptr, data.data() + 1), HasSubstr("multiple of 16"));
  EXPECT_EQ(failure(config, ldmatrix_from, nullptr, 48), "");
}

// After a failure, what ran on the same stacks is forgotten.
TEST_F(Mutation, NextLaunchAfterAFailureIsRight) {
  const DeviceArray<int> out(64);
  for (int i = 0; i < 3; ++i) {
    EXPECT_NE(failure({.grid = dim3(1), .block = dim3(64)}, skipped_barrier, out.data()), "");
    launch({.grid = dim3(1), .block = dim3(64)}, rounds<false>, out.data());
    EXPECT_EQ(out.read(), std::vector<int>(64, 6));
  }
}

enum class JoinFault { kNone, kNoFence, kCounterStays };

// The block that comes last adds up what all of them stored.
template <JoinFault kFault>
__global__ void sum_of_grid(const float* in, float* parts, int32_t* counter, float* out) {
  const auto block = static_cast<int>(blockIdx.x), blocks = static_cast<int>(gridDim.x);
  if (threadIdx.x == 0) store_for_others(parts + block, in[block]);
  bool last = false;
  if constexpr (kFault == JoinFault::kNone) {
    last = arrive_last<64>(counter, 1, blocks);
  } else {
    if (kFault != JoinFault::kNoFence) threadfence();
    sync_threads();
    if (threadIdx.x == 0) last = atomic_add(counter, 1) == blocks - 1;
    if (last && kFault != JoinFault::kCounterStays) *counter = 0;
    last = sync_threads_or(last);
  }
  if (!last || threadIdx.x != 0) return;
  float sum = 0;
  for (int i = 0; i < blocks; ++i) sum += parts[i];
  *out += sum;
}

TEST_F(Mutation, MissingFenceOrCounterThatIsNotReset) {
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    emulation::set_seed(seed);
    const DeviceArray<float> in({1, 2, 4, 8, 16}), out(1);
    const DeviceArray<int32_t> counter(1);
    // The sum of all launches: 31 each.
    const auto sum_of = [&](auto kernel, int launches) {
      const DeviceArray<float> parts(5);
      DI_CUDA_CHECK(cudaMemset(counter.data(), 0, sizeof(int32_t)));
      DI_CUDA_CHECK(cudaMemset(out.data(), 0, sizeof(float)));
      for (int i = 0; i < launches; ++i)
        launch({.grid = dim3(5), .block = dim3(64)}, kernel, in.data(), parts.data(), counter.data(),
               out.data());
      return out.read()[0];
    };
    EXPECT_EQ(sum_of(sum_of_grid<JoinFault::kNone>, 3), 93) << "seed " << seed;
    EXPECT_EQ(counter.read()[0], 0) << "seed " << seed;
    EXPECT_TRUE(std::isnan(sum_of(sum_of_grid<JoinFault::kNoFence>, 1))) << "seed " << seed;
    EXPECT_EQ(sum_of(sum_of_grid<JoinFault::kCounterStays>, 1), 31) << "seed " << seed;
    EXPECT_EQ(sum_of(sum_of_grid<JoinFault::kCounterStays>, 3), 31) << "seed " << seed;
  }
}

__global__ void produce(float* data, float value) {
  grid_dependency_wait();
  data[blockIdx.x * blockDim.x + threadIdx.x] = value;
  grid_launch_dependents();
}

template <bool kWrong>
__global__ void consume(const float* data, float* out) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (!kWrong) grid_dependency_wait();
  out[i] = 2 * data[i];
}

TEST_F(Mutation, MissingWaitForTheKernelBefore) {
  int wrong = 0;
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    emulation::set_seed(seed);
    emulation::reset_machine();
    const DeviceArray<float> data(64), out(64);
    const auto run = [&](auto kernel) {
      DI_CUDA_CHECK(cudaMemset(data.data(), 0, 64 * sizeof(float)));
      for (const float value : {1.0f, 2.0f, 3.0f}) {
        launch({.grid = dim3(2), .block = dim3(32), .pdl = true}, produce, data.data(), value);
        launch({.grid = dim3(2), .block = dim3(32), .pdl = true}, kernel, data.data(), out.data());
      }
      return out.read();
    };
    EXPECT_EQ(run(consume<false>), std::vector<float>(64, 6.0f)) << "seed " << seed;
    EXPECT_GT(emulation::machine_counts().early_starts, 0);
    wrong += run(consume<true>) != std::vector<float>(64, 6.0f);
  }
  EXPECT_GE(wrong, 3);
}

}  // namespace
}  // namespace deepinfer::cuda
