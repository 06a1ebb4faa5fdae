// What a GPU did, and when: kernels, copies and fills as CUPTI reports them. CUPTI is NVIDIA's library for
// profilers, part of the toolkit, loaded at run time.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/shared_library.h"
#include "deepinfer/result.h"
#include "profile/cupti_api.h"

namespace deepinfer {

struct DeviceActivity {
  int64_t start = 0, end = 0;  // ns of Profiler::now()
  int64_t step = -1;           // whose launch it came from; -1: not known
  uint64_t bytes = 0;          // of copies and fills
  uint32_t name = 0;           // in DeviceTrace::names
  uint32_t device = 0, stream = 0;
  uint32_t correlation = 0;
};

struct DeviceTrace {
  std::vector<std::string> names;  // of kernels as the compiler mangled them; "copy to device", "fill"
  std::vector<DeviceActivity> activities;
  uint64_t dropped = 0;  // beyond the bound, or lost by CUPTI
  uint64_t broken = 0;   // without usable times
};

// CUPTI's callbacks carry no argument, so one object of a process at a time can record. start(), stop() and
// the destructor are for one thread at a time; enter() and leave() for the thread that launches.
class Cupti {
 public:
  // kUnavailable with the places that were looked at.
  static Result<std::unique_ptr<Cupti>> open(const std::vector<LibraryFolder>& folders);
  ~Cupti();
  Cupti(const Cupti&) = delete;

  const std::string& path() const { return path_; }

  // At most so many activities are kept. kUnavailable: CUPTI refuses, for another tool uses it, or the system
  // does not let this user; or another object records.
  Result<void> start(size_t most);
  DeviceTrace stop();  // empty when it was not started

  // What is launched in between belongs to the step.
  void enter(uint64_t step) const;
  void leave() const;

 private:
  Cupti(const cupti::Functions& functions, std::string path);
  static void give_buffer(uint8_t** buffer, size_t* size, size_t* records);
  static void take_buffer(void* context, uint32_t stream, uint8_t* buffer, size_t size, size_t valid);

  Error refusal(const char* what, int code) const;
  int64_t clock_offset() const;
  void read(uint8_t* buffer, size_t valid);
  void add(const cupti::KernelActivity& kernel);
  void add(const DeviceActivity& activity, const char* name);

  const cupti::Functions functions_;
  const std::string path_;
  bool started_ = false;
  int64_t offset_ = 0;  // our clock - CUPTI's
  // Filled by CUPTI's thread, under the mutex of the callbacks.
  size_t most_ = 0;
  DeviceTrace trace_;
  std::unordered_map<std::string, uint32_t> names_;
  std::unordered_map<uint32_t, int64_t> steps_;  // by correlation
};

}  // namespace deepinfer
