#include "backend/cuda.h"
#include "base/check.h"

namespace deepinfer::cuda {
namespace {

[[noreturn]] void unavailable(const char* operation) {
  throw CudaUnavailable(fmt::format(
      "{}: the tensors are on a CUDA device, but this build has no CUDA: use device cpu", operation));
}

}  // namespace

Result<LinearWeight> pack_linear(Context&, const LinearSource&) {
  return make_error(ErrorCode::kUnsupported,
                    "device: got cuda, but this build has no CUDA: use device cpu, or a build with CUDA");
}

Result<Buffer> upload(Context&, std::span<const float>) {
  unavailable("upload");
}
void embed(Context&, const EmbedParams&) {
  unavailable("embed");
}
void rope(Context&, const RopeParams&) {
  unavailable("rope");
}
void qkv(Context&, const QkvParams&) {
  unavailable("qkv");
}
void attention(Context&, const AttentionParams&) {
  unavailable("attention");
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
void copy_blocks(Context&, const KvCache&, std::span<const BlockCopy>) {
  unavailable("copy_blocks");
}
size_t scratch_bytes(const Context&, int64_t, int64_t, int64_t, int64_t) {
  unavailable("scratch_bytes");
}

}  // namespace deepinfer::cuda
