// What a Gpu holds for the files of this folder.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>

#include "backend/cuda_gpu.h"
#include "tensor/context.h"

namespace deepinfer::cuda {

class EventPool;      // events.h
class Cublaslt;       // cublaslt.h: the library, its workspace, the algorithms found best
class FastAttention;  // fast/fast_attention.h
class Staging;        // staging.h

// What a launch may count: tiles of attention's rows, heads of a product of q, k and v.
inline constexpr int64_t kTileCounters = int64_t{1} << 18;

struct Gpu::Parts {
  Parts() = default;
  Parts(const Parts&) = delete;
  ~Parts();

  cudaStream_t stream = nullptr;
  uint64_t steps = 0;  // begun; what a step's layers share is made anew when it changes
  std::shared_ptr<EventPool> events;
  std::shared_ptr<Cublaslt> cublaslt;             // null: the library is not there, own kernels serve
  std::shared_ptr<FastAttention> fast_attention;  // null: not prepared, own kernels serve
  std::shared_ptr<Staging> staging;               // while weights are loaded; release_staging() ends it

  bool told_weight_only = false;  // the log said that FP8 weights are only stored as such

  // Counters for arrive_last() (arrive.cuh), made by open(). A kernel finds zeros and leaves zeros.
  int32_t* arrived() const { return reinterpret_cast<int32_t*>(counters.data()); }
  Buffer counters;  // [kTileCounters]
};

inline cudaStream_t stream_of(const Gpu& gpu) {
  return gpu.parts().stream;
}
inline cudaStream_t stream_of(const Context& context) {
  return context.gpu->parts().stream;
}

}  // namespace deepinfer::cuda
