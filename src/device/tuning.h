// Settings of a GPU resolved to the plain values that the engine reads.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "deepinfer/config.h"
#include "device/gpu_info.h"

namespace deepinfer {

struct GpuTuning {
  bool for_5090 = false;         // gpu.nvidia_5090_optimizations, on a card that it is for
  bool fp8_weights = false;      // round plain weights while loading where the settings do not choose
  bool fp8_kv_cache = false;     // take fp8 where neither the settings nor the checkpoint choose
  bool cuda_graphs = true;       // not gpu.enforce_eager
  std::vector<int> graph_sizes;  // batches that get a decode graph, ascending; the last is max_num_seqs
  int pdl_max_batch = 0;         // programmatic dependent launch for decode batches up to this; 0: never
  uint64_t headroom_bytes = 0;   // of the free memory, to be left alone whatever the utilization says
  uint64_t logits_bytes = 0;     // logits of a step are computed in pieces of rows that fit in here
  std::string warning;           // to be logged; empty: none
};

// A pure function. Points of the 5090's list that are not here hold on every card (autotune, no path of
// another architecture) or are the kernels' own (tile sizes).
GpuTuning resolve_tuning(const Config::Gpu& settings, const GpuInfo& gpu);

// What plain weights are rounded to while loading when model.quantization is not set: "fp8", or empty for
// nothing. Unset: no GPU.
std::string preferred_weights(const Config::Gpu& settings, const std::optional<GpuInfo>& gpu);

// 1, 2, 4, 8, 16, 24, 32, then in the larger steps of the 5090's list or of 8 to 256 and 16 beyond; the last
// is max_num_seqs itself.
std::vector<int> graph_sizes(int max_num_seqs, bool for_5090);

}  // namespace deepinfer
