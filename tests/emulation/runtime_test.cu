// The stand-in for the CUDA runtime: order, time of execution, capture, memory, errors.
#include <cuda.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "emulation/runtime_fixture.h"

namespace deepinfer::cuda {
namespace {

using ::testing::HasSubstr;

TEST_F(Runtime, NothingRunsUntilSomebodyWaits) {
  const DeviceArray<int64_t> p(std::vector<int64_t>{0});
  const cudaStream_t s = stream();
  append_in(s, p.data(), 1);
  append_in(s, p.data(), 2);
  EXPECT_EQ(*p.data(), 0);
  EXPECT_EQ(machine_counts().pending, 2u);
  DI_CUDA_CHECK(cudaStreamSynchronize(s));
  EXPECT_EQ(*p.data(), 12);
  EXPECT_EQ(machine_counts().pending, 0u);
}

TEST_F(Runtime, PollingGetsThere) {
  const DeviceArray<int64_t> p(std::vector<int64_t>{0});
  const cudaStream_t s = stream();
  const cudaEvent_t e = event();
  append_in(s, p.data(), 1);
  DI_CUDA_CHECK(cudaEventRecord(e, s));
  append_in(s, p.data(), 2);
  int polls = 1;
  cudaError_t status = cudaSuccess;
  for (; (status = cudaEventQuery(e)) == cudaErrorNotReady; ++polls) ASSERT_LT(polls, 1000);
  EXPECT_EQ(status, cudaSuccess);
  EXPECT_EQ(*p.data() % 10 == 1 || *p.data() == 12, true);
  while (cudaStreamQuery(s) == cudaErrorNotReady) ASSERT_LT(++polls, 1000);
  EXPECT_EQ(*p.data(), 12);
  DI_CUDA_CHECK(cudaEventDestroy(e));
}

TEST_F(Runtime, StreamsInterleaveBySeedAndEventsOrderThem) {
  std::set<int64_t> free_orders, ordered;
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    restart({}, seed);
    const DeviceArray<int64_t> p(std::vector<int64_t>{0}), q(std::vector<int64_t>{0});
    const cudaStream_t a = stream(), b = stream();
    const cudaEvent_t e = event();
    for (const int digit : {1, 2}) append_in(a, p.data(), digit);
    for (const int digit : {3, 4}) append_in(b, p.data(), digit);
    DI_CUDA_CHECK(cudaDeviceSynchronize());
    free_orders.insert(*p.data());
    append_in(a, q.data(), 1);
    DI_CUDA_CHECK(cudaEventRecord(e, a));
    DI_CUDA_CHECK(cudaStreamWaitEvent(b, e, 0));
    append_in(b, q.data(), 2);
    DI_CUDA_CHECK(cudaDeviceSynchronize());
    ordered.insert(*q.data());
    DI_CUDA_CHECK(cudaEventDestroy(e));
  }
  EXPECT_EQ(free_orders.size(), 6u);
  EXPECT_EQ(ordered, std::set<int64_t>{12});
}

TEST_F(Runtime, LegacyStreamIsInOrderWithBlockingStreams) {
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    restart({}, seed);
    const DeviceArray<int64_t> p(std::vector<int64_t>{0});
    cudaStream_t s = nullptr;
    DI_CUDA_CHECK(cudaStreamCreate(&s));
    append_in(s, p.data(), 1);
    append_in(nullptr, p.data(), 2);
    append_in(s, p.data(), 3);
    DI_CUDA_CHECK(cudaDeviceSynchronize());
    EXPECT_EQ(*p.data(), 123);
  }
}

// Mutation: the pinned buffer is filled again before its copy ran.
TEST_F(Runtime, HostBufferReusedBeforeItsCopyRanIsSeen) {
  const cudaStream_t s = stream();
  const DeviceArray<int> first(1), second(1);
  int* buffer = pinned<int>(1);
  const auto copies = [&](bool waits) {
    *buffer = 1;
    DI_CUDA_CHECK(cudaMemcpyAsync(first.data(), buffer, sizeof(int), cudaMemcpyHostToDevice, s));
    if (waits) DI_CUDA_CHECK(cudaStreamSynchronize(s));
    *buffer = 2;
    DI_CUDA_CHECK(cudaMemcpyAsync(second.data(), buffer, sizeof(int), cudaMemcpyHostToDevice, s));
    DI_CUDA_CHECK(cudaStreamSynchronize(s));
    return std::pair(*first.data(), *second.data());
  };
  EXPECT_EQ(copies(true), std::pair(1, 2));
  EXPECT_EQ(copies(false), std::pair(2, 2));
  // Results arrive when the copy runs.
  *buffer = 7;
  DI_CUDA_CHECK(cudaMemcpyAsync(buffer, first.data(), sizeof(int), cudaMemcpyDeviceToHost, s));
  EXPECT_EQ(*buffer, 7);
  DI_CUDA_CHECK(cudaStreamSynchronize(s));
  EXPECT_EQ(*buffer, 2);
  DI_CUDA_CHECK(cudaFreeHost(buffer));
}

TEST_F(Runtime, PageableMemoryIsStagedInTheCall) {
  const cudaStream_t s = stream();
  const DeviceArray<int> d(1);
  int value = 5;
  DI_CUDA_CHECK(cudaMemcpyAsync(d.data(), &value, sizeof value, cudaMemcpyHostToDevice, s));
  value = 6;
  DI_CUDA_CHECK(cudaMemcpyAsync(&value, d.data(), sizeof value, cudaMemcpyDeviceToHost, s));
  EXPECT_EQ(value, 5);
}

TEST_F(Runtime, CopiesOutsideOfAllocationsAreFailures) {
  const DeviceArray<int> d(4);
  int host[8] = {};
  const auto failure = [&](auto call) -> std::string {
    try {
      call();
    } catch (const emulation::Failure& e) {
      return e.what();
    }
    return "";
  };
  EXPECT_THAT(failure([&] { (void)cudaMemcpy(d.data(), host, 20, cudaMemcpyHostToDevice); }),
              HasSubstr("copy to: 20 bytes"));
  EXPECT_THAT(failure([&] { (void)cudaMemcpy(host, d.data() + 4, 4, cudaMemcpyDeviceToHost); }),
              HasSubstr("copy from: 4 bytes"));
  EXPECT_THAT(failure([&] { (void)cudaMemcpy(d.data(), d.data(), 4, cudaMemcpyHostToDevice); }),
              HasSubstr("is device memory, expected host memory"));
  EXPECT_THAT(failure([&] { (void)cudaMemset(host, 0, 4); }), HasSubstr("fill of"));
  EXPECT_EQ(emulation::take_failures(), 4);
}

// Mutation: a tensor freed while a copy of it waits in a stream.
TEST_F(Runtime, MemoryFreedInFlightIsSeen) {
  const cudaStream_t s = stream();
  int* host = pinned<int>(1);
  {
    const DeviceArray<int> d(1);
    DI_CUDA_CHECK(cudaMemcpyAsync(host, d.data(), sizeof(int), cudaMemcpyDeviceToHost, s));
  }
  EXPECT_THROW((void)cudaStreamSynchronize(s), emulation::Failure);
  const DeviceArray<int> d(1);
  DI_CUDA_CHECK(cudaMemcpyAsync(d.data(), host, sizeof(int), cudaMemcpyHostToDevice, s));
  DI_CUDA_CHECK(cudaFreeHost(host));
  EXPECT_THROW((void)cudaStreamSynchronize(s), emulation::Failure);
  EXPECT_EQ(emulation::take_failures(), 2);
}

TEST_F(Runtime, FreshMemoryIsPoison) {
  const DeviceArray<float> d(3);
  for (const float v : d.read()) EXPECT_TRUE(std::isnan(v));
}

TEST_F(Runtime, AllocationsHaveLimitsAndFailOnDemand) {
  restart({.total_memory = 1000, .used_by_others = 400});
  size_t free = 0, total = 0;
  DI_CUDA_CHECK(cudaMemGetInfo(&free, &total));
  EXPECT_EQ(free, 600u);
  EXPECT_EQ(total, 1000u);
  void *a = nullptr, *b = nullptr;
  EXPECT_EQ(cudaMalloc(&a, 500), cudaSuccess);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(a) % 256, 0u);
  EXPECT_EQ(cudaMalloc(&b, 101), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaGetLastError(), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  EXPECT_THROW(DI_CUDA_CHECK(cudaMalloc(&b, 101)), CudaOutOfMemory);
  EXPECT_EQ(cudaFree(a), cudaSuccess);
  EXPECT_EQ(cudaFree(a), cudaErrorInvalidValue);
  (void)cudaGetLastError();
  emulation::fail_allocation(1);
  EXPECT_EQ(cudaMalloc(&a, 10), cudaSuccess);
  EXPECT_EQ(cudaHostAlloc(&b, 10, 0), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaHostAlloc(&b, 10, 0), cudaSuccess);
  EXPECT_EQ(machine_counts().live_allocations, 2);
  EXPECT_EQ(cudaFreeHost(b), cudaSuccess);
  EXPECT_EQ(cudaFree(a), cudaSuccess);
  EXPECT_EQ(machine_counts().live_allocations, 0);
  EXPECT_EQ(machine_counts().device_bytes, 0u);
}

TEST_F(Runtime, AFaultIsForGood) {
  const cudaStream_t s = stream();
  void* p = nullptr;
  DI_CUDA_CHECK(cudaMalloc(&p, 8));
  DI_CUDA_CHECK(cudaMemset(p, 0, 8));
  emulation::fail_kernel(1);
  for (int i = 0; i < 3; ++i) append_in(s, static_cast<int64_t*>(p), 1);
  EXPECT_EQ(cudaStreamSynchronize(s), cudaErrorIllegalAddress);
  EXPECT_EQ(machine_counts().kernels, 1);
  EXPECT_EQ(cudaMemcpyAsync(p, p, 8, cudaMemcpyDeviceToDevice, s), cudaErrorIllegalAddress);
  EXPECT_EQ(cudaGetLastError(), cudaErrorIllegalAddress);
  EXPECT_EQ(cudaGetLastError(), cudaErrorIllegalAddress);
  try {
    append_in(s, static_cast<int64_t*>(p), 1);
    FAIL();
  } catch (const CudaError& e) {
    EXPECT_TRUE(e.sticky());
    EXPECT_THAT(e.what(), HasSubstr("cudaErrorIllegalAddress"));
  }
}

TEST_F(Runtime, Machines) {
  int n = -1;
  restart({.device_count = 0});
  EXPECT_EQ(cudaGetDeviceCount(&n), cudaErrorNoDevice);
  EXPECT_EQ(n, 0);
  restart({.driver_version = 0});
  EXPECT_EQ(cudaGetDeviceCount(&n), cudaErrorInsufficientDriver);
  EXPECT_EQ(cudaDriverGetVersion(&n), cudaSuccess);
  EXPECT_EQ(n, 0);
  restart({.device_count = 2, .name = "Card", .major = 12, .minor = 0, .multiprocessors = 170});
  EXPECT_EQ(cudaGetDeviceCount(&n), cudaSuccess);
  EXPECT_EQ(n, 2);
  EXPECT_EQ(cudaSetDevice(2), cudaErrorInvalidDevice);
  EXPECT_EQ(cudaSetDevice(1), cudaSuccess);
  cudaDeviceProp p;
  EXPECT_EQ(cudaGetDeviceProperties(&p, 1), cudaSuccess);
  EXPECT_STREQ(p.name, "Card");
  EXPECT_EQ(p.major, 12);
  EXPECT_EQ(p.multiProcessorCount, 170);
  void* memory = nullptr;
  size_t free = 0, total = 0;
  EXPECT_EQ(cudaMalloc(&memory, 1000), cudaSuccess);
  EXPECT_EQ(cudaMemGetInfo(&free, &total), cudaSuccess);
  EXPECT_EQ(total - free, 1000u);
  EXPECT_EQ(cudaSetDevice(0), cudaSuccess);
  EXPECT_EQ(cudaMemGetInfo(&free, &total), cudaSuccess);
  EXPECT_EQ(total, free);
}

TEST_F(Runtime, LaunchesThatNoCardAccepts) {
  const DeviceArray<int64_t> p(std::vector<int64_t>{0});
  const auto code = [&](const LaunchConfig& config) {
    try {
      launch(config, append, p.data(), 1);
    } catch (const CudaError& e) {
      return static_cast<cudaError_t>(e.code());
    }
    return cudaSuccess;
  };
  EXPECT_EQ(code({.grid = dim3(0), .block = dim3(1)}), cudaErrorInvalidConfiguration);
  EXPECT_EQ(code({.grid = dim3(1), .block = dim3(1025)}), cudaErrorInvalidConfiguration);
  EXPECT_EQ(code({.grid = dim3(1, 65536), .block = dim3(1)}), cudaErrorInvalidConfiguration);
  EXPECT_EQ(code({.grid = dim3(1), .block = dim3(1), .smem = 228 << 10}), cudaErrorInvalidValue);
  EXPECT_EQ(code({.grid = dim3(1), .block = dim3(1), .smem = 227 << 10}), cudaSuccess);
}

TEST_F(Runtime, SharedMemoryBeyondTheFunctionsLimitIsRefused) {
  const auto enqueue = [](size_t bytes) {
    return emulation::enqueue_kernel({.function = reinterpret_cast<const void*>(&append),
                                      .grid = dim3(1),
                                      .block = dim3(1),
                                      .smem = bytes,
                                      .body = [] {}},
                                     nullptr);
  };
  EXPECT_EQ(enqueue(48 << 10), cudaSuccess);
  EXPECT_EQ(enqueue((48 << 10) + 1), cudaErrorInvalidValue);
  allow_shared(reinterpret_cast<const void*>(&append), 64 << 10);
  EXPECT_EQ(enqueue(64 << 10), cudaSuccess);
}

// Mutation: a kernel launched to overlap on a card whose code, from PTX, does not wait.
TEST_F(Runtime, OverlapWithoutAWaitInTheCodeIsSeen) {
  restart({.major = 10, .minor = 0});
  const DeviceArray<int64_t> p(std::vector<int64_t>{0});
  EXPECT_THROW(launch({.grid = dim3(1), .block = dim3(1), .pdl = true}, append, p.data(), 1),
               emulation::Failure);
  EXPECT_EQ(emulation::take_failures(), 1);
}

TEST_F(Runtime, TimeOfEvents) {
  const DeviceArray<int64_t> p(std::vector<int64_t>{0});
  const cudaStream_t s = stream();
  const cudaEvent_t a = event(), b = event();
  DI_CUDA_CHECK(cudaEventRecord(a, s));
  append_in(s, p.data(), 1);
  DI_CUDA_CHECK(cudaEventRecord(b, s));
  float ms = 0;
  EXPECT_EQ(cudaEventElapsedTime(&ms, a, b), cudaErrorNotReady);
  DI_CUDA_CHECK(cudaEventSynchronize(b));
  EXPECT_EQ(cudaEventElapsedTime(&ms, a, b), cudaSuccess);
  EXPECT_GT(ms, 0);
  DI_CUDA_CHECK(cudaEventDestroy(a));
  DI_CUDA_CHECK(cudaEventDestroy(b));
}

template <class Function>
Function* driver(const char* name) {
  void* p = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  DI_CUDA_CHECK(cudaGetDriverEntryPointByVersion(name, &p, 12000, cudaEnableDefault, &found));
  EXPECT_EQ(found, cudaDriverEntryPointSuccess);
  return reinterpret_cast<Function*>(p);
}
#define DI_DRIVER(name) driver<decltype(name)>(#name)

TEST_F(Runtime, VirtualMemoryIsMappedPieceByPiece) {
  constexpr size_t kPiece = 2 << 20;
  CUmemAllocationProp prop{};
  prop.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  prop.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = 0};
  size_t granularity = 0;
  EXPECT_EQ(
      DI_DRIVER(cuMemGetAllocationGranularity)(&granularity, &prop, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED),
      CUDA_SUCCESS);
  EXPECT_EQ(granularity, kPiece);
  CUdeviceptr range = 0;
  ASSERT_EQ(DI_DRIVER(cuMemAddressReserve)(&range, 4 * kPiece, 0, 0, 0), CUDA_SUCCESS);
  CUmemGenericAllocationHandle pieces[2];
  CUmemAccessDesc access{};
  access.location = prop.location;
  access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  for (size_t i = 0; i < 2; ++i) {
    ASSERT_EQ(DI_DRIVER(cuMemCreate)(&pieces[i], kPiece, &prop, 0), CUDA_SUCCESS);
    ASSERT_EQ(DI_DRIVER(cuMemMap)(range + i * kPiece, kPiece, 0, pieces[i], 0), CUDA_SUCCESS);
    ASSERT_EQ(DI_DRIVER(cuMemSetAccess)(range + i * kPiece, kPiece, &access, 1), CUDA_SUCCESS);
  }
  EXPECT_EQ(DI_DRIVER(cuMemMap)(range, kPiece, 0, pieces[0], 0), CUDA_ERROR_ALREADY_MAPPED);
  // One copy over both pieces; nothing beyond them.
  auto* p = reinterpret_cast<char*>(range);
  const std::vector<char> in(1000, 'x');
  DI_CUDA_CHECK(cudaMemcpy(p + kPiece - 500, in.data(), 1000, cudaMemcpyHostToDevice));
  std::vector<char> out(1000);
  DI_CUDA_CHECK(cudaMemcpy(out.data(), p + kPiece - 500, 1000, cudaMemcpyDeviceToHost));
  EXPECT_EQ(in, out);
  EXPECT_THROW((void)cudaMemset(p + 2 * kPiece - 10, 0, 20), emulation::Failure);
  EXPECT_EQ(emulation::take_failures(), 1);
  EXPECT_EQ(machine_counts().device_bytes, 2 * kPiece);
  // A handle that is released lives on in its mapping.
  EXPECT_EQ(DI_DRIVER(cuMemRelease)(pieces[0]), CUDA_SUCCESS);
  EXPECT_EQ(DI_DRIVER(cuMemRelease)(pieces[1]), CUDA_SUCCESS);
  EXPECT_EQ(p[kPiece], 'x');
  EXPECT_NE(DI_DRIVER(cuMemAddressFree)(range, 4 * kPiece), CUDA_SUCCESS);
  EXPECT_EQ(DI_DRIVER(cuMemUnmap)(range, 2 * kPiece), CUDA_SUCCESS);
  EXPECT_EQ(DI_DRIVER(cuMemAddressFree)(range, 4 * kPiece), CUDA_SUCCESS);
  EXPECT_EQ(machine_counts().device_bytes, 0u);
}

}  // namespace
}  // namespace deepinfer::cuda
