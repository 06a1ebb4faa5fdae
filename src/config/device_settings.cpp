#include "config/device_settings.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>

namespace deepinfer {
namespace {

struct Limits {
  int seqs = 0;
  int tokens = 0;
  const char* utilization = nullptr;
};

std::string lower(std::string text) {
  for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text;
}

// By memory alone. A card reports a few percent less than it is sold as: 24564 MiB is "24 GB".
Limits by_memory(const std::string& name, uint64_t bytes) {
  const double gib = static_cast<double>(bytes) / (1ULL << 30);
  const auto at_least = [&](double size) { return gib >= 0.95 * size; };
  Limits out{256, 2048, "0.85"};
  if (gib >= 160) {
    out.seqs = 1024;
    out.tokens = 16384;
  } else if (gib >= 70 && name.find("a100") == std::string::npos) {
    out.seqs = 1024;
    out.tokens = 8192;
  }
  if (at_least(16)) out.utilization = "0.88";
  if (at_least(24)) out.utilization = "0.90";
  if (at_least(40)) out.utilization = "0.92";
  return out;
}

}  // namespace

std::vector<DeviceSetting> device_settings(const DeviceDescription& device) {
  if (!device.gpu)
    return {{"gpu.max_num_seqs", "128", "this device (CPU)"},
            {"gpu.max_num_batched_tokens", "2048", "this device (CPU)"}};
  const std::string name = lower(device.name);
  Limits limits = by_memory(name, device.memory_bytes);
  // Laptop parts share the name, but not the memory or the bandwidth.
  const bool laptop = name.find("laptop") != std::string::npos || name.find("max-q") != std::string::npos;
  const bool is_5090 = !laptop && name.find("rtx 5090") != std::string::npos;
  const bool is_4090 = !laptop && name.find("rtx 4090") != std::string::npos;
  if (is_5090) {
    limits.seqs = 512;
    limits.utilization = "0.95";
  } else if (is_4090) {
    limits.seqs = 384;
    limits.utilization = "0.92";
  }
  const std::string origin = fmt::format("this device ({})", device.name);
  std::vector<DeviceSetting> out = {
      {"gpu.gpu_memory_utilization", limits.utilization, origin},
      {"gpu.max_num_seqs", std::to_string(limits.seqs), origin},
      {"gpu.max_num_batched_tokens", std::to_string(limits.tokens), origin},
  };
  if (is_5090) out.push_back({"gpu.nvidia_5090_optimizations", "true", origin});
  return out;
}

}  // namespace deepinfer
