// The matmul of a phase: rows of activations, normalized and quantized on their way in, times a packed
// weight, with the phase's epilogue.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "backend/cpu/kernels.h"
#include "ops/params.h"
#include "tensor/context.h"

namespace deepinfer::cpu {

struct LinearCall {
  const LinearWeight* weight = nullptr;
  const float* x = nullptr;  // rows of x_stride
  int64_t x_stride = 0;
  std::span<const int32_t> x_row;  // which row of x each column is; empty: the first `count`
  int64_t count = 0;               // columns: tokens
  const Norm* norm = nullptr;      // of x, or null

  Epilogue epilogue = Epilogue::kStore;
  Activation activation = Activation::kSilu;
  float scale = 1.0f;
  const float* bias = nullptr;
  float* out = nullptr;  // [count] rows of out_stride; with `after` of one block of columns only
  int64_t out_stride = 0;

  // Called on every thread when columns [first, first + count) are in out, whose row 0 is column `first`.
  // Thread t of n takes its share of them. Null: nothing follows.
  const std::function<void(int t, int64_t first, int64_t count)>* after = nullptr;
};

// At most this many columns are under way at once; they stay in the cache while the weight passes.
int64_t columns_at_once(const LinearWeight& weight, int64_t count);

void linear(Context& context, const LinearCall& call);

// Scratch bytes of linear() for a weight of `cols` columns.
size_t linear_scratch_bytes(int threads, int64_t count, int64_t cols);

// The share of `n` pieces that thread t of `threads` takes: [first, last).
struct Share {
  int64_t first, last;
};
inline Share share(int64_t n, int t, int threads) {
  return {n * t / threads, n * (t + 1) / threads};
}

}  // namespace deepinfer::cpu
