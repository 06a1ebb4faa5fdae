// A CUDA device for tests of operations: the emulated one, or a real card where the program links di_cuda.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "backend/cuda_gpu.h"
#include "base/check.h"
#include "tensor/context.h"
#include "tensor/tensor.h"

namespace deepinfer::test {

inline constexpr Device kCard{Device::Kind::kCuda, 0};

template <class T>
T must(Result<T> result) {
  DI_CHECK(result.ok(), "{}", result.error().message);
  return std::move(result).value();
}

// First line of every test that needs a device. The emulation always has one.
#define DI_NEEDS_CARD()                                                          \
  do {                                                                           \
    std::string di_why;                                                          \
    if (cuda::device_count(&di_why) == 0) GTEST_SKIP() << "no card: " << di_why; \
  } while (false)

// A device, its context and a scratch arena on it.
struct Card {
  explicit Card(size_t scratch = size_t{16} << 20, DType activation = DType::kBF16,
                const cuda::GpuOptions& options = {})
      : gpu(must(cuda::Gpu::open(options))), arena(must(gpu->allocate(scratch)), 256) {
    context.device = kCard;
    context.gpu = gpu.get();
    context.scratch = &arena;
    context.activation = activation;
  }
  ~Card() { gpu->synchronize(); }
  Card(const Card&) = delete;

  // Copies wait until they are done.
  template <class T>
  Buffer upload(const std::vector<T>& values) {
    const size_t bytes = values.size() * sizeof(T);
    Buffer device = must(gpu->allocate(std::max<size_t>(bytes, 1)));
    write(device.data(), values);
    return device;
  }
  template <class T>
  void write(void* to, const std::vector<T>& values) {
    const size_t bytes = values.size() * sizeof(T);
    if (bytes == 0) return;
    Buffer pinned = must(gpu->allocate_pinned(bytes));
    std::memcpy(pinned.data(), values.data(), bytes);
    gpu->copy_in(to, pinned.data(), bytes);
    gpu->synchronize();
  }
  template <class T>
  std::vector<T> read(const void* from, size_t count) {
    std::vector<T> values(count);
    if (count == 0) return values;
    Buffer pinned = must(gpu->allocate_pinned(count * sizeof(T)));
    gpu->copy_out(pinned.data(), from, count * sizeof(T));
    gpu->synchronize();
    std::memcpy(values.data(), pinned.data(), count * sizeof(T));
    return values;
  }

  std::unique_ptr<cuda::Gpu> gpu;
  Arena arena;  // freed before the device
  Context context;
};

}  // namespace deepinfer::test
