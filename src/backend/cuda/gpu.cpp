#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "backend/cuda/device_code.h"
#include "backend/cuda/error.h"
#include "backend/cuda/events.h"
#include "backend/cuda/parts.h"
#include "base/check.h"

namespace deepinfer::cuda {
namespace {

constexpr int kLeastCapability = 80;
constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;

std::string version_text(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

// The driver's own words, and what to do about them.
std::string no_devices(cudaError_t code) {
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess) driver = 0;
  (void)cudaGetLastError();
  if (driver == 0)
    return "no NVIDIA driver is installed, or this process cannot see it (libcuda.so.1): install the "
           "driver, or give the container its GPUs (docker run --gpus all)";
  if (code == cudaErrorInsufficientDriver || driver / 1000 < CUDART_VERSION / 1000)
    return fmt::format(
        "the NVIDIA driver serves CUDA {}, expected {}.0 or newer: update the driver (580 or newer)",
        version_text(driver), CUDART_VERSION / 1000);
  const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
  if (code == cudaErrorNoDevice && visible != nullptr)
    return fmt::format(
        "CUDA_VISIBLE_DEVICES is '{}', which shows no GPU to this process: unset it, or name "
        "an existing one",
        visible);
  if (code == cudaErrorNoDevice) return "the driver is there, but it shows no GPU to this process";
  return fmt::format("the driver reports: {} ({})", cudaGetErrorString(code), cudaGetErrorName(code));
}

Error not_enough(const Gpu& gpu, const char* what, size_t bytes) {
  (void)cudaGetLastError();
  size_t free = 0, total = 0;
  if (cudaMemGetInfo(&free, &total) != cudaSuccess) (void)cudaGetLastError();
  return make_error(ErrorCode::kMemory, "GPU {} ({}): {} of {:.2f} GiB asked for, {:.2f} of {:.2f} GiB free",
                    gpu.facts().index, gpu.facts().name, what, static_cast<double>(bytes) / kGiB,
                    static_cast<double>(free) / kGiB, static_cast<double>(total) / kGiB);
}

Result<GpuFacts> read_facts(int index) {
  cudaDeviceProp p{};
  GpuFacts f{.index = index};
  cudaError_t code = cudaGetDeviceProperties(&p, index);
  if (code == cudaSuccess) code = cudaDriverGetVersion(&f.driver);
  if (code == cudaSuccess) code = cudaRuntimeGetVersion(&f.runtime);
  if (code != cudaSuccess) {
    (void)cudaGetLastError();
    return make_error(ErrorCode::kMemory, "GPU {}: its properties cannot be read: {} ({})", index,
                      cudaGetErrorString(code), cudaGetErrorName(code));
  }
  f.name = p.name;
  f.capability = 10 * p.major + p.minor;
  f.multiprocessors = p.multiProcessorCount;
  f.total_bytes = p.totalGlobalMem;
  f.shared_per_block = p.sharedMemPerBlockOptin;
  f.l2_bytes = static_cast<size_t>(std::max(p.l2CacheSize, 0));
  return f;
}

}  // namespace

bool built() {
  return true;
}

std::string_view built_for() {
  return built_architectures();
}

int device_count(std::string* reason) {
  int count = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  if (code == cudaSuccess && count > 0) return count;
  (void)cudaGetLastError();
  if (reason != nullptr) *reason = no_devices(code == cudaSuccess ? cudaErrorNoDevice : code);
  return 0;
}

std::optional<bool> can_access_peer(int device, int peer) {
  int can = 0;
  const cudaError_t code = cudaDeviceCanAccessPeer(&can, device, peer);
  if (code == cudaSuccess) return can != 0;
  (void)cudaGetLastError();
  return std::nullopt;
}

Gpu::Parts::~Parts() {
  if (stream != nullptr) (void)cudaStreamDestroy(stream);
}

Result<std::unique_ptr<Gpu>> Gpu::open(const GpuOptions& options) {
  std::string reason;
  const int count = device_count(&reason);
  if (count == 0) return make_error(ErrorCode::kMemory, "device cuda: {}", reason);
  if (options.index < 0 || options.index >= count)
    return make_error(
        ErrorCode::kMemory,
        "device cuda:{}: there is no such GPU, expected cuda:0 to cuda:{} (CUDA_VISIBLE_DEVICES "
        "decides which ones this process sees)",
        options.index, count - 1);
  std::unique_ptr<Gpu> gpu(new Gpu);
  DI_ASSIGN(gpu->facts_, read_facts(options.index));
  const GpuFacts& f = gpu->facts_;
  if (f.capability < kLeastCapability)
    return make_error(
        ErrorCode::kMemory,
        "GPU {} ({}): compute capability {}.{}, expected 8.0 or newer (Ampere and later): choose "
        "another GPU, or device cpu",
        f.index, f.name, f.capability / 10, f.capability % 10);
  gpu->options_ = options;
  gpu->parts_ = std::make_shared<Parts>();
  cudaError_t code = cudaSetDevice(options.index);
  if (code == cudaSuccess) code = cudaStreamCreateWithFlags(&gpu->parts_->stream, cudaStreamNonBlocking);
  if (code == cudaSuccess) code = cudaMemGetInfo(&gpu->at_open_.free_bytes, &gpu->at_open_.total_bytes);
  if (code != cudaSuccess) {
    (void)cudaGetLastError();
    return make_error(
        ErrorCode::kMemory,
        "GPU {} ({}): it cannot be opened: {} ({}): another process may hold it exclusively, or "
        "all of its memory (nvidia-smi shows which)",
        f.index, f.name, cudaGetErrorString(code), cudaGetErrorName(code));
  }
  gpu->parts_->events = std::make_shared<EventPool>();
  constexpr size_t kCounterBytes = kTileCounters * sizeof(int32_t);
  Result<Buffer> counters = gpu->allocate(kCounterBytes);
  if (!counters)
    return make_error(ErrorCode::kMemory,
                      "{}: the model does not fit, other processes hold nearly all of its memory "
                      "(nvidia-smi shows which): end them, or choose another GPU, or device cpu",
                      counters.error().message);
  gpu->parts_->counters = std::move(*counters);
  gpu->fill(gpu->parts_->counters.data(), 0, kCounterBytes);
  // Kernels wait for the one in front of them only where they were compiled for 9.0 or later: code that the
  // driver makes from the older PTX does not.
  gpu->fast.pdl = f.capability >= 90 && code_architecture() >= 90;
  gpu->fast.f8_tile = f.capability >= 89 && code_architecture() >= 89;
  return gpu;
}

Gpu::~Gpu() {
  // A fault of the device was told by the call that met it, or concerns nobody any more.
  if (parts_ != nullptr && parts_->stream != nullptr) (void)cudaStreamSynchronize(parts_->stream);
}

void Gpu::make_current() const {
  DI_CUDA_CHECK(cudaSetDevice(facts_.index));
}

CUstream_st* Gpu::stream() const {
  return parts_->stream;
}

MemoryInfo Gpu::memory() const {
  MemoryInfo m;
  DI_CUDA_CHECK(cudaMemGetInfo(&m.free_bytes, &m.total_bytes));
  return m;
}

Result<Buffer> Gpu::allocate(size_t bytes) {
  if (bytes == 0) return Buffer();
  void* p = nullptr;
  const cudaError_t code = cudaMalloc(&p, bytes);
  if (code == cudaErrorMemoryAllocation) {
    // Who cannot go on frees what it has, and copies may still be on their way there.
    synchronize();
    return not_enough(*this, "device memory", bytes);
  }
  DI_CUDA_CHECK(code);
  return Buffer::adopt(static_cast<std::byte*>(p), bytes, std::shared_ptr<const void>(p, [](const void* q) {
                         (void)cudaFree(const_cast<void*>(q));
                       }));
}

Result<Buffer> Gpu::allocate_pinned(size_t bytes) {
  if (bytes == 0) return Buffer();
  void* p = nullptr;
  const cudaError_t code = cudaHostAlloc(&p, bytes, cudaHostAllocDefault);
  if (code == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();
    synchronize();
    return make_error(ErrorCode::kMemory, "memory: the system refused {} bytes of pinned memory (ulimit -l)",
                      bytes);
  }
  DI_CUDA_CHECK(code);
  return Buffer::adopt(static_cast<std::byte*>(p), bytes, std::shared_ptr<const void>(p, [](const void* q) {
                         (void)cudaFreeHost(const_cast<void*>(q));
                       }));
}

void Gpu::copy_in(void* to_device, const void* from_host, size_t bytes) {
  if (bytes == 0) return;
  DI_CUDA_CHECK(cudaMemcpyAsync(to_device, from_host, bytes, cudaMemcpyHostToDevice, parts_->stream));
}

void Gpu::copy_out(void* to_host, const void* from_device, size_t bytes) {
  if (bytes == 0) return;
  DI_CUDA_CHECK(cudaMemcpyAsync(to_host, from_device, bytes, cudaMemcpyDeviceToHost, parts_->stream));
}

void Gpu::fill(void* on_device, int byte, size_t bytes) {
  if (bytes == 0) return;
  DI_CUDA_CHECK(cudaMemsetAsync(on_device, byte, bytes, parts_->stream));
}

Event Gpu::record() {
  Event e;
  e.handle_ = EventPool::take(parts_->events);
  DI_CUDA_CHECK(cudaEventRecord(static_cast<cudaEvent_t>(e.handle_.get()), parts_->stream));
  return e;
}

void Gpu::wait(const Event& event) {
  DI_CHECK(event, "wait for an event that was never recorded");
  DI_CUDA_CHECK(cudaEventSynchronize(static_cast<cudaEvent_t>(event.handle_.get())));
}

bool Gpu::done(const Event& event) {
  DI_CHECK(event, "asked for an event that was never recorded");
  const cudaError_t code = cudaEventQuery(static_cast<cudaEvent_t>(event.handle_.get()));
  if (code == cudaErrorNotReady) {
    (void)cudaGetLastError();
    return false;
  }
  DI_CUDA_CHECK(code);
  return true;
}

void Gpu::synchronize() {
  DI_CUDA_CHECK(cudaStreamSynchronize(parts_->stream));
}

void Gpu::begin_capture() {
  // Other threads may go on with calls that a capture forbids (a second device, NVML's pollers).
  DI_CUDA_CHECK(cudaStreamBeginCapture(parts_->stream, cudaStreamCaptureModeThreadLocal));
}

Graph Gpu::end_capture() {
  cudaGraph_t recorded = nullptr;
  DI_CUDA_CHECK(cudaStreamEndCapture(parts_->stream, &recorded));
  const std::shared_ptr<CUgraph_st> owned(recorded, [](cudaGraph_t g) { (void)cudaGraphDestroy(g); });
  cudaGraphExec_t exec = nullptr;
  DI_CUDA_CHECK(cudaGraphInstantiate(&exec, recorded, 0));
  Graph graph;
  graph.handle_ = std::shared_ptr<void>(
      exec, [](void* g) { (void)cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(g)); });
  // Else the first launch would pay for it.
  DI_CUDA_CHECK(cudaGraphUpload(exec, parts_->stream));
  return graph;
}

void Gpu::abandon_capture() {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  if (cudaStreamIsCapturing(parts_->stream, &status) == cudaSuccess &&
      status != cudaStreamCaptureStatusNone) {
    cudaGraph_t recorded = nullptr;
    (void)cudaStreamEndCapture(parts_->stream, &recorded);
    if (recorded != nullptr) (void)cudaGraphDestroy(recorded);
  }
  (void)cudaGetLastError();
}

void Gpu::launch(const Graph& graph) {
  DI_CHECK(graph, "launch of a graph that was never captured");
  DI_CUDA_CHECK(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph.handle_.get()), parts_->stream));
}

}  // namespace deepinfer::cuda
