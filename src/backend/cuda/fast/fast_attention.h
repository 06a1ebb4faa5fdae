// Attention by FlashInfer's kernels where they serve: FA2 for rows of several tokens, XQA for decode rows.
// The own kernel (attention_plain) serves every other shape, and is what these are checked against.
//
// Built where DEEPINFER_FLASHINFER_DIR is given; elsewhere nothing is supported. No call allocates or waits
// but prepare_fast_attention, so all others may be part of a graph: they read sizes on the host, contents on
// the device.
#pragma once

#include <memory>

#include "backend/cuda/attention.h"
#include "backend/cuda_gpu.h"
#include "deepinfer/result.h"

namespace deepinfer::cuda {

// Memory on the device that the fast paths keep between steps, and which kernels have code for the device.
// Owned by Gpu::Parts; used by the thread that owns the Gpu.
class FastAttention;

struct FastBuilt {
  bool fa2 = false, xqa = false;  // there is a kernel with code for this device
};

// Once after the Gpu is open, outside of captures. About 6 MB of the device's memory. kMemory. Without it (or
// when the build has none of the kernels) nothing is supported.
Result<FastBuilt> prepare_fast_attention(Gpu& gpu);

// Whether the shape, the sizes and the device are served; Gpu::fast and whether it pays are not asked.
bool fa2_supports(const Gpu& gpu, const PagedAttention& a);
bool xqa_supports(const Gpu& gpu, const PagedAttention& a);

// Rows [decode_rows, rows), resp. [0, decode_rows), of the step; the others' `out` stays as it is. Throws
// InternalError for what is not supported.
void fa2_prefill(Gpu& gpu, const PagedAttention& a);
void xqa_decode(Gpu& gpu, const PagedAttention& a);

// Launches what Gpu::fast allows, is supported and pays. What it says it served needs no other kernel: decode
// rows are the first batch->decode_rows rows, prefill rows all others.
struct FastServed {
  bool decode = false, prefill = false;
};
FastServed attention_fast(Gpu& gpu, const PagedAttention& a);

}  // namespace deepinfer::cuda
