// The end of a product: scale, bias, activation of pairs, residual, rounding.
#pragma once

#include "backend/cuda/product.h"
#include "backend/cuda/ptx.h"

namespace deepinfer::cuda {

__device__ inline float sigmoid(float x) {
  return 1.0f / (1.0f + exp_fast(-x));
}

// 0.5 x (1 + tanh(u)) = x sigmoid(2 u) for GELU.
__device__ inline float activate(Activation kind, float x) {
  if (kind == Activation::kSilu) return x * sigmoid(x);
  return x * sigmoid(1.5957691216057308f * (x + 0.044715f * x * x * x));
}

// The sum of packed row `row`, for kStore and kAdd.
template <class A>
__device__ inline void put(const Sink& s, int64_t token, int64_t row, float sum) {
  if (row >= s.rows) return;
  float v = sum * s.scale;
  if (s.bias != nullptr) v += s.bias[row];
  const int64_t at = token * s.stride + row;
  if (s.kind == Epilogue::kAdd)
    static_cast<float*>(s.out)[at] += v;
  else if (s.f32)
    store_for_others(static_cast<float*>(s.out) + at, v);
  else
    static_cast<A*>(s.out)[at] = from_float<A>(v);
}

// Both sums of a pair, for kGated.
template <class A>
__device__ inline void put_pair(const Sink& s, int64_t token, int64_t pair, float gate, float up) {
  if (pair >= s.rows) return;
  if (s.bias != nullptr) {
    gate += s.bias[pair];
    up += s.bias[s.rows + pair];
  }
  const float v = activate(s.activation, gate) * up;
  const int64_t at = token * s.stride + pair;
  if (s.f32)
    static_cast<float*>(s.out)[at] = v;
  else
    static_cast<A*>(s.out)[at] = from_float<A>(v);
}

}  // namespace deepinfer::cuda
