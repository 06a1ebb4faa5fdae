// What is done to one row of activations: norm, quantization, activation functions, RoPE, KV conversion.
#pragma once

#include "backend/cpu/kernels.h"
#include "backend/cpu/layout.h"
#include "backend/cpu/simd-inl.h"

namespace deepinfer::cpu {
namespace {

static void norm(const float* x, const float* weight, float eps, int64_t n, float* out) {
  F32 squares{};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) squares = fma(load(x + i), load(x + i), squares);
  if (i < n) squares = fma(load_n(x + i, n - i), load_n(x + i, n - i), squares);
  const float scale = 1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(n) + eps);
  for (i = 0; i + kLanes <= n; i += kLanes) store(out + i, load(x + i) * splat(scale) * load(weight + i));
  if (i < n) store_n(out + i, load_n(x + i, n - i) * splat(scale) * load_n(weight + i, n - i), n - i);
}

// By what the bytes that the kernels multiply with are larger than the packed codes.
DI_INLINE int32_t code_offset(Layout weight) {
  return weight == Layout::kQ4_0 ? 8 : weight == Layout::kQ8_0 || weight == Layout::kU8 ? 128 : 0;
}

// Blocks of 32: scale = max |x| / 127, q = x / scale to the nearest. A block of zeros has scale 0.
static void quantize(const float* x, const Columns& columns, int64_t column) {
  const int64_t panel = column / kPanel, blocks = columns.k / kTileK;
  const int64_t left = columns.count - panel * kPanel;
  const int64_t width = left < kPanel ? left : kPanel;
  const int64_t start = panel * kPanel * blocks + column % kPanel;
  const int32_t offset = code_offset(columns.weight);
  for (int64_t b = 0; b < blocks; ++b, x += kTileK) {
    const int64_t at = start + b * width;
    const F32 low = load(x), high = load(x + kLanes);
    const float largest = max(max(abs(low), abs(high)));
    const float scale = largest / 127.0f;
    const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
    const I32 q0 = __builtin_convertvector(__builtin_elementwise_roundeven(low * splat(inverse)), I32);
    const I32 q1 = __builtin_convertvector(__builtin_elementwise_roundeven(high * splat(inverse)), I32);
    int8_t* q = columns.q + at * kTileK;
    store_as(q, __builtin_convertvector(q0, I8));
    store_as(q + kLanes, __builtin_convertvector(q1, I8));
    const int32_t total = __builtin_reduce_add(q0 + q1);
    columns.scale[at] = scale;
    const float sum = static_cast<float>(total);
    columns.sum[at] = columns.weight == Layout::kQ4_1 ? scale * sum : sum;
    columns.correction[at] = -offset * total;
  }
}

DI_INLINE F32 sigmoid(F32 x) {
  return 1.0f / (1.0f + exp(-x));
}

DI_INLINE F32 activate(F32 x, Activation kind) {
  if (kind == Activation::kSilu) return x * sigmoid(x);
  // 0.5 x (1 + tanh(u)) = x sigmoid(2u), u = sqrt(2 / pi) (x + 0.044715 x^3)
  const F32 u = 0.7978845608028654f * fma(x * x * x, splat(0.044715f), x);
  return x * sigmoid(u + u);
}

static void rotate(float* x, const float* table, int dim, bool interleaved) {
  const int half = dim / 2;
  const int step = interleaved ? 2 : 1, other = interleaved ? 1 : half;
  for (int i = 0; i < half; ++i) {
    const float c = table[i], s = table[half + i];
    float* const pair = x + i * step;
    const float a = pair[0], b = pair[other];
    pair[0] = a * c - b * s;
    pair[other] = b * c + a * s;
  }
}

template <class Element>
static void store_k_of(const float* x, int dim, typename Element::Type* k) {
  for (int i = 0; i < dim; i += kLanes) {
    const int n = dim - i < kLanes ? dim - i : kLanes;
    typename Element::Type converted[kLanes];
    Element::store16(converted, load_n(x + i, n));
    for (int j = 0; j < n; ++j) k[(i + j) * kKvBlock] = converted[j];
  }
}

template <class Element>
static void store_v_of(const float* x, int dim, typename Element::Type* v) {
  int i = 0;
  for (; i + kLanes <= dim; i += kLanes) Element::store16(v + i, load(x + i));
  if (i == dim) return;
  typename Element::Type converted[kLanes];
  Element::store16(converted, load_n(x + i, dim - i));
  std::memcpy(v + i, converted, (dim - i) * sizeof(converted[0]));
}

static void store_k(const float* x, int dim, DType dtype, std::byte* k) {
  switch (dtype) {
    case DType::kF32:
      return store_k_of<ElementF32>(x, dim, reinterpret_cast<float*>(k));
    case DType::kF16:
      return store_k_of<ElementF16>(x, dim, reinterpret_cast<uint16_t*>(k));
    case DType::kBF16:
      return store_k_of<ElementBF16>(x, dim, reinterpret_cast<uint16_t*>(k));
    default:
      return;  // the operation has checked it
  }
}

static void store_v(const float* x, int dim, DType dtype, std::byte* v) {
  switch (dtype) {
    case DType::kF32:
      return store_v_of<ElementF32>(x, dim, reinterpret_cast<float*>(v));
    case DType::kF16:
      return store_v_of<ElementF16>(x, dim, reinterpret_cast<uint16_t*>(v));
    case DType::kBF16:
      return store_v_of<ElementBF16>(x, dim, reinterpret_cast<uint16_t*>(v));
    default:
      return;  // the operation has checked it
  }
}

}  // namespace
}  // namespace deepinfer::cpu
