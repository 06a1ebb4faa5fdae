// GPTQ: columns are rounded one after another, and what each loses is made good by those after it.
// Frantar, Ashkboos, Hoefler, Alistarh: "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
// Transformers" (2022).
#pragma once

#include <vector>

#include "deepinfer/result.h"
#include "quantize/quantized_linear.h"
#include "quantize/statistics.h"

namespace deepinfer::quantize {

struct GptqOptions {
  int64_t group = 128;     // columns that share a scale
  bool act_order = false;  // columns of the largest inputs first
  float damping = 0.01f;   // of the mean of the gram matrix's diagonal, added to it
  DType scale_dtype = DType::kF16;
};

// What all linears of one input share.
struct GptqInput {
  std::vector<int32_t> order;     // of the columns; empty: as they stand
  std::vector<float> importance;  // [cols]: the gram matrix's diagonal, in this order
  std::vector<float> u;           // [cols, cols], upper triangular, u^T u its inverse, in this order
  float damping = 0;              // that was needed
};

// kModel when the statistics are not finite. Damping grows tenfold until the matrix can be factored.
Result<GptqInput> prepare_gptq(ThreadPool& pool, const InputStatistics& statistics,
                               const GptqOptions& options);

// 4 bits, symmetric. Scales of a group are chosen when its first column's turn comes, from the weights as
// they are then. The linear's weight is used up.
QuantizedLinear quantize_gptq(ThreadPool& pool, const GptqInput& input, const GptqOptions& options,
                              Linear linear);

}  // namespace deepinfer::quantize
