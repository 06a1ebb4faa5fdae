#include "device/visible_devices.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

namespace deepinfer {
namespace {

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
  return text;
}

// The index of the GPU that an entry names; -1: none.
int index_of(std::string_view entry, const std::vector<std::string>& uuids) {
  int index = -1;
  const auto [end, error] = std::from_chars(entry.data(), entry.data() + entry.size(), index);
  if (error == std::errc() && end == entry.data() + entry.size())
    return index >= 0 && index < static_cast<int>(uuids.size()) ? index : -1;
  if (!entry.starts_with("GPU-")) return -1;
  int found = -1;
  for (size_t i = 0; i < uuids.size(); ++i) {
    if (!uuids[i].starts_with(entry)) continue;
    if (found >= 0) return -1;  // ambiguous
    found = static_cast<int>(i);
  }
  return found;
}

}  // namespace

VisibleDevices visible_devices(std::string_view variable, const std::vector<std::string>& uuids) {
  VisibleDevices out;
  if (trimmed(variable).empty()) {
    out.message =
        "CUDA_VISIBLE_DEVICES is set and empty, which hides every GPU: unset it, or name GPUs in it";
    return out;
  }
  for (std::string_view rest = variable;;) {
    const size_t comma = std::min(rest.find(','), rest.size());
    const std::string_view entry = trimmed(rest.substr(0, comma));
    VisibleDevice device;
    if (entry.starts_with("MIG-"))
      device.mig_uuid = entry;
    else
      device.index = index_of(entry, uuids);
    if (device.index < 0 && device.mig_uuid.empty()) {
      out.message = fmt::format(
          "CUDA_VISIBLE_DEVICES={}: \"{}\" names none of this machine's {} GPUs, and CUDA ignores it and "
          "what follows: expected indices from 0, GPU- or MIG- UUIDs",
          variable, entry, uuids.size());
      return out;
    }
    const bool twice = std::any_of(out.devices.begin(), out.devices.end(), [&](const VisibleDevice& d) {
      return d.index == device.index && d.mig_uuid == device.mig_uuid;
    });
    if (twice) {
      out.devices.clear();
      out.message =
          fmt::format("CUDA_VISIBLE_DEVICES={}: names a GPU twice, and CUDA then sees none", variable);
      return out;
    }
    out.devices.push_back(std::move(device));
    if (comma == rest.size()) return out;
    rest.remove_prefix(comma + 1);
  }
}

}  // namespace deepinfer
