// What an operation runs on: passed, never global.
#pragma once

#include <memory>

#include "base/arena.h"
#include "base/thread_pool.h"
#include "tensor/tensor.h"

namespace deepinfer {

class Communicator;  // src/comm, when there is more than one rank
class Profiler;      // src/profile
namespace cuda {
class Gpu;  // backend/cuda_gpu.h
}

struct Context {
  Device device;
  ThreadPool* pool = nullptr;           // CPU: the threads of this rank
  cuda::Gpu* gpu = nullptr;             // CUDA: the card's memory, stream and libraries
  Arena* scratch = nullptr;             // the device's memory for one step; reset by the runner before each
  Communicator* comm = nullptr;         // null: one rank
  Profiler* profiler = nullptr;         // gets a span of each operation; null: nobody wants them
  std::shared_ptr<BufferSlab> weights;  // CPU: where packed weights stand; made by the first of them
  // Of what passes from operation to operation inside a layer (q, attention's result, gate_up's result): F32
  // on the CPU, BF16 or F16 on CUDA. The residual stream is F32 on both.
  DType activation = DType::kF32;
};

}  // namespace deepinfer
