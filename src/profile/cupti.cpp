#include "profile/cupti.h"

#include <chrono>
#include <cstdlib>
#include <limits>
#include <utility>

#include "base/check.h"

namespace deepinfer {
namespace {

constexpr size_t kBufferBytes = 1 << 20;
constexpr uint32_t kKinds[] = {cupti::kConcurrentKernel, cupti::kMemcpy, cupti::kMemset, cupti::kRuntime,
                               cupti::kExternalCorrelation};

int64_t host_now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

template <class Function>
Result<void> take(const SharedLibrary& library, const char* name, Function*& function) {
  DI_ASSIGN(function, library.symbol<Function>(name));
  return {};
}

Result<cupti::Functions> functions_of(const SharedLibrary& library) {
  cupti::Functions f;
  DI_TRY(take(library, "cuptiGetVersion", f.version));
  DI_TRY(take(library, "cuptiGetResultString", f.result_string));
  DI_TRY(take(library, "cuptiGetTimestamp", f.timestamp));
  DI_TRY(take(library, "cuptiActivityRegisterCallbacks", f.register_callbacks));
  DI_TRY(take(library, "cuptiActivityEnable", f.enable));
  DI_TRY(take(library, "cuptiActivityDisable", f.disable));
  DI_TRY(take(library, "cuptiActivityFlushAll", f.flush));
  DI_TRY(take(library, "cuptiActivityGetNextRecord", f.next_record));
  DI_TRY(take(library, "cuptiActivityGetNumDroppedRecords", f.dropped_records));
  DI_TRY(take(library, "cuptiActivityPushExternalCorrelationId", f.push_external));
  DI_TRY(take(library, "cuptiActivityPopExternalCorrelationId", f.pop_external));
  return f;
}

// Who records now: the callbacks of a C library without an argument leave no other way to find it.
struct Registry {
  std::mutex mutex;
  Cupti* current = nullptr;
};

Registry& registry() {
  static Registry* const kRegistry = new Registry;  // CUPTI may call when the process ends
  return *kRegistry;
}

const char* copy_name(uint8_t kind) {
  switch (kind) {
    case 1:
      return "copy to device";
    case 2:
      return "copy to host";
    case 8:
      return "copy on device";
    default:
      return "copy";
  }
}

}  // namespace

Result<std::unique_ptr<Cupti>> Cupti::open(const std::vector<LibraryFolder>& folders) {
  const LibrarySpec spec{
      .name = "CUPTI",
      .files = {"libcupti.so.13", "libcupti.so"},
      .remedy =
          "It tells what the GPU does and comes with the CUDA toolkit (PyPI: nvidia-cuda-cupti), or set "
          "DEEPINFER_CUDA_LIB_DIR to the folder that has libcupti.so.13.",
      .check = [](const SharedLibrary& library) -> Result<void> {
        DI_TRY(functions_of(library));
        return {};
      }};
  DI_ASSIGN(const SharedLibrary library, load_library(spec, folders));
  DI_ASSIGN(const cupti::Functions functions, functions_of(library));
  return std::unique_ptr<Cupti>(new Cupti(functions, library.path().string()));
}

Cupti::Cupti(const cupti::Functions& functions, std::string path)
    : functions_(functions), path_(std::move(path)) {}

Cupti::~Cupti() {
  if (started_) (void)stop();
}

Error Cupti::refusal(const char* what, int code) const {
  const char* text = nullptr;
  if (functions_.result_string(code, &text) != cupti::kSuccess || text == nullptr) text = "unknown error";
  return make_error(
      ErrorCode::kUnavailable,
      "CUPTI ({}): {} failed with code {} ({}): the driver may let only administrators profile, or another "
      "profiler is attached to this process",
      path_, what, code, text);
}

// The smallest of a few attempts: whatever came between the two readings makes it larger.
int64_t Cupti::clock_offset() const {
  int64_t offset = 0, narrowest = std::numeric_limits<int64_t>::max();
  for (int i = 0; i < 16; ++i) {
    uint64_t there = 0;
    const int64_t before = host_now();
    if (functions_.timestamp(&there) != cupti::kSuccess) continue;
    const int64_t after = host_now();
    if (after - before >= narrowest) continue;
    narrowest = after - before;
    offset = before + narrowest / 2 - static_cast<int64_t>(there);
  }
  return offset;
}

Result<void> Cupti::start(size_t most) {
  DI_CHECK(!started_, "CUPTI was started already");
  {
    const std::lock_guard lock(registry().mutex);
    if (registry().current != nullptr)
      return make_error(ErrorCode::kUnavailable, "another model of this process records GPU kernels");
    registry().current = this;
    most_ = most;
    trace_ = {};
    names_.clear();
    steps_.clear();
  }
  started_ = true;
  offset_ = clock_offset();
  if (const int code = functions_.register_callbacks(give_buffer, take_buffer); code != cupti::kSuccess) {
    (void)stop();
    return refusal("cuptiActivityRegisterCallbacks", code);
  }
  for (const uint32_t kind : kKinds) {
    const int code = functions_.enable(kind);
    if (code == cupti::kSuccess) continue;
    (void)stop();
    return refusal("cuptiActivityEnable", code);
  }
  return {};
}

DeviceTrace Cupti::stop() {
  if (!std::exchange(started_, false)) return {};
  for (const uint32_t kind : kKinds) functions_.disable(kind);
  functions_.flush(cupti::kFlushForced);  // calls take_buffer, so without the mutex
  const std::lock_guard lock(registry().mutex);
  registry().current = nullptr;
  for (DeviceActivity& activity : trace_.activities)
    if (const auto step = steps_.find(activity.correlation); step != steps_.end())
      activity.step = step->second;
  return std::move(trace_);
}

void Cupti::enter(uint64_t step) const {
  functions_.push_external(cupti::kCustom0, step);
}

void Cupti::leave() const {
  uint64_t last = 0;
  functions_.pop_external(cupti::kCustom0, &last);
}

void Cupti::give_buffer(uint8_t** buffer, size_t* size, size_t* records) {
  *buffer = static_cast<uint8_t*>(std::aligned_alloc(64, kBufferBytes));
  *size = *buffer == nullptr ? 0 : kBufferBytes;
  *records = 0;  // as many as fit
}

void Cupti::take_buffer(void* context, uint32_t stream, uint8_t* buffer, size_t, size_t valid) {
  {
    const std::lock_guard lock(registry().mutex);
    if (Cupti* current = registry().current; current != nullptr) {
      current->read(buffer, valid);
      size_t lost = 0;
      if (current->functions_.dropped_records(context, stream, &lost) == cupti::kSuccess)
        current->trace_.dropped += lost;
    }
  }
  std::free(buffer);
}

void Cupti::read(uint8_t* buffer, size_t valid) {
  for (cupti::Activity* record = nullptr;
       functions_.next_record(buffer, valid, &record) == cupti::kSuccess && record != nullptr;) {
    switch (record->kind) {
      case cupti::kKernel:
      case cupti::kConcurrentKernel: {
        add(*reinterpret_cast<const cupti::KernelActivity*>(record));
        break;
      }
      case cupti::kMemcpy: {
        const auto& c = *reinterpret_cast<const cupti::CopyActivity*>(record);
        add({.start = static_cast<int64_t>(c.start),
             .end = static_cast<int64_t>(c.end),
             .bytes = c.bytes,
             .device = c.device,
             .stream = c.stream,
             .correlation = c.correlation},
            copy_name(c.copy_kind));
        break;
      }
      case cupti::kMemset: {
        const auto& f = *reinterpret_cast<const cupti::FillActivity*>(record);
        add({.start = static_cast<int64_t>(f.start),
             .end = static_cast<int64_t>(f.end),
             .bytes = f.bytes,
             .device = f.device,
             .stream = f.stream,
             .correlation = f.correlation},
            "fill");
        break;
      }
      case cupti::kExternalCorrelation: {
        const auto& e = *reinterpret_cast<const cupti::ExternalActivity*>(record);
        if (e.external_kind == cupti::kCustom0 && steps_.size() < most_)
          steps_[e.correlation] = static_cast<int64_t>(e.external_id);
        break;
      }
      default:  // runtime calls: there only so that external ids reach kernels
        break;
    }
  }
}

void Cupti::add(const cupti::KernelActivity& k) {
  add({.start = static_cast<int64_t>(k.start),
       .end = static_cast<int64_t>(k.end),
       .device = k.device,
       .stream = k.stream,
       .correlation = k.correlation},
      k.name != nullptr ? k.name : "kernel");
}

void Cupti::add(const DeviceActivity& activity, const char* name) {
  // CUPTI leaves times out that it could not take, and has been seen to swap them when its memory is full.
  if (activity.start <= 0 || activity.end < activity.start) {
    ++trace_.broken;
    return;
  }
  if (trace_.activities.size() >= most_) {
    ++trace_.dropped;
    return;
  }
  const auto [found, added] = names_.try_emplace(name, static_cast<uint32_t>(trace_.names.size()));
  if (added) trace_.names.emplace_back(name);
  DeviceActivity& kept = trace_.activities.emplace_back(activity);
  kept.start += offset_;
  kept.end += offset_;
  kept.name = found->second;
}

}  // namespace deepinfer
