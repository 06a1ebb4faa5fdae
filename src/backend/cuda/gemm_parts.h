// What the files that choose a product's kernel share (gemm.cpp, gemm_f8.cpp).
#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/cuda/product.h"
#include "base/arena.h"

namespace deepinfer::cuda {

inline constexpr int64_t kMostGridTokens =
    32768;  // of kernels with a block a token in a grid's second dimension

// Gives scratch back at the end of a scope.
class ScratchMark {
 public:
  explicit ScratchMark(Arena& arena) : arena_(arena), mark_(arena.used()) {}
  ~ScratchMark() { arena_.reset(mark_); }
  ScratchMark(const ScratchMark&) = delete;

 private:
  Arena& arena_;
  size_t mark_;
};

// What vector accesses and cuBLASLt ask for.
inline bool is_aligned(const void* p, int64_t stride_bytes) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0 && stride_bytes % 16 == 0;
}

// Tokens whose sums of `rows` rows are made at once while a library makes them, in 2 bytes each.
int64_t sums_tokens(int64_t rows, int64_t tokens);

// Tokens [first, first + count) of p.
Product tokens_of(const Product& p, int64_t first, int64_t count);

// The same of a call, for what reads its x.
struct CallRows {
  const void* x = nullptr;
  const int32_t* x_row = nullptr;
};
CallRows rows_of(const LinearCall& call, int64_t first);

// Many tokens with weights as they are or expanded to A: `p` is tokens [first, first + p.tokens) of the
// call's, its x is not read.
void product_in_a(Context& context, const LinearCall& call, int64_t first, Product p);

// Adds the sink's bias to rows [p.first_row, + rows) of its output.
void add_bias_to_all(Gpu& gpu, DType a, const Product& p, int64_t rows);

}  // namespace deepinfer::cuda
