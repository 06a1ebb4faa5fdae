// What the tests of the emulated runtime share: a kernel whose result tells the order in which it ran, and a
// fresh machine for each test.
#pragma once

#include <gtest/gtest.h>

#include <set>
#include <vector>

#include "backend/cuda/launch.h"
#include "backend/cuda/ptx.h"
#include "emulation/device_array.h"
#include "emulation/emulated_gpu.h"

namespace deepinfer::cuda {

using emulation::DeviceArray;
using emulation::machine_counts;

// *p = *p * 10 + digit: the result tells the order.
__global__ inline void append(int64_t* p, int digit) {
  *p = *p * 10 + digit;
}

inline void append_in(cudaStream_t stream, int64_t* p, int digit) {
  launch({.grid = dim3(1), .block = dim3(1), .stream = stream}, append, p, digit);
}

class Runtime : public ::testing::Test {
 protected:
  void SetUp() override { restart({}); }
  void TearDown() override { emulation::reset_machine(); }

  void restart(const emulation::MachineConfig& config, uint64_t seed = 1) {
    emulation::set_seed(seed);
    emulation::reset_machine(config);
    streams_.clear();
  }
  cudaStream_t stream() {
    streams_.emplace_back();
    DI_CUDA_CHECK(cudaStreamCreateWithFlags(&streams_.back(), cudaStreamNonBlocking));
    return streams_.back();
  }
  static cudaEvent_t event() {
    cudaEvent_t e = nullptr;
    DI_CUDA_CHECK(cudaEventCreate(&e));
    return e;
  }
  // Ends a capture of one kernel; the graph must be right.
  static cudaGraphExec_t end_capture(cudaStream_t s) {
    cudaGraph_t graph = nullptr;
    DI_CUDA_CHECK(cudaStreamEndCapture(s, &graph));
    cudaGraphExec_t exec = nullptr;
    DI_CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
    DI_CUDA_CHECK(cudaGraphDestroy(graph));
    return exec;
  }
  template <class T>
  static T* pinned(size_t count) {
    void* p = nullptr;
    DI_CUDA_CHECK(cudaHostAlloc(&p, count * sizeof(T), cudaHostAllocDefault));
    return static_cast<T*>(p);
  }

 private:
  std::vector<cudaStream_t> streams_;
};

}  // namespace deepinfer::cuda
