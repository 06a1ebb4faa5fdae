// Apart from the other operations: a backend that lacks some of them still links.
#include "backend/cuda/sample.h"

#include "backend/cuda.h"
#include "base/check.h"

namespace deepinfer::cuda {
namespace {

[[noreturn]] void unavailable() {
  throw CudaUnavailable(
      "sample: the logits are on a CUDA device, but this build has no CUDA: use device cpu");
}

}  // namespace

size_t sample_block_bytes(const SampleBlockLayout&) {
  unavailable();
}
Packed pack_sample_block(std::span<const SampleRow>, const SamplePacking&, std::byte*) {
  unavailable();
}
size_t pack_masks(std::span<const SampleRow>, int64_t, uint32_t*) {
  unavailable();
}
size_t sample_scratch_bytes(int32_t, int64_t) {
  unavailable();
}
void sample_device(Gpu&, const Tensor&, const DeviceSampleBlock&, const DeviceBatch&, int32_t,
                   const SampleOutputs&, std::byte*) {
  unavailable();
}
void sample(Context&, const SampleParams&) {
  unavailable();
}
void score(Context&, const ScoreParams&) {
  unavailable();
}

}  // namespace deepinfer::cuda
