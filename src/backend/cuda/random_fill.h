// Random values (tensor/random_values.h) made in the card's memory.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/cuda_gpu.h"
#include "tensor/dtype.h"
#include "tensor/random_values.h"

namespace deepinfer::cuda {

// Rows of values inside a dense packed weight (packed.h). What is padding stays as it is.
struct RandomRows {
  std::byte* to = nullptr;     // the packed weight
  DType dtype = DType::kBF16;  // or kF16
  int64_t rows = 0, cols = 0;  // of the values; rows below 2^31
  int64_t stride = 0;          // elements from one packed row to the next
  int64_t first_row = 0;       // the packed row of row 0
  bool paired = false;         // 8 rows here, 8 of the other part, 8 rows here ...
};

// Asynchronous, in the stream's order.
void fill_random(Gpu& gpu, const RandomValues& values, const RandomRows& rows);

}  // namespace deepinfer::cuda
