// The list of operations that models are written over. Each checks its shapes, then calls the device's
// backend.
#pragma once

#include "deepinfer/result.h"
#include "ops/params.h"
#include "tensor/context.h"

namespace deepinfer::ops {

// Packs a checkpoint's rows into the device's own layout, with the context's threads. kMemory when there is
// not enough, kUnsupported when the device has no kernel for the dtype or shape.
Result<LinearWeight> pack_linear(Context& context, const LinearSource& source);

// Small F32 values (norms, biases, angles) to where the device reads them. kMemory when there is not enough.
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
void copy_blocks(Context& context, const KvCache& cache, std::span<const BlockCopy> copies);

// Scratch bytes that one step of at most `tokens` tokens and `logit_rows` rows of logits needs inside the
// operations, for weights up to `max_cols` columns and `max_rows` rows (the arena's size is fixed before the
// KV cache is sized).
size_t scratch_bytes(const Context& context, int64_t tokens, int64_t logit_rows, int64_t max_cols,
                     int64_t max_rows);

}  // namespace deepinfer::ops
