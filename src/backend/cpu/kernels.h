// The table of inner loops: one for each instruction set, chosen once from CPUID. Everything else in this
// folder is the same code for all of them.
//
// Kernels see plain pointers only: their files are compiled with flags of their own, and a function shared
// with other files must not come out of them. No kernel's result depends on how work is split: every output
// element is one sequence of operations over k (or over the keys by absolute position).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "backend/cpu/layout.h"
#include "ops/params.h"
#include "tensor/dtype.h"

namespace deepinfer::cpu {

// Columns of activations as a matmul reads them. For integer weights: panels of kPanel columns (the last one
// narrower, of width w), each [K / 32][w][32] int8 with a scale per 32; for float weights: [columns][K] F32.
inline constexpr int64_t kPanel = 8;

struct Columns {
  Layout weight = Layout::kF32;  // of the matmul that reads them
  int64_t count = 0;             // columns
  int64_t k = 0;                 // K
  int8_t* q = nullptr;           // panels of [K / 32][w][32]
  float* scale = nullptr;        // panels of [K / 32][w]
  float* sum = nullptr;  // the same: sum of q, what a zero point is multiplied with; Q4_1: times scale
  int32_t* correction = nullptr;  // the same: -(what the packed codes of the weight are moved by) * sum of q
  const float* x = nullptr;       // float weights: [count] rows of k
  int64_t x_stride = 0;
};

// What becomes of the product y = W x.
enum class Epilogue : uint8_t {
  kStore,  // out = scale * y + bias
  kAdd,    // out += y + bias
  kGated,  // out = act(y of the first of a pair + its bias) * (y of the second + its bias)
};

struct MatmulArgs {
  const std::byte* weight = nullptr;  // packed
  Layout layout = Layout::kF32;
  const float* row_scale = nullptr;  // [packed group][16], or null
  const float* run_scale = nullptr;  // kF8Groups: [packed group][runs of `run` columns][16]
  int64_t run = 0;
  int64_t rows = 0;  // of out (of one part when paired)
  Epilogue epilogue = Epilogue::kStore;
  Activation activation = Activation::kSilu;
  float scale = 1.0f;
  const float* bias = nullptr;  // [rows], paired [2 * rows]; or null
  float* out = nullptr;         // [columns] rows of out_stride
  int64_t out_stride = 0;
};

// Queries of one sequence that share a KV head: tokens [0, tokens) x heads [0, heads) of the group.
inline constexpr int kKeyChunk = 64;      // positions between two updates of the softmax, aligned to 0
inline constexpr int kKeyStretch = 128;   // positions that are summed alone, aligned to 0
inline constexpr int kKvBlock = 16;       // positions of a KV block
inline constexpr int kMaxQueryRows = 48;  // tokens * heads of one call

// Where one position of a KV head is stored.
struct KvPlace {
  std::byte* head = nullptr;  // of the head in its block
  int position = 0;           // in the block
  int dim = 0;
  DType dtype = DType::kF16;
  float scale = 1;  // kF8E4M3: what a stored value is multiplied with; else 1
};

struct AttendArgs {
  const float* q = nullptr;  // of the first token and head: [tokens] rows of q_stride, heads side by side
  int64_t q_stride = 0;
  int tokens = 0;
  int heads = 0;
  int64_t first_position = 0;       // of the first token
  const int32_t* blocks = nullptr;  // block ids of the sequence by position / 16
  const std::byte* k = nullptr;     // of block 0 at this KV head: [dim_k][16] a block (kI8: then the scales)
  const std::byte* v = nullptr;     // of block 0 at this KV head: [16][dim_v] a block (kI8: then the scales)
  size_t block_stride = 0;
  DType kv_dtype = DType::kF16;
  float k_scale = 1, v_scale = 1;  // kF8E4M3: what a stored value is multiplied with; else 1
  int dim_k = 0, dim_v = 0;
  int window = 0;  // 0: all
  float scale = 0;
  float soft_cap = 0;
  float* out = nullptr;  // of the first token and head
  int64_t out_stride = 0;
  float* scratch = nullptr;  // attend_scratch(dim_k, dim_v) floats, 64-byte aligned
};

static constexpr int64_t padded_dim(int dim) {
  return (static_cast<int64_t>(dim) + 15) / 16 * 16;
}
// Queries, chunks of K and V as F32, their scales, scores, two sets of sums and a few numbers for every query
// row.
static constexpr int64_t attend_scratch(int dim_k, int dim_v) {
  return kKeyChunk * (dim_k + padded_dim(dim_v) + 2) +
         kMaxQueryRows * (dim_k + kKeyChunk + 2 * padded_dim(dim_v) + 2);
}

// The stretches of keys that the tokens see: [first, end).
struct KeyStretches {
  int64_t first, end;
};
static constexpr KeyStretches key_stretches(int64_t first_position, int64_t tokens, int64_t window) {
  const int64_t key = window > 0 && first_position + 1 > window ? first_position + 1 - window : 0;
  return {key / kKeyStretch, (first_position + tokens - 1) / kKeyStretch + 1};
}

// What attend_part leaves of a stretch: for every head the sums [padded_dim(dim_v)], the largest score, the
// total of the weights; padded to keep vectors aligned.
inline constexpr int64_t kPartExtra = 16;
inline constexpr size_t kPartBytes = 2 << 20;  // of all parts of a phase; beyond it stretches are not spread
static constexpr int64_t part_size(int heads, int dim_v) {
  return heads * (padded_dim(dim_v) + kPartExtra);
}

inline constexpr int64_t kCollectRoom = 16;

// Tokens found in a row of logits.
struct Found {
  int32_t* ids = nullptr;
  int64_t count = 0;
  int64_t capacity = 0;
};

// The weight of a logit x: e^((x - max) * scale) for x >= floor, else 0.
struct Softmax {
  float max = 0;
  float scale = 1.0f;
  float floor = 0;
};

inline constexpr int64_t kSampleBlock = 1024;  // logits whose weights make one partial sum

struct Kernels {
  std::string_view name;  // "avx512"
  // out = x * weight / rms(x), over n
  void (*norm)(const float* x, const float* weight, float eps, int64_t n, float* out);
  // x [K] becomes column `column`
  void (*quantize)(const float* x, const Columns& columns, int64_t column);
  // row groups [first, last) of 16 rows of out; a pair of groups counts as one
  void (*matmul)(const MatmulArgs& args, const Columns& x, int64_t first, int64_t last);
  // one head; table: cos [dim / 2], sin [dim / 2]
  void (*rotate)(float* x, const float* table, int dim, bool interleaved);
  // one position of one KV head, [dim]
  void (*store_k)(const float* x, const KvPlace& to);
  void (*store_v)(const float* x, const KvPlace& to);
  void (*attend)(const AttendArgs& args);
  // attend for one token in pieces: every stretch into a part of its own, then all parts in order into out
  void (*attend_part)(const AttendArgs& args, int64_t stretch, float* part);
  void (*attend_join)(const AttendArgs& args, const float* parts, int64_t part_size, int64_t count);
  // the largest, -inf when there is none (NaN is none)
  float (*row_max)(const float* x, int64_t n);
  // appends the ids of x > floor from `first` on while kCollectRoom more have room; returns where it stopped
  int64_t (*row_collect)(const float* x, int64_t first, int64_t n, float floor, Found* found);
  void (*row_weights)(const float* x, int64_t n, const Softmax& softmax, float* out);
  // sums[b]: the weights of block b of kSampleBlock logits
  void (*row_sums)(const float* x, int64_t n, const Softmax& softmax, double* sums);
};

extern const Kernels kPortableKernels;  // x86-64-v2
extern const Kernels kAvx2Kernels;      // AVX2, FMA, F16C
extern const Kernels kAvx512Kernels;    // AVX-512 F, BW, VL, DQ, VNNI

// The best one that this processor runs and DEEPINFER_CPU_ISA (portable, avx2, avx512) allows: it caps, so
// that a lower one can be tested. Throws InternalError when the variable has another value.
const Kernels& kernels();

}  // namespace deepinfer::cpu
