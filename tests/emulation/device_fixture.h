// Any arrays on a CUDA device, emulated or real, and tests that are skipped where there is none.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <utility>

#include "emulation/cuda_fixture.h"

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

// With arrays of any plain type.
struct Card : CudaMachine {
  explicit Card(DType activation = DType::kBF16) : CudaMachine(activation) {}

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
};

}  // namespace deepinfer::test
