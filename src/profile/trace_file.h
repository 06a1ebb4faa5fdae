// A trace in the JSON format of Chrome's trace viewer, which ui.perfetto.dev opens ("Trace Event Format").
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "deepinfer/result.h"
#include "profile/cupti.h"
#include "profile/profiler.h"

namespace deepinfer {

struct TraceTrack {
  std::string name;
  std::vector<std::span<const ProfileEvent>> pieces;
  uint64_t dropped = 0;      // that found no room
  int64_t dropped_from = 0;  // ns of Profiler::now()
};

struct TraceInput {
  int64_t start = 0, end = 0;  // ns of Profiler::now(); the trace's times begin at 0 with `start`
  std::string device;
  std::vector<TraceTrack> tracks;    // threads
  const DeviceTrace* gpu = nullptr;  // borrowed
  uint64_t dropped = 0;              // of all tracks and the GPU
  std::string summary;               // a JSON object, kept in the file besides
};

// Writes beside the place and moves it there when it is whole; folders on the way are made. The number of
// events; kConfig with the reason when the file cannot be written.
Result<uint64_t> write_trace(const TraceInput& input, const std::filesystem::path& file);

}  // namespace deepinfer
