// Random inputs of the self-check's products and their way to the device and back, for self_check_linear.cpp,
// self_check_qkv.cpp and self_check_codes.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "backend/cuda_gpu.h"
#include "base/arena.h"
#include "base/check.h"
#include "tensor/tensor.h"

namespace deepinfer::cuda {

// Both sum in F32 what is exact in BF16; a result in BF16 is rounded to 8 bits once. Activations for FP8 are
// exact in e4m3: what rounding them costs is no fault of a kernel.
inline constexpr double kProductBound = 1.0 / 128;

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {  // splitmix64
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  // BF16: either sign, 1/8 to 1.99.
  uint16_t bf16() {
    const uint64_t r = next();
    return static_cast<uint16_t>((r & 0x8000) | ((124 + (r >> 20) % 4) << 7) | (r & 0x7f));
  }
  std::vector<uint16_t> bf16s(int64_t count) {
    std::vector<uint16_t> values(static_cast<size_t>(count));
    for (uint16_t& v : values) v = bf16();
    return values;
  }
  std::vector<float> floats(int64_t count, float factor = 1) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float& v : values) {
      const uint32_t bits = uint32_t{bf16()} << 16;
      std::memcpy(&v, &bits, 4);
      v *= factor;
    }
    return values;
  }

 private:
  uint64_t state_;
};

// As it would stand in a checkpoint.
inline std::vector<std::byte> random_weight(DType dtype, int64_t rows, int64_t cols, Random& random) {
  const auto bytes = static_cast<size_t>(row_bytes(dtype, cols) * rows);
  std::vector<std::byte> data(bytes);
  if (dtype == DType::kBF16) {
    for (size_t i = 0; i < bytes; i += 2) {
      const uint16_t bits = random.bf16();
      std::memcpy(&data[i], &bits, 2);
    }
    return data;
  }
  if (dtype == DType::kF8E4M3) {  // either sign, 1/64 to 240
    for (std::byte& code : data)
      code = static_cast<std::byte>((random.next() & 0x80) | (8 + random.next() % 0x70));
    return data;
  }
  // Blocks of a scale in F16, 1/32 to 1/8, and of any bits.
  const auto block = static_cast<size_t>(info(dtype).block_bytes);
  for (size_t at = 0; at < bytes; at += block) {
    for (size_t i = 2; i < block; ++i) data[at + i] = static_cast<std::byte>(random.next());
    const auto scale = static_cast<uint16_t>((10 + random.next() % 2) << 10 | random.next() % 1024);
    std::memcpy(&data[at], &scale, 2);
  }
  return data;
}

// Both wait for the device.
template <class T>
Result<Buffer> send(Gpu& gpu, const std::vector<T>& values) {
  const size_t bytes = values.size() * sizeof(T);
  DI_ASSIGN(const Buffer staging, gpu.allocate_pinned(bytes));
  DI_ASSIGN(Buffer buffer, gpu.allocate(bytes));
  std::memcpy(staging.data(), values.data(), bytes);
  gpu.copy_in(buffer.data(), staging.data(), bytes);
  gpu.synchronize();
  return buffer;
}

inline Result<std::vector<float>> receive(Gpu& gpu, const Tensor& t) {
  const auto count = static_cast<size_t>(t.elems());
  const size_t bytes = count * (t.dtype == DType::kF32 ? 4 : 2);
  DI_ASSIGN(const Buffer staging, gpu.allocate_pinned(bytes));
  gpu.copy_out(staging.data(), t.data, bytes);
  gpu.synchronize();
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) {
    uint32_t bits = 0;  // the upper half of an F32 is a BF16
    if (t.dtype == DType::kF32)
      std::memcpy(&bits, staging.data() + 4 * i, 4);
    else
      std::memcpy(reinterpret_cast<std::byte*>(&bits) + 2, staging.data() + 2 * i, 2);
    std::memcpy(&values[i], &bits, 4);
  }
  return values;
}

// Puts gpu.fast back at the end of a scope.
class SavedPaths {
 public:
  explicit SavedPaths(Gpu& gpu) : gpu_(gpu), saved_(gpu.fast) {}
  ~SavedPaths() { gpu_.fast = saved_; }
  SavedPaths(const SavedPaths&) = delete;

 private:
  Gpu& gpu_;
  FastPaths saved_;
};

}  // namespace deepinfer::cuda
