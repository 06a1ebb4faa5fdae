// Disks: how fast the model's file is read, and whether there is room for what is kept.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "deepinfer/result.h"
#include "doctor/finding.h"

namespace deepinfer::doctor {

struct ReadSpeed {
  int64_t bytes = 0;
  double seconds = 0;
  bool from_disk = true;  // false: this file system cannot be read around the memory's copy of it

  double bytes_per_second() const { return seconds > 0 ? static_cast<double>(bytes) / seconds : 0; }
};

// The beginning of a file, or of the largest file of a folder: until one of the limits is reached.
Result<ReadSpeed> measure_read(const std::filesystem::path& path, int64_t max_bytes, double max_seconds);

// `model_bytes`: what a start reads.
Finding check_read_speed(const std::filesystem::path& path, const ReadSpeed& speed, int64_t model_bytes);

struct Space {
  std::filesystem::path folder;  // that would be written to; it need not exist
  int64_t free = 0;
  bool writable = true;
};

Space space_of(const std::filesystem::path& folder);
// `what`: "Cache", "Hub cache"; `variable` moves it.
Finding check_space(const std::string& what, const Space& space, const std::string& variable);

}  // namespace deepinfer::doctor
