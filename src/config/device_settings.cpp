#include "config/device_settings.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>

namespace deepinfer {
namespace {

std::string lower(std::string text) {
  for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text;
}

bool is_card(const std::string& name, const char* card) {
  const std::string low = lower(name);
  return low.find(card) != std::string::npos && low.find("laptop") == std::string::npos &&
         low.find("max-q") == std::string::npos;
}

// By memory alone. A card reports a few percent less than it is sold as: 24564 MiB is "24 GB".
RecommendedSettings by_memory(const DeviceDescription& device) {
  const double gib = static_cast<double>(device.memory_bytes) / (1ULL << 30);
  RecommendedSettings out{
      .gpu_memory_utilization = 0.85, .max_num_seqs = 256, .max_num_batched_tokens = 2048};
  if (gib >= 160) {
    out.max_num_seqs = 1024;
    out.max_num_batched_tokens = 16384;
  } else if (gib >= 70 && lower(device.name).find("a100") == std::string::npos) {
    out.max_num_seqs = 1024;
    out.max_num_batched_tokens = 8192;
  }
  out.source =
      device.memory_bytes == 0 ? "memory unknown: the most careful values" : "less than 16 GB of memory";
  const struct {
    double gib;
    double utilization;
    const char* source;
  } steps[] = {{16, 0.88, "16 GB of memory or more"},
               {24, 0.90, "24 GB of memory or more"},
               {40, 0.92, "40 GB of memory or more"}};
  for (const auto& step : steps) {
    if (gib < 0.95 * step.gib) break;
    out.gpu_memory_utilization = step.utilization;
    out.source = step.source;
  }
  return out;
}

}  // namespace

bool is_rtx_5090(const std::string& name) {
  return is_card(name, "rtx 5090");
}

bool is_rtx_4090(const std::string& name) {
  return is_card(name, "rtx 4090");
}

RecommendedSettings recommended_settings(const DeviceDescription& device) {
  RecommendedSettings out = by_memory(device);
  if (is_rtx_5090(device.name)) {
    out.gpu_memory_utilization = 0.95;
    out.max_num_seqs = 512;
    out.nvidia_5090_optimizations = true;
    out.source = "RTX 5090";
  } else if (is_rtx_4090(device.name)) {
    out.gpu_memory_utilization = 0.92;
    out.max_num_seqs = 384;
    out.source = "RTX 4090";
  }
  return out;
}

std::vector<DeviceSetting> device_settings(const DeviceDescription& device) {
  // A step of 512 tokens is 0.3 s of two cores: more of them at once make it no faster, and every stream
  // waits.
  if (!device.gpu)
    return {{"gpu.max_num_seqs", "128", "this device (CPU)"},
            {"gpu.max_num_batched_tokens", "512", "this device (CPU)"}};
  const RecommendedSettings r = recommended_settings(device);
  const std::string origin = fmt::format("this device ({})", device.name.empty() ? "GPU" : device.name);
  std::vector<DeviceSetting> out = {
      {"gpu.gpu_memory_utilization", fmt::format("{:.2f}", r.gpu_memory_utilization), origin},
      {"gpu.max_num_seqs", std::to_string(r.max_num_seqs), origin},
      {"gpu.max_num_batched_tokens", std::to_string(r.max_num_batched_tokens), origin},
  };
  if (r.nvidia_5090_optimizations) out.push_back({"gpu.nvidia_5090_optimizations", "true", origin});
  return out;
}

}  // namespace deepinfer
