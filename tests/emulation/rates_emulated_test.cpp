// The card's two rates, measured. Emulated time is made up: what counts is what runs and what is said.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "backend/cuda_rates.h"
#include "emulation/cuda_fixture.h"

namespace deepinfer::test {
namespace {

constexpr cuda::RateSizes kSmall{.copy_bytes = 1 << 20, .matrix = 64, .copies = 3, .products = 2, .runs = 4};

std::unique_ptr<cuda::Gpu> opened() {
  auto gpu = cuda::Gpu::open({.self_check = false});
  DI_CHECK(gpu.ok(), "{}", gpu.error().message);
  const Result<void> ready = (*gpu)->open_fast_paths();
  DI_CHECK(ready.ok(), "{}", ready.error().message);
  return std::move(gpu).value();
}

TEST(Rates, BothAreMeasured) {
  const auto gpu = opened();
  const size_t free = gpu->memory().free_bytes;
  const auto rates = cuda::measure_rates(*gpu, kSmall);
  ASSERT_TRUE(rates.ok()) << rates.error().message;
  EXPECT_GT(rates->copy_gb_per_second, 0);
  EXPECT_GT(rates->tflop_per_second, 0);
  EXPECT_EQ(rates->no_products, "");
  EXPECT_EQ(rates->copy_bytes, 1u << 20);
  EXPECT_EQ(rates->matrix, 64);
  if (kEmulated) EXPECT_EQ(gpu->memory().free_bytes, free);
}

#ifdef DEEPINFER_EMULATION
TEST(Rates, RunsAsOftenAsAsked) {
  const auto gpu = opened();
  gpu->synchronize();
  const int64_t before = emulation::machine_counts().copies;
  ASSERT_TRUE(cuda::measure_rates(*gpu, kSmall).ok());
  EXPECT_GE(emulation::machine_counts().copies - before, 1 + 3 * 4);
}

TEST(Rates, LittleMemoryMakesThemSmaller) {
  emulation::reset_machine({.total_memory = size_t{256} << 20, .used_by_others = size_t{140} << 20});
  {
    const auto gpu = opened();
    const size_t free = gpu->memory().free_bytes;
    const auto rates = cuda::measure_rates(
        *gpu, {.copy_bytes = size_t{2} << 30, .matrix = 64, .copies = 1, .products = 1, .runs = 1});
    ASSERT_TRUE(rates.ok()) << rates.error().message;
    EXPECT_EQ(rates->copy_bytes, free / 4 / 256 * 256);
    EXPECT_GT(rates->copy_gb_per_second, 0);
  }
  emulation::reset_machine({.total_memory = size_t{72} << 20, .used_by_others = size_t{30} << 20});
  {
    const auto gpu = opened();
    const size_t rest = gpu->memory().free_bytes - (size_t{2} << 20);
    Result<Buffer> others = gpu->allocate(rest);
    ASSERT_TRUE(others.ok()) << others.error().message;
    const auto rates = cuda::measure_rates(*gpu, kSmall);
    ASSERT_FALSE(rates.ok());
    EXPECT_EQ(rates.error().code, ErrorCode::kMemory);
    EXPECT_THAT(rates.error().message, testing::HasSubstr("too few to measure a copy"));
  }
  emulation::reset_machine();
}

TEST(Rates, WithoutTheLibraryThereIsNoRateOfProducts) {
  emulation::reset_machine({.cublaslt = false});
  {
    const auto gpu = opened();
    const auto rates = cuda::measure_rates(*gpu, kSmall);
    ASSERT_TRUE(rates.ok()) << rates.error().message;
    EXPECT_GT(rates->copy_gb_per_second, 0);
    EXPECT_EQ(rates->tflop_per_second, 0);
    EXPECT_THAT(rates->no_products, testing::HasSubstr("cuBLASLt is not there"));
  }
  emulation::reset_machine();
}
#endif

}  // namespace
}  // namespace deepinfer::test
