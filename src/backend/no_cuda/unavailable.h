// What an operation says when its tensors are on a device that this build cannot use.
#pragma once

#include <fmt/format.h>

#include "backend/cuda.h"

namespace deepinfer::cuda {

[[noreturn]] inline void unavailable(const char* operation) {
  throw CudaUnavailable(fmt::format(
      "{}: the tensors are on a CUDA device, but this build has no CUDA: use device cpu", operation));
}

}  // namespace deepinfer::cuda
