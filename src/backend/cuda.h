// The operations on a CUDA device: the same names and contracts as ops/ops.h. The linker takes them from
// backend/cuda, or from backend/no_cuda, where each says that this build has none.
#pragma once

#include <stdexcept>

#include "deepinfer/result.h"
#include "ops/params.h"
#include "tensor/context.h"

namespace deepinfer::cuda {

// A build or machine without CUDA was asked for it.
class CudaUnavailable : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

Result<LinearWeight> pack_linear(Context& context, const LinearSource& source);
Result<Buffer> upload(Context& context, std::span<const float> values);
void embed(Context& context, const EmbedParams& p);
void rope(Context& context, const RopeParams& p);
void qkv(Context& context, const QkvParams& p);
void attention(Context& context, const AttentionParams& p);
void project(Context& context, const ProjectParams& p);
void gate_up(Context& context, const GateUpParams& p);
void head(Context& context, const HeadParams& p);
void sample(Context& context, const SampleParams& p);
void score(Context& context, const ScoreParams& p);
// to[:, first ..] = from, of as many rows; F32.
void place_columns(Context& context, const Tensor& from, const Tensor& to, int64_t first);
void copy_blocks(Context& context, const KvCache& cache, std::span<const BlockCopy> copies);
size_t scratch_bytes(const Context& context, int64_t tokens, int64_t logit_rows, int64_t max_cols,
                     int64_t max_rows);

}  // namespace deepinfer::cuda
