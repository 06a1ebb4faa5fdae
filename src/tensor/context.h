// What an operation runs on: passed, never global.
#pragma once

#include <memory>

#include "base/arena.h"
#include "base/thread_pool.h"
#include "tensor/tensor.h"

namespace deepinfer {

class Communicator;  // src/comm, when there is more than one rank

struct Context {
  Device device;
  ThreadPool* pool = nullptr;           // CPU: the threads of this rank
  Arena* scratch = nullptr;             // memory of one step; reset by the runner before each
  Communicator* comm = nullptr;         // null: one rank
  void* stream = nullptr;               // CUDA: cudaStream_t
  std::shared_ptr<BufferSlab> weights;  // CPU: where packed weights stand; made by the first of them
};

}  // namespace deepinfer
