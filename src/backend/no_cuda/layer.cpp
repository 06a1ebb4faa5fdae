#include "backend/cuda.h"
#include "backend/no_cuda/unavailable.h"

namespace deepinfer::cuda {

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
void place_columns(Context&, const Tensor&, const Tensor&, int64_t) {
  unavailable("place_columns");
}
void copy_blocks(Context&, const KvCache&, std::span<const BlockCopy>) {
  unavailable("copy_blocks");
}

}  // namespace deepinfer::cuda
