// A view of memory: it owns nothing.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "tensor/dtype.h"

namespace deepinfer {

struct Device {
  enum class Kind : uint8_t { kCpu, kCuda } kind = Kind::kCpu;
  int index = 0;
  bool is_cpu() const { return kind == Kind::kCpu; }
  bool operator==(const Device&) const = default;
};

struct Tensor {
  static constexpr int kMaxRank = 4;

  void* data = nullptr;
  DType dtype = DType::kF32;
  Device device;
  int rank = 0;
  std::array<int64_t, kMaxRank> shape{};
  std::array<int64_t, kMaxRank> stride{};  // in elements; the last one is 1

  int64_t size(int dim) const { return shape[dim < 0 ? rank + dim : dim]; }
  int64_t elems() const;
  bool contiguous() const;
  explicit operator bool() const { return data != nullptr; }

  // A row of the first dimension, for dtypes without blocks.
  template <class T>
  T* row(int64_t i) const {
    return static_cast<T*>(data) + i * stride[0];
  }
  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }

  std::string describe() const;  // "F32 [3, 576]"
};

// A contiguous view.
Tensor make_tensor(void* data, DType dtype, std::initializer_list<int64_t> shape, Device device = {});

// Rows [first, first + count) of the first dimension.
Tensor slice_rows(const Tensor& t, int64_t first, int64_t count);

// Throws InternalError unless t has this dtype and shape (-1 matches anything); `what` names it in the
// message.
void check_tensor(const Tensor& t, const char* what, DType dtype, std::initializer_list<int64_t> shape);

}  // namespace deepinfer
