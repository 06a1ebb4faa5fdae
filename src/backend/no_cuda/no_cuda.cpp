#include "backend/cuda.h"
#include "backend/cuda/staging.h"
#include "backend/no_cuda/unavailable.h"
#include "base/check.h"

namespace deepinfer::cuda {

Result<LinearWeight> pack_linear(Context&, const LinearSource&) {
  return make_error(ErrorCode::kUnsupported,
                    "device: got cuda, but this build has no CUDA: use device cpu, or a build with CUDA");
}

Result<Buffer> upload(Context&, std::span<const float>) {
  unavailable("upload");
}
void project(Context&, const ProjectParams&) {
  unavailable("project");
}
void gate_up(Context&, const GateUpParams&) {
  unavailable("gate_up");
}
void head(Context&, const HeadParams&) {
  unavailable("head");
}
size_t scratch_bytes(const Context&, int64_t, int64_t, int64_t, int64_t) {
  unavailable("scratch_bytes");
}

void release_staging(Gpu&) {
  unavailable("release_staging");
}

}  // namespace deepinfer::cuda
