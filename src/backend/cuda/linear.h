// The product of a phase on the card: rows of activations times a packed weight, with the phase's epilogue.
// Which kernel runs (skinny, tile, cuBLASLt) is decided from the shapes, the card and gpu.deterministic
// alone, never from contents, so that a call can be captured into a graph.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/cuda/qkv_finish.h"
#include "ops/params.h"
#include "tensor/context.h"

namespace deepinfer::cuda {

enum class Epilogue : uint8_t {
  kStore,  // out = scale * (W x) + b
  kAdd,    // out += scale * (W x) + b; out is F32
  kGated,  // out = act(W_gate x + b_gate) * (W_up x + b_up) of a paired weight; out is [T, N / 2] A
};

// All pointers are the device's. T is out.shape[0]; T = 0 launches nothing.
struct LinearCall {
  const LinearWeight* weight = nullptr;
  // Without `norm`: [T, K] A. With it: [rows, K] F32, normalized and rounded to A on the way in.
  Tensor x;
  const Norm* norm = nullptr;
  const int32_t* x_row = nullptr;  // [T] which row of x token t reads; only with `norm`; null: row t

  Epilogue epilogue = Epilogue::kStore;
  Activation activation = Activation::kSilu;
  float scale = 1.0f;
  Tensor bias;  // [N] F32 in the order of the weight's parts, or none
  Tensor out;   // [T, N] A or F32
  // What is made of a kStore into F32, or null. `out` is its product, scratch in between.
  const QkvFinish* finish = nullptr;
};

// Takes what it needs from context.scratch and gives it back.
void linear(Context& context, const LinearCall& call);

// Scratch of linear() for up to `tokens` tokens and weights of up to max_cols x max_rows.
size_t linear_scratch(const Context& context, int64_t tokens, int64_t max_cols, int64_t max_rows);

}  // namespace deepinfer::cuda
