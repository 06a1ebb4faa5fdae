// AWQ: the columns that meet large inputs are scaled up before they are rounded, and what comes before them
// is scaled down; then ranges are clipped.
// Lin, Tang, Tang, Yang, Chen, Wang, Xiao, Dang, Gan, Han: "AWQ: Activation-aware Weight Quantization for
// On-Device LLM Compression and Acceleration" (2023).
#pragma once

#include <span>
#include <vector>

#include "quantize/quantized_linear.h"
#include "quantize/statistics.h"

namespace deepinfer::quantize {

struct AwqOptions {
  int64_t group = 128;
  DType scale_dtype = DType::kF16;
};

// Factors [cols] for the columns of these linears, which have one input: of a grid of powers of the inputs'
// and the weights' magnitudes those whose rounding changes the outputs least. Columns c with equal
// shared[c] get one factor (heads that read one value head); empty: each its own.
std::vector<float> search_scales(ThreadPool& pool, const InputStatistics& input,
                                 std::span<const Linear* const> linears, const std::vector<int32_t>& shared,
                                 const AwqOptions& options);

// The statistics of an input whose columns were divided by the factors.
InputStatistics divided(InputStatistics input, const std::vector<float>& factors);

// 4 bits with zero points; each group's range is the one that changes the outputs least. The weight's columns
// are multiplied by `factors` before; `input` is what comes after the division.
QuantizedLinear quantize_awq(ThreadPool& pool, const InputStatistics& input, const AwqOptions& options,
                             Linear linear, const std::vector<float>& factors);

}  // namespace deepinfer::quantize
