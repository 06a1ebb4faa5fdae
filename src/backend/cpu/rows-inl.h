// What is done to one row of activations: norm, quantization, activation functions, RoPE, KV conversion.
#pragma once

#include <type_traits>

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
  if (weight >= Layout::kQ8_0) return 128;
  return weight == Layout::kQ4_0 || weight == Layout::kQ4_0Wide ? 8 : 0;
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

// At most 16 of the n that are left.
DI_INLINE F32 load_some(const float* x, int n) {
  return n >= kLanes ? load(x) : load_n(x, n);
}

// Elements of one position: those of K stand kKvBlock apart, those of V side by side.
template <class Type>
DI_INLINE void put(const Type (&from)[kLanes], int count, int stride, Type* to) {
  if (count == kLanes && stride == 1) return std::memcpy(to, from, sizeof from), void();
  for (int j = 0; j < count; ++j) to[j * stride] = from[j];
}

// F8_E4M3: x / scale, divided as the CUDA backend does.
template <class Element>
static void store_floats(const float* x, const KvPlace& to, int stride, typename Element::Type* at) {
  for (int i = 0; i < to.dim; i += kLanes) {
    const int n = to.dim - i < kLanes ? to.dim - i : kLanes;
    typename Element::Type converted[kLanes];
    F32 v = load_some(x + i, n);
    if constexpr (std::is_same_v<Element, ElementE4M3>) v /= splat(to.scale);
    Element::store16(converted, v);
    put(converted, n, stride, at + i * stride);
  }
}

// scale = max |x| / 127, rounded to BF16, q = x / scale to the nearest: BF16 rounds by less than 1 / 256, so
// |q| stays below 127.5. A position of zeros has scale 0; one with an infinity or NaN has scale NaN.
static void store_int8(const float* x, const KvPlace& to, int stride, int8_t* at) {
  F32 largest{}, not_finite{};
  for (int i = 0; i < to.dim; i += kLanes) {
    const F32 v = load_some(x + i, to.dim - i);
    largest = max(largest, abs(v));
    not_finite += v * 0.0f;
  }
  const U16 bits = f32_to_bf16(splat(max(largest) / 127.0f + sum(not_finite)));
  const uint16_t stored = bits[0];
  std::memcpy(to.head + static_cast<int64_t>(to.dim) * kKvBlock + to.position * sizeof stored, &stored,
              sizeof stored);
  const float scale = bf16_to_f32(bits)[0];
  const float inverse = scale >= 0x1p-126f ? 1.0f / scale : 0.0f;  // below it 1 / scale may be infinite
  for (int i = 0; i < to.dim; i += kLanes) {
    const int n = to.dim - i < kLanes ? to.dim - i : kLanes;
    const F32 q = __builtin_elementwise_roundeven(load_some(x + i, n) * splat(inverse));
    int8_t converted[kLanes];
    store_as(converted, __builtin_convertvector(__builtin_convertvector(q, I32), I8));
    put(converted, n, stride, at + i * stride);
  }
}

// `first`: elements from the head's start to the position's first one.
static void store_position(const float* x, const KvPlace& to, int64_t first, int stride) {
  switch (to.dtype) {
    case DType::kF32:
      return store_floats<ElementF32>(x, to, stride, reinterpret_cast<float*>(to.head) + first);
    case DType::kF16:
      return store_floats<ElementF16>(x, to, stride, reinterpret_cast<uint16_t*>(to.head) + first);
    case DType::kBF16:
      return store_floats<ElementBF16>(x, to, stride, reinterpret_cast<uint16_t*>(to.head) + first);
    case DType::kF8E4M3:
      return store_floats<ElementE4M3>(x, to, stride, reinterpret_cast<uint8_t*>(to.head) + first);
    case DType::kI8:
      return store_int8(x, to, stride, reinterpret_cast<int8_t*>(to.head) + first);
    default:
      return;  // the operation has checked it
  }
}

static void store_k(const float* x, const KvPlace& to) {
  store_position(x, to, to.position, kKvBlock);
}

static void store_v(const float* x, const KvPlace& to) {
  store_position(x, to, static_cast<int64_t>(to.position) * to.dim, 1);
}

}  // namespace
}  // namespace deepinfer::cpu
