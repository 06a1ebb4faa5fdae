// A stand-in for libcupti.so.13, built under that name: the real search, loading and callbacks are what tests
// use. Between push and pop of an external id a card "runs" two kernels and a copy, and a third kernel whose
// times CUPTI could not take; they are given back at the flush, as the real library does. FAKE_CUPTI:
//   refuse   nothing can be enabled: "insufficient privileges", code 35
//   old      (built so) a library without a function that is needed
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string_view>
#include <vector>

#include "profile/cupti_api.h"

namespace {

namespace cupti = deepinfer::cupti;

constexpr int kInvalid = 1, kRefused = 35, kEnd = 12;
constexpr uint64_t kClockShift = 5'000'000'000;  // this clock is not the host's

struct State {
  cupti::GiveBuffer* give = nullptr;
  cupti::TakeBuffer* take = nullptr;
  std::vector<uint32_t> enabled;
  std::vector<uint64_t> ids;  // pushed
  std::vector<std::vector<std::byte>> records;
  uint32_t correlation = 0;
  uint64_t entered = 0;
};

State& state() {
  static State s;
  return s;
}

uint64_t now() {
  timespec t{};
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<uint64_t>(t.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(t.tv_nsec) + kClockShift;
}

template <class Record>
void put(const Record& record) {
  const auto* bytes = reinterpret_cast<const std::byte*>(&record);
  state().records.emplace_back(bytes, bytes + sizeof(Record));
}

bool is_enabled(uint32_t kind) {
  for (const uint32_t k : state().enabled)
    if (k == kind) return true;
  return false;
}

void put_kernel(const char* name, uint64_t start, uint64_t end) {
  cupti::KernelActivity k{};
  k.kind = cupti::kConcurrentKernel;
  k.start = start;
  k.end = end;
  k.stream = 7;
  k.correlation = state().correlation;
  k.name = name;
  put(k);
}

// What a step launched: attention overlaps the product before it by a quarter, as kernels with PDL do.
void run(uint64_t id, uint64_t begin, uint64_t end) {
  ++state().correlation;
  const uint64_t unit = (end - begin) / 8;
  if (is_enabled(cupti::kExternalCorrelation)) {
    cupti::ExternalActivity e{};
    e.kind = cupti::kExternalCorrelation;
    e.external_kind = cupti::kCustom0;
    e.external_id = id;
    e.correlation = state().correlation;
    put(e);
  }
  if (is_enabled(cupti::kRuntime)) put(cupti::Activity{cupti::kRuntime});
  if (is_enabled(cupti::kConcurrentKernel)) {
    put_kernel("_ZN9deepinfer4cuda6skinny6kernelILi1EEEvNS0_7ProductE", begin, begin + 4 * unit);
    put_kernel("_ZN9deepinfer4cuda12_GLOBAL__N_113decode_kernelEi", begin + 3 * unit, begin + 6 * unit);
    put_kernel("never_measured", 0, 0);
  }
  if (is_enabled(cupti::kMemcpy)) {
    cupti::CopyActivity c{};
    c.kind = cupti::kMemcpy;
    c.copy_kind = 2;
    c.bytes = 64;
    c.start = begin + 6 * unit;
    c.end = begin + 7 * unit;
    c.stream = 7;
    c.correlation = state().correlation;
    put(c);
  }
}

}  // namespace

extern "C" {

int cuptiGetVersion(uint32_t* version) {
  *version = 130000;
  return cupti::kSuccess;
}

int cuptiGetResultString(int code, const char** text) {
  *text = code == kRefused ? "CUPTI_ERROR_INSUFFICIENT_PRIVILEGES" : "CUPTI_ERROR_UNKNOWN";
  return cupti::kSuccess;
}

#ifndef FAKE_CUPTI_OLD
int cuptiGetTimestamp(uint64_t* time) {
  *time = now();
  return cupti::kSuccess;
}
#endif

int cuptiActivityRegisterCallbacks(cupti::GiveBuffer* give, cupti::TakeBuffer* take) {
  state().give = give;
  state().take = take;
  return cupti::kSuccess;
}

int cuptiActivityEnable(uint32_t kind) {
  const char* mode = std::getenv("FAKE_CUPTI");
  if (mode != nullptr && std::string_view(mode) == "refuse") return kRefused;
  state().enabled.push_back(kind);
  return cupti::kSuccess;
}

int cuptiActivityDisable(uint32_t kind) {
  std::erase(state().enabled, kind);
  return cupti::kSuccess;
}

int cuptiActivityPushExternalCorrelationId(uint32_t kind, uint64_t id) {
  if (kind != cupti::kCustom0) return kInvalid;
  state().ids.push_back(id);
  state().entered = now();
  return cupti::kSuccess;
}

int cuptiActivityPopExternalCorrelationId(uint32_t kind, uint64_t* last) {
  if (kind != cupti::kCustom0 || state().ids.empty()) return kInvalid;
  *last = state().ids.back();
  state().ids.pop_back();
  run(*last, state().entered, now());
  return cupti::kSuccess;
}

// A buffer holds each record with its length before it, which only next_record knows.
int cuptiActivityFlushAll(uint32_t) {
  State& s = state();
  for (size_t next = 0; next < s.records.size();) {
    uint8_t* buffer = nullptr;
    size_t size = 0, most = 0, used = 0;
    s.give(&buffer, &size, &most);
    while (next < s.records.size()) {
      const std::vector<std::byte>& record = s.records[next];
      if (used + 8 + record.size() > size) break;
      const uint64_t length = record.size();
      std::memcpy(buffer + used, &length, 8);
      std::memcpy(buffer + used + 8, record.data(), record.size());
      used += 8 + record.size();
      ++next;
    }
    s.take(nullptr, 7, buffer, size, used);
  }
  s.records.clear();
  return cupti::kSuccess;
}

int cuptiActivityGetNextRecord(uint8_t* buffer, size_t valid, cupti::Activity** record) {
  uint8_t* at = buffer;
  if (*record != nullptr) {
    uint64_t length = 0;
    at = reinterpret_cast<uint8_t*>(*record);
    std::memcpy(&length, at - 8, 8);
    at += length;
  }
  if (at + 8 >= buffer + valid) return kEnd;
  *record = reinterpret_cast<cupti::Activity*>(at + 8);
  return cupti::kSuccess;
}

int cuptiActivityGetNumDroppedRecords(void*, uint32_t, size_t* count) {
  *count = 0;
  return cupti::kSuccess;
}
}
