// deepinfer bench: speed of the engine without a server, as JSON.
#pragma once

#include <string>
#include <vector>

#include "deepinfer/config.h"

namespace deepinfer {

struct BenchOptions {
  int prefill = 512;                 // tokens of the prefill test; 0: leave it out
  int decode = 128;                  // tokens that one sequence generates; 0: leave it out
  std::vector<int> batch = {8, 32};  // sequences that decode together
  int batch_prompt = 128;            // tokens of each one's prompt
  int repeat = 5;                    // the median counts
};

// Returns the exit code.
int bench_command(Config config, const BenchOptions& options);

}  // namespace deepinfer
