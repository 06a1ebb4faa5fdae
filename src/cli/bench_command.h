// deepinfer bench: speed of the engine without a server, as JSON.
#pragma once

#include <string>
#include <vector>

#include "deepinfer/config.h"
#include "engine/device_rates.h"

namespace deepinfer {

struct BenchOptions {
  std::vector<int> prefill = {512};  // tokens of the prefill tests; 0: none
  int decode = 128;                  // tokens that a sequence generates; 0: no decode tests
  std::vector<int> batch = {8, 32};  // sequences that decode together
  int batch_prompt = 128;            // tokens of each one's prompt
  int repeat = 5;                    // the median counts
  std::string random_weights;        // a shape (model/random_checkpoint.h) instead of a model
  std::string save;                  // a folder to write these weights to
  bool profile = false;              // record the tests
  std::string profile_file;          // where to; empty: a new name in server.profile_dir
  // What the device does at best, GB/s of a copy and TFLOP/s of matrix products; 0: a GPU is measured, a CPU
  // is not. With both, results are shown as fractions of the least time possible.
  double copy_rate = 0, matmul_rate = 0;
  cuda::RateSizes rate_sizes;  // of that measurement
};

// Returns the exit code.
int bench_command(Config config, const BenchOptions& options);

}  // namespace deepinfer
