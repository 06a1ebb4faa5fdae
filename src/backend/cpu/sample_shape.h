// The draw of a row that asks for more than temperature, min_p, top_k and top_p: llama.cpp's samplers, as
// SampleRow says.
#pragma once

#include <cstdint>

#include "backend/cpu/sample_row.h"

namespace deepinfer::cpu {

struct ShapeArgs {
  const Kernels& kernels;
  const SampleRow& row;
  const float* x;  // [vocab], changed by mask, bias and penalties
  int64_t vocab = 0;
  const RowScratch& scratch;
};

// row.shaped(); max is the largest logit, finite. *surprise: -log2 of the token's probability among what was
// left.
int32_t choose_shaped(const ShapeArgs& args, float max, double* surprise);

}  // namespace deepinfer::cpu
