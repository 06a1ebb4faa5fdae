// The device of a build without CUDA: there is none.
#include "backend/cuda_gpu.h"
#include "backend/cuda_rates.h"
#include "base/check.h"

namespace deepinfer::cuda {
namespace {

constexpr const char* kNoCuda =
    "this build has no CUDA: use device cpu, or a build with CUDA (DEEPINFER_CUDA=ON)";

[[noreturn]] void unreachable(const char* call) {
  detail::check_failed("a Gpu", __FILE__, __LINE__, fmt::format("Gpu::{}: {}", call, kNoCuda));
}

}  // namespace

struct Gpu::Parts {};

bool built() {
  return false;
}

std::string_view built_for() {
  return "";
}

int device_count(std::string* reason) {
  if (reason != nullptr) *reason = kNoCuda;
  return 0;
}

Result<std::unique_ptr<Gpu>> Gpu::open(const GpuOptions&) {
  return make_error(ErrorCode::kUnsupported, "device cuda: {}", kNoCuda);
}
Gpu::~Gpu() = default;
Result<void> Gpu::open_fast_paths() {
  unreachable("open_fast_paths");
}
void Gpu::make_current() const {
  unreachable("make_current");
}
CUstream_st* Gpu::stream() const {
  unreachable("stream");
}
MemoryInfo Gpu::memory() const {
  unreachable("memory");
}
Result<Buffer> Gpu::allocate(size_t) {
  unreachable("allocate");
}
Result<Buffer> Gpu::allocate_pinned(size_t) {
  unreachable("allocate_pinned");
}
Result<Range> Gpu::reserve(size_t) {
  unreachable("reserve");
}
Result<void> Gpu::map(Range&, size_t) {
  unreachable("map");
}
void Gpu::copy_in(void*, const void*, size_t) {
  unreachable("copy_in");
}
void Gpu::copy_out(void*, const void*, size_t) {
  unreachable("copy_out");
}
void Gpu::fill(void*, int, size_t) {
  unreachable("fill");
}
Event Gpu::record() {
  unreachable("record");
}
void Gpu::wait(const Event&) {
  unreachable("wait");
}
bool Gpu::done(const Event&) {
  unreachable("done");
}
void Gpu::synchronize() {
  unreachable("synchronize");
}
void Gpu::begin_capture() {
  unreachable("begin_capture");
}
Graph Gpu::end_capture() {
  unreachable("end_capture");
}
void Gpu::abandon_capture() {
  unreachable("abandon_capture");
}
void Gpu::launch(const Graph&) {
  unreachable("launch");
}

std::optional<bool> can_access_peer(int, int) {
  return std::nullopt;
}
std::optional<CudaLibrary> cublaslt_library() {
  return std::nullopt;
}
Result<DeviceRates> measure_rates(Gpu&, const RateSizes&) {
  unreachable("measure_rates");
}

}  // namespace deepinfer::cuda
