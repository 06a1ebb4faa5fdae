// What we call of CUPTI, declared by ourselves: the machines that build this may have no CUDA toolkit, and
// the library is loaded when the program runs. A record is read as far as fields are here; CUPTI appends new
// ones behind them. Where the toolkit is there, tests/unit/profile compares all of it with cupti.h.
#pragma once

#include <cstddef>
#include <cstdint>

namespace deepinfer::cupti {

inline constexpr int kSuccess = 0;
inline constexpr uint32_t kMemcpy = 1, kMemset = 2, kKernel = 3, kRuntime = 5, kConcurrentKernel = 10,
                          kExternalCorrelation = 39;  // kinds of activity
inline constexpr uint32_t kCustom0 = 3;               // kind of external ids
inline constexpr uint32_t kFlushForced = 1;

struct [[gnu::packed, gnu::aligned(8)]] Activity {
  uint32_t kind;
};

struct [[gnu::packed, gnu::aligned(8)]] KernelActivity {
  uint32_t kind;
  uint8_t cache_config, shared_memory_config;
  uint16_t registers;
  uint32_t cache_requested, cache_executed;
  uint64_t start, end, completed;  // ns of CUPTI's clock; 0: not known
  uint32_t device, context, stream;
  int32_t grid[3], block[3];
  int32_t static_shared, dynamic_shared;
  uint32_t local_per_thread, local_total, correlation;
  int64_t grid_id;
  const char* name;
};

struct [[gnu::packed, gnu::aligned(8)]] CopyActivity {
  uint32_t kind;
  uint8_t copy_kind, source_kind, target_kind, flags;
  uint64_t bytes, start, end;
  uint32_t device, context, stream, correlation;
};

struct [[gnu::packed, gnu::aligned(8)]] FillActivity {
  uint32_t kind, value;
  uint64_t bytes, start, end;
  uint32_t device, context, stream, correlation;
};

struct [[gnu::packed, gnu::aligned(8)]] ExternalActivity {
  uint32_t kind, external_kind;
  uint64_t external_id;
  uint32_t correlation;
};

using GiveBuffer = void(uint8_t** buffer, size_t* size, size_t* records);
using TakeBuffer = void(void* context, uint32_t stream, uint8_t* buffer, size_t size, size_t valid);

struct Functions {
  int (*version)(uint32_t*) = nullptr;
  int (*result_string)(int, const char**) = nullptr;
  int (*timestamp)(uint64_t*) = nullptr;
  int (*register_callbacks)(GiveBuffer*, TakeBuffer*) = nullptr;
  int (*enable)(uint32_t kind) = nullptr;
  int (*disable)(uint32_t kind) = nullptr;
  int (*flush)(uint32_t flags) = nullptr;
  int (*next_record)(uint8_t* buffer, size_t valid, Activity** record) = nullptr;
  int (*dropped_records)(void* context, uint32_t stream, size_t* count) = nullptr;
  int (*push_external)(uint32_t kind, uint64_t id) = nullptr;
  int (*pop_external)(uint32_t kind, uint64_t* last) = nullptr;
};

}  // namespace deepinfer::cupti
