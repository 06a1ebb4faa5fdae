// Capture and graphs of the stand-in for the CUDA runtime.
#include <functional>
#include <thread>

#include "emulation/runtime_fixture.h"

namespace deepinfer::cuda {
namespace {

TEST_F(Runtime, GraphRepeatsWhatWasRecorded) {
  const DeviceArray<int64_t> p(std::vector<int64_t>{0});
  const cudaStream_t s = stream();
  int* in = pinned<int>(1);
  const DeviceArray<int> copied(1);
  int digit = 1;
  DI_CUDA_CHECK(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal));
  append_in(s, p.data(), digit);
  digit = 9;  // the argument was copied
  DI_CUDA_CHECK(cudaMemcpyAsync(copied.data(), in, sizeof(int), cudaMemcpyHostToDevice, s));
  append_in(s, p.data(), 2);
  const cudaGraphExec_t exec = end_capture(s);
  DI_CUDA_CHECK(cudaDeviceSynchronize());
  EXPECT_EQ(*p.data(), 0);
  for (const int value : {41, 42}) {
    *in = value;  // read when the graph runs
    DI_CUDA_CHECK(cudaGraphLaunch(exec, s));
    append_in(s, p.data(), 3);
    DI_CUDA_CHECK(cudaStreamSynchronize(s));
    EXPECT_EQ(*copied.data(), value);
  }
  EXPECT_EQ(*p.data(), 123123);
  EXPECT_EQ(machine_counts().graph_launches, 2);
  DI_CUDA_CHECK(cudaGraphExecDestroy(exec));
  DI_CUDA_CHECK(cudaFreeHost(in));
}

TEST_F(Runtime, CaptureFollowsEventsIntoOtherStreams) {
  std::set<int64_t> orders;
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    restart({}, seed);
    const DeviceArray<int64_t> p(std::vector<int64_t>{0});
    const cudaStream_t a = stream(), b = stream();
    const cudaEvent_t fork = event(), join = event();
    DI_CUDA_CHECK(cudaStreamBeginCapture(a, cudaStreamCaptureModeThreadLocal));
    append_in(a, p.data(), 1);
    DI_CUDA_CHECK(cudaEventRecord(fork, a));
    DI_CUDA_CHECK(cudaStreamWaitEvent(b, fork, 0));
    append_in(b, p.data(), 2);
    append_in(a, p.data(), 3);
    DI_CUDA_CHECK(cudaEventRecord(join, b));
    DI_CUDA_CHECK(cudaStreamWaitEvent(a, join, 0));
    append_in(a, p.data(), 4);
    const cudaGraphExec_t exec = end_capture(a);
    DI_CUDA_CHECK(cudaGraphLaunch(exec, a));
    DI_CUDA_CHECK(cudaStreamSynchronize(a));
    orders.insert(*p.data());
    DI_CUDA_CHECK(cudaGraphExecDestroy(exec));
    DI_CUDA_CHECK(cudaEventDestroy(fork));
    DI_CUDA_CHECK(cudaEventDestroy(join));
  }
  EXPECT_EQ(orders, (std::set<int64_t>{1234, 1324}));
}

// Mutation: an allocation (or a wait) during a capture.
TEST_F(Runtime, CallsThatACaptureForbidsInvalidateIt) {
  const DeviceArray<int64_t> p(std::vector<int64_t>{0});
  const cudaStream_t s = stream(), other = stream();
  const cudaEvent_t e = event();
  int host = 0;
  void* memory = nullptr;
  const std::pair<std::function<cudaError_t()>, cudaError_t> calls[] = {
      {[&] { return cudaMalloc(&memory, 16); }, cudaErrorStreamCaptureUnsupported},
      {[&] { return cudaHostAlloc(&memory, 16, 0); }, cudaErrorStreamCaptureUnsupported},
      {[&] { return cudaFree(p.data()); }, cudaErrorStreamCaptureUnsupported},
      {[&] { return cudaStreamSynchronize(s); }, cudaErrorStreamCaptureUnsupported},
      {[&] { return cudaStreamQuery(s); }, cudaErrorStreamCaptureUnsupported},
      {[&] { return cudaDeviceSynchronize(); }, cudaErrorStreamCaptureUnsupported},
      {[&] { return cudaMemcpy(p.data(), &host, 4, cudaMemcpyHostToDevice); },
       cudaErrorStreamCaptureUnsupported},
      {[&] { return cudaEventQuery(e); }, cudaErrorStreamCaptureUnsupported},
  };
  for (const auto& [call, expected] : calls) {
    DI_CUDA_CHECK(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal));
    append_in(s, p.data(), 1);
    EXPECT_EQ(call(), expected);
    EXPECT_EQ(cudaGetLastError(), expected);
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    DI_CUDA_CHECK(cudaStreamIsCapturing(s, &status));
    EXPECT_EQ(status, cudaStreamCaptureStatusInvalidated);
    EXPECT_THROW(append_in(s, p.data(), 1), CudaError);
    cudaGraph_t graph = nullptr;
    EXPECT_EQ(cudaStreamEndCapture(s, &graph), cudaErrorStreamCaptureInvalidated);
    EXPECT_EQ(graph, nullptr);
    (void)cudaGetLastError();
  }
  // A capture of this thread alone does not hinder another one; nor a relaxed one anybody.
  DI_CUDA_CHECK(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
  std::thread([&] {
    void* mine = nullptr;
    EXPECT_EQ(cudaMalloc(&mine, 16), cudaSuccess);
    EXPECT_EQ(cudaFree(mine), cudaSuccess);
  }).join();
  DI_CUDA_CHECK(cudaGraphExecDestroy(end_capture(s)));
  DI_CUDA_CHECK(cudaStreamBeginCapture(s, cudaStreamCaptureModeRelaxed));
  EXPECT_EQ(cudaMalloc(&memory, 16), cudaSuccess);
  EXPECT_EQ(cudaFree(memory), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(other), cudaSuccess);
  DI_CUDA_CHECK(cudaGraphExecDestroy(end_capture(s)));
  DI_CUDA_CHECK(cudaEventDestroy(e));
}

TEST_F(Runtime, WorkThatDoesNotReturnToTheCapturedStreamIsAnError) {
  const DeviceArray<int64_t> p(std::vector<int64_t>{0});
  const cudaStream_t a = stream(), b = stream();
  const cudaEvent_t e = event();
  DI_CUDA_CHECK(cudaStreamBeginCapture(a, cudaStreamCaptureModeGlobal));
  append_in(a, p.data(), 1);
  DI_CUDA_CHECK(cudaEventRecord(e, a));
  DI_CUDA_CHECK(cudaStreamWaitEvent(b, e, 0));
  append_in(b, p.data(), 2);
  EXPECT_EQ(cudaEventSynchronize(e), cudaErrorCapturedEvent);
  cudaGraph_t graph = nullptr;
  EXPECT_EQ(cudaStreamEndCapture(b, &graph), cudaErrorStreamCaptureUnmatched);
  EXPECT_EQ(cudaStreamEndCapture(a, &graph), cudaErrorStreamCaptureInvalidated);
  DI_CUDA_CHECK(cudaStreamBeginCapture(a, cudaStreamCaptureModeGlobal));
  append_in(a, p.data(), 1);
  DI_CUDA_CHECK(cudaEventRecord(e, a));
  DI_CUDA_CHECK(cudaStreamWaitEvent(b, e, 0));
  append_in(b, p.data(), 2);
  EXPECT_EQ(cudaStreamEndCapture(a, &graph), cudaErrorStreamCaptureUnjoined);
  (void)cudaGetLastError();
  DI_CUDA_CHECK(cudaEventDestroy(e));
}

__global__ void produce_late(int64_t* p, int64_t value) {
  grid_dependency_wait();
  *p = value;
}

template <bool kWaits>
__global__ void double_it(const int64_t* p, int64_t* out) {
  if (kWaits) grid_dependency_wait();
  *out = 2 * *p;
}

// Launches with pdl overlap in a graph as they do in a stream.
TEST_F(Runtime, DependentsInAGraphStartEarly) {
  int wrong = 0, early = 0;
  for (uint64_t seed = 1; seed <= 10; ++seed)
    for (const bool waits : {true, false}) {
      restart({}, seed);
      const DeviceArray<int64_t> p(std::vector<int64_t>{1}), out(std::vector<int64_t>{0});
      const cudaStream_t s = stream();
      DI_CUDA_CHECK(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
      const LaunchConfig config{.grid = dim3(1), .block = dim3(1), .stream = s, .pdl = true};
      launch(config, produce_late, p.data(), 21);
      launch(config, waits ? double_it<true> : double_it<false>, p.data(), out.data());
      const cudaGraphExec_t exec = end_capture(s);
      DI_CUDA_CHECK(cudaGraphLaunch(exec, s));
      DI_CUDA_CHECK(cudaStreamSynchronize(s));
      DI_CUDA_CHECK(cudaGraphExecDestroy(exec));
      early += static_cast<int>(machine_counts().early_starts);
      if (waits)
        EXPECT_EQ(*out.data(), 42);
      else
        wrong += *out.data() != 42;
    }
  EXPECT_GE(early, 5);
  EXPECT_GE(wrong, 3);
}

// A kernel may start before one that is not just in front of it, if those between have begun. Mutation: one
// that reads without a wait what the first of three kernels writes.
TEST_F(Runtime, DependentsOvertakeMoreThanOneKernel) {
  int wrong = 0;
  for (uint64_t seed = 1; seed <= 20; ++seed)
    for (const bool waits : {true, false}) {
      restart({}, seed);
      const DeviceArray<int64_t> p(std::vector<int64_t>{1}), out(std::vector<int64_t>{0});
      const DeviceArray<int64_t> q(std::vector<int64_t>{2}), between(std::vector<int64_t>{0});
      const cudaStream_t s = stream();
      const LaunchConfig config{.grid = dim3(1), .block = dim3(1), .stream = s, .pdl = true};
      launch(config, produce_late, p.data(), 21);
      launch(config, double_it<true>, q.data(), between.data());
      launch(config, waits ? double_it<true> : double_it<false>, p.data(), out.data());
      DI_CUDA_CHECK(cudaStreamSynchronize(s));
      EXPECT_EQ(*between.data(), 4);
      if (waits)
        EXPECT_EQ(*out.data(), 42);
      else
        wrong += *out.data() != 42;
    }
  EXPECT_GE(wrong, 3);
}

// A graph's kernel needs as much shared memory as at its capture, whatever was launched since. Mutation: the
// limit is lowered.
TEST_F(Runtime, AGraphsKernelKeepsItsSharedMemory) {
  const DeviceArray<int64_t> p(std::vector<int64_t>{0});
  const cudaStream_t s = stream();
  const auto append_with = [&](size_t bytes) {
    launch({.grid = dim3(1), .block = dim3(1), .smem = bytes, .stream = s}, append, p.data(), 1);
  };
  DI_CUDA_CHECK(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
  append_with(100 << 10);
  const cudaGraphExec_t exec = end_capture(s);
  append_with(60 << 10);
  DI_CUDA_CHECK(cudaGraphLaunch(exec, s));
  DI_CUDA_CHECK(cudaStreamSynchronize(s));
  EXPECT_EQ(*p.data(), 11);
  DI_CUDA_CHECK(cudaFuncSetAttribute(reinterpret_cast<const void*>(&append),
                                     cudaFuncAttributeMaxDynamicSharedMemorySize, 60 << 10));
  EXPECT_EQ(cudaGraphLaunch(exec, s), cudaErrorInvalidValue);
  DI_CUDA_CHECK(cudaGraphExecDestroy(exec));
}

// A card before 9.0 knows no such launches.
TEST_F(Runtime, OldCardsRunKernelsOneAfterAnother) {
  restart({.major = 8, .minor = 9});
  const DeviceArray<int64_t> p(std::vector<int64_t>{1}), out(std::vector<int64_t>{0});
  const LaunchConfig config{.grid = dim3(1), .block = dim3(1), .pdl = true};
  for (int i = 0; i < 10; ++i) {
    launch(config, produce_late, p.data(), i);
    launch(config, double_it<false>, p.data(), out.data());
    DI_CUDA_CHECK(cudaDeviceSynchronize());
    EXPECT_EQ(*out.data(), 2 * i);
  }
  EXPECT_EQ(machine_counts().early_starts, 0);
}

}  // namespace
}  // namespace deepinfer::cuda
