#include "tensor/tensor.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <span>

#include "base/check.h"

namespace deepinfer {

int64_t Tensor::elems() const {
  int64_t n = 1;
  for (int i = 0; i < rank; ++i) n *= shape[i];
  return n;
}

bool Tensor::contiguous() const {
  int64_t expected = 1;
  for (int i = rank - 1; i >= 0; --i) {
    if (shape[i] != 1 && stride[i] != expected) return false;
    expected *= shape[i];
  }
  return true;
}

std::string Tensor::describe() const {
  return fmt::format("{} [{}]", info(dtype).name, fmt::join(std::span(shape.data(), rank), ", "));
}

Tensor make_tensor(void* data, DType dtype, std::initializer_list<int64_t> shape, Device device) {
  DI_CHECK(shape.size() <= Tensor::kMaxRank, "rank {} is above {}", shape.size(), Tensor::kMaxRank);
  Tensor t{.data = data, .dtype = dtype, .device = device, .rank = static_cast<int>(shape.size())};
  std::copy(shape.begin(), shape.end(), t.shape.begin());
  int64_t step = 1;
  for (int i = t.rank - 1; i >= 0; --i) {
    t.stride[i] = step;
    step *= t.shape[i];
  }
  return t;
}

Tensor slice_rows(const Tensor& t, int64_t first, int64_t count) {
  DI_CHECK(first >= 0 && count >= 0 && first + count <= t.shape[0], "rows [{}, {}) of {}", first,
           first + count, t.describe());
  DI_CHECK(info(t.dtype).block_elems == 1, "rows of {} cannot be sliced", t.describe());
  Tensor out = t;
  out.data = static_cast<std::byte*>(t.data) + first * t.stride[0] * info(t.dtype).block_bytes;
  out.shape[0] = count;
  return out;
}

void check_tensor(const Tensor& t, const char* what, DType dtype, std::initializer_list<int64_t> shape) {
  bool same = t.dtype == dtype && t.rank == static_cast<int>(shape.size());
  for (int i = 0; same && i < t.rank; ++i) same = shape.begin()[i] < 0 || shape.begin()[i] == t.shape[i];
  DI_CHECK(same, "{}: got {}, expected {} [{}]", what, t.describe(), info(dtype).name,
           fmt::join(shape, ", "));
}

}  // namespace deepinfer
