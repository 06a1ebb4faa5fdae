// What a CUDA device can do at best, measured: the rates that results are compared with.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "backend/cuda_gpu.h"
#include "deepinfer/result.h"

namespace deepinfer::cuda {

struct RateSizes {
  size_t copy_bytes = size_t{2} << 30;  // far more than any L2 cache
  int64_t matrix = 8192;                // products of matrix x matrix; a multiple of 16
  int copies = 4, products = 10;        // one after the other in a run
  int runs = 5;                         // the best counts
};

struct DeviceRates {
  double copy_gb_per_second = 0;  // within the device's memory, counting bytes read and written
  double tflop_per_second = 0;    // BF16 into BF16 by cuBLASLt; 0: no_products says why there is none
  std::string no_products;
  size_t copy_bytes = 0;  // what was measured: less than asked for where memory is short
  int64_t matrix = 0;
};

// On a device whose fast paths are open and whose memory is mostly free. Takes some tenths of a second.
// kMemory when there is too little memory to measure anything.
Result<DeviceRates> measure_rates(Gpu& gpu, const RateSizes& sizes = {});

}  // namespace deepinfer::cuda
