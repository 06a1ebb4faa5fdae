// What stands fixed before the work begins: checked input, group, cost.
#pragma once

#include <string>
#include <vector>

#include "model/checkpoint.h"
#include "quantize/calibration.h"
#include "quantize/options.h"

namespace deepinfer::quantize {

struct Plan {
  Options options;
  Checkpoint checkpoint;
  std::string config_json;     // the model's, as it stands
  Samples samples;             // none for fp8 and int4
  int64_t group = 0;           // 0: a whole row
  DType dtype = DType::kBF16;  // of scales and of what is not quantized
  int threads = 1;

  int64_t memory_bytes = 0;  // at the peak, without the mapped model
  int64_t out_bytes = 0;     // of the result
  int64_t disk_bytes = 0;    // at the peak
  double flops = 0;          // of a layer
  double seconds = 0;        // about, for all layers

  std::filesystem::path partial() const { return options.out.string() + ".partial"; }
};

// kConfig, kModel, kNotFound, kMemory: what was found, what would work. Touches nothing.
Result<Plan> make_plan(const Options& options);

// The largest of 128, 64 and 32 that divides all of these columns; 0: none.
int64_t largest_group(const std::vector<int64_t>& columns);

}  // namespace deepinfer::quantize
