// A GPU, memory and tensors for tests of the CUDA operations. They go through cuda::Gpu alone, so that the
// same tests run on the emulation and on a card.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "backend/cuda_gpu.h"
#include "base/arena.h"
#include "base/check.h"
#include "ops/fixture.h"
#include "tensor/context.h"
#ifdef DEEPINFER_EMULATION
#include "emulation/emulated_gpu.h"
#endif

namespace deepinfer::test {

#ifdef DEEPINFER_EMULATION
inline constexpr bool kEmulated = true;
#else
inline constexpr bool kEmulated = false;
#endif

// The order in which the emulation runs threads, blocks and streams; a card has its own.
inline void use_order([[maybe_unused]] uint64_t seed) {
#ifdef DEEPINFER_EMULATION
  emulation::set_seed(seed);
#endif
}

// A context on the GPU with a scratch arena of its own.
struct CudaMachine {
  explicit CudaMachine(DType activation, bool deterministic = false, size_t scratch = size_t{8} << 20) {
    auto opened = cuda::Gpu::open({.deterministic = deterministic});
    DI_CHECK(opened.ok(), "{}", opened.error().message);
    gpu = std::move(opened).value();
    arena = Arena(take(scratch), 256);
    context.device = {Device::Kind::kCuda, 0};
    context.gpu = gpu.get();
    context.scratch = &arena;
    context.activation = activation;
  }
  ~CudaMachine() { gpu->synchronize(); }

  Buffer take(size_t bytes) {
    Result<Buffer> b = gpu->allocate(bytes);
    DI_CHECK(b.ok(), "{}", b.error().message);
    return std::move(b).value();
  }

  std::unique_ptr<cuda::Gpu> gpu;
  Arena arena;
  Context context;
};

// Between doubles and elements of a dtype.
inline void encode(DType dtype, const std::vector<float>& values, std::byte* out) {
  for (size_t i = 0; i < values.size(); ++i) {
    if (dtype == DType::kF32) {
      std::memcpy(out + i * 4, &values[i], 4);
      continue;
    }
    const uint16_t bits = dtype == DType::kF16 ? ref::to_f16(values[i]) : ref::to_bf16(values[i]);
    std::memcpy(out + i * 2, &bits, 2);
  }
}

inline std::vector<float> decode(DType dtype, const std::byte* from, size_t n) {
  std::vector<float> values(n);
  for (size_t i = 0; i < n; ++i) {
    uint16_t bits = 0;
    if (dtype == DType::kF32) {
      std::memcpy(&values[i], from + i * 4, 4);
      continue;
    }
    std::memcpy(&bits, from + i * 2, 2);
    values[i] = dtype == DType::kF16 ? static_cast<float>(ref::f16(bits))
                                     : std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
  }
  return values;
}

// Elements in the device's memory, exactly as many as asked for: the byte after the last is not ours.
class DeviceTensor {
 public:
  DeviceTensor(CudaMachine& m, DType dtype, size_t n)
      : m_(m), dtype_(dtype), n_(n), buffer_(m.take(std::max<size_t>(bytes(), 1))) {
    Result<Buffer> host = m.gpu->allocate_pinned(std::max<size_t>(bytes(), 1));
    DI_CHECK(host.ok(), "{}", host.error().message);
    host_ = std::move(host).value();
  }
  DeviceTensor(CudaMachine& m, DType dtype, const std::vector<float>& values)
      : DeviceTensor(m, dtype, values.size()) {
    write(values);
  }
  DeviceTensor(CudaMachine& m, const std::vector<int32_t>& values)
      : DeviceTensor(m, DType::kI32, values.size()) {
    std::memcpy(host_.data(), values.data(), bytes());
    m.gpu->copy_in(buffer_.data(), host_.data(), bytes());
    m.gpu->synchronize();
  }

  void write(const std::vector<float>& values) {
    encode(dtype_, values, host_.data());
    m_.gpu->copy_in(buffer_.data(), host_.data(), bytes());
    m_.gpu->synchronize();
  }
  std::vector<float> read() {
    copy_out();
    return decode(dtype_, host_.data(), n_);
  }
  std::vector<int32_t> read_ints() {
    copy_out();
    std::vector<int32_t> values(n_);
    std::memcpy(values.data(), host_.data(), bytes());
    return values;
  }

  Tensor tensor(std::initializer_list<int64_t> shape) const {
    return make_tensor(buffer_.data(), dtype_, shape, m_.context.device);
  }
  // Rows of `cols` with `stride` elements from one to the next.
  Tensor rows(int64_t rows, int64_t cols, int64_t stride) const {
    Tensor t = tensor({rows, cols});
    t.stride[0] = stride;
    return t;
  }
  void* data() const { return buffer_.data(); }

 private:
  size_t bytes() const { return n_ * static_cast<size_t>(info(dtype_).block_bytes); }
  void copy_out() {
    m_.gpu->copy_out(host_.data(), buffer_.data(), bytes());
    m_.gpu->synchronize();
  }

  CudaMachine& m_;
  DType dtype_;
  size_t n_;
  Buffer buffer_, host_;
};

// Rounded to A, as a kernel reads it.
inline std::vector<float> rounded(DType a, std::vector<float> values) {
  for (float& v : values) v = static_cast<float>(ref::round_to(a, v));
  return values;
}

}  // namespace deepinfer::test
