#include "device/tuning.h"

#include <fmt/format.h>

#include <algorithm>

namespace deepinfer {
namespace {

constexpr uint64_t kMiB = 1 << 20;
constexpr uint64_t kGiB = 1 << 30;

int next_size(int size, bool for_5090) {
  if (size < 8) return size * 2;
  if (size < 32) return size + 8;
  if (!for_5090) return size + (size < 256 ? 8 : 16);
  return size + (size < 64 ? 16 : 32);
}

}  // namespace

std::vector<int> graph_sizes(int max_num_seqs, bool for_5090) {
  std::vector<int> sizes;
  for (int size = 1; size < max_num_seqs; size = next_size(size, for_5090)) sizes.push_back(size);
  sizes.push_back(max_num_seqs);
  return sizes;
}

GpuTuning resolve_tuning(const Config::Gpu& settings, const GpuInfo& gpu) {
  constexpr ComputeCapability kRtx50{12, 0};
  constexpr ComputeCapability kHasPdl{9, 0};
  GpuTuning out;
  out.for_5090 = settings.nvidia_5090_optimizations && gpu.capability == kRtx50;
  if (settings.nvidia_5090_optimizations && !out.for_5090)
    out.warning = fmt::format(
        "gpu.nvidia_5090_optimizations: does nothing on {} (compute capability {}), it is for cards of 12.0",
        gpu.name.empty() ? "this GPU" : gpu.name, gpu.capability ? to_string(*gpu.capability) : "unknown");
  out.fp8_weights = out.fp8_kv_cache = out.for_5090;
  out.cuda_graphs = !settings.enforce_eager;
  if (out.cuda_graphs) out.graph_sizes = graph_sizes(settings.max_num_seqs, out.for_5090);
  out.pdl_max_batch = gpu.capability >= kHasPdl ? 32 : 0;
  const uint64_t total = gpu.total_bytes.value_or(0);
  // Elsewhere less: what the driver takes when it loads a kernel late, and what a desktop needs.
  out.headroom_bytes = out.for_5090 ? std::max(kGiB, total / 25) : std::max(512 * kMiB, total / 50);
  // A piece reads the head's weight again: 128 rows of a large vocabulary cost a 5090 6% of a step of 512.
  out.logits_bytes = out.for_5090 ? 64 * kMiB : 256 * kMiB;
  return out;
}

std::string preferred_weights(const Config::Gpu& settings, const std::optional<GpuInfo>& gpu) {
  return gpu && resolve_tuning(settings, *gpu).fp8_weights ? "fp8" : "";
}

}  // namespace deepinfer
