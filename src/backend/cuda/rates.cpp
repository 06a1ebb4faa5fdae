#include <algorithm>

#include "backend/cuda/cublaslt.h"
#include "backend/cuda/parts.h"
#include "backend/cuda/random_fill.h"
#include "backend/cuda/timer.h"
#include "backend/cuda_rates.h"
#include "base/check.h"

namespace deepinfer::cuda {
namespace {

constexpr size_t kLeastCopy = 1 << 20;
constexpr int64_t kLeastMatrix = 16;

// The best of some runs, in seconds for one call of `work`.
template <class Work>
double seconds(const Gpu& gpu, int runs, int calls, const Work& work) {
  Timer timer;
  float best = 0;
  for (int run = 0; run < runs; ++run) {
    timer.start(stream_of(gpu));
    for (int i = 0; i < calls; ++i) work();
    const float us = timer.stop_us(stream_of(gpu));
    best = run == 0 ? us : std::min(best, us);
  }
  return static_cast<double>(best) * 1e-6 / calls;
}

Result<void> measure_copy(Gpu& gpu, const RateSizes& sizes, DeviceRates& rates) {
  const size_t bytes = std::min(sizes.copy_bytes, gpu.memory().free_bytes / 4) / 256 * 256;
  if (bytes < std::min(kLeastCopy, sizes.copy_bytes))
    return make_error(ErrorCode::kMemory, "GPU {} ({}): {} bytes free, too few to measure a copy",
                      gpu.facts().index, gpu.facts().name, gpu.memory().free_bytes);
  DI_ASSIGN(const Buffer from, gpu.allocate(bytes));
  DI_ASSIGN(const Buffer to, gpu.allocate(bytes));
  const auto copy = [&] {
    DI_CUDA_CHECK(cudaMemcpyAsync(to.data(), from.data(), bytes, cudaMemcpyDeviceToDevice, stream_of(gpu)));
  };
  gpu.fill(from.data(), 0x5a, bytes);
  copy();  // the first one touches the memory
  const double each = seconds(gpu, sizes.runs, sizes.copies, copy);
  rates.copy_bytes = bytes;
  if (each > 0) rates.copy_gb_per_second = 2.0 * static_cast<double>(bytes) / each / 1e9;
  return {};
}

Result<void> measure_products(Gpu& gpu, const RateSizes& sizes, DeviceRates& rates) {
  Cublaslt* library = gpu.parts().cublaslt.get();
  if (library == nullptr || !gpu.fast.cublaslt) {
    rates.no_products = "cuBLASLt is not there, and the own kernels' rate is no measure of the card";
    return {};
  }
  int64_t n = sizes.matrix;
  const auto matrix_bytes = [&] { return static_cast<size_t>(n * n) * 2; };
  while (n > kLeastMatrix && 3 * matrix_bytes() > gpu.memory().free_bytes / 2) n = n / 2 / 16 * 16;
  DI_ASSIGN(const Buffer x, gpu.allocate(matrix_bytes()));
  DI_ASSIGN(const Buffer w, gpu.allocate(matrix_bytes()));
  DI_ASSIGN(const Buffer d, gpu.allocate(matrix_bytes()));
  // A card draws less power for zeros, and clocks higher.
  for (const Buffer* b : {&x, &w})
    fill_random(gpu, {.seed = b == &x ? 1u : 2u, .exponent = random_exponent(n)},
                {.to = b->data(), .rows = n, .cols = n, .stride = n});
  const Gemm product{.m = n,
                     .n = n,
                     .k = n,
                     .x = x.data(),
                     .x_stride = n,
                     .w = w.data(),
                     .w_stride = n,
                     .d = d.data(),
                     .d_stride = n};
  bool served = library->multiply(gpu, product);  // the first one is tuned
  const double each = seconds(gpu, served ? sizes.runs : 0, sizes.products,
                              [&] { served &= library->multiply(gpu, product); });
  gpu.synchronize();
  rates.matrix = n;
  if (!served)
    rates.no_products = "cuBLASLt has no algorithm for the product";
  else if (each > 0)
    rates.tflop_per_second = 2.0 * static_cast<double>(n) * static_cast<double>(n * n) / each / 1e12;
  return {};
}

}  // namespace

Result<DeviceRates> measure_rates(Gpu& gpu, const RateSizes& sizes) {
  DeviceRates rates;
  DI_TRY(measure_copy(gpu, sizes, rates));
  DI_TRY(measure_products(gpu, sizes, rates));
  return rates;
}

}  // namespace deepinfer::cuda
