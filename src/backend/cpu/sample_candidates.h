// The tokens of one row that may still be drawn: a list of ids with their weights, which the cuts make
// shorter. Everything here depends on the row alone.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "backend/cpu/kernels.h"
#include "backend/cpu/sample_row.h"

namespace deepinfer::cpu {

inline constexpr float kNone = -std::numeric_limits<float>::infinity();
inline constexpr float kLargest = std::numeric_limits<float>::max();

// The larger logit first, the lower id first among equals: no two tokens are equal.
struct Ahead {
  const float* x;
  bool operator()(int32_t a, int32_t b) const { return x[a] != x[b] ? x[a] > x[b] : a < b; }
};

// The largest float below x.
inline float below(float x) {
  return std::nextafter(x, kNone);
}

// The k first of the tokens above `floor` into ids [vocab + kCollectRoom], in no order; returns how many.
int64_t most_likely(const Kernels& kernels, const float* x, int64_t vocab, int64_t k, float floor,
                    int32_t* ids);

// Borrows all it is made of. The list is ids()[0, n); each call says what it does to it.
class Candidates {
 public:
  Candidates(const Kernels& kernels, const float* x, int64_t vocab, const RowScratch& scratch)
      : k_(kernels), x_(x), vocab_(vocab), s_(scratch) {}

  int32_t* ids() const { return s_.ids; }
  float weight(int32_t token) const { return s_.weights[token]; }

  // Of the weights of all tokens.
  double sum_all(const Softmax& softmax);

  // The k first of all tokens with a logit above `floor` into the list, in no order; returns how many.
  int64_t select_top(int64_t k, float floor) { return most_likely(k_, x_, vocab_, k, floor, s_.ids); }

  // The first token with this logit, the largest.
  int32_t first_of(float max);

  // Sets the weights of the list's first n; returns their sum.
  double weigh(const Softmax& softmax, int64_t n);

  // Moves the last in rank of the first n to n - 1; returns n.
  int64_t last_to_end(int64_t n);

  // Moves the fewest most likely of the first n that together weigh at least `target` to the front, the last
  // of them in rank to their end; returns how many. At least one.
  int64_t nucleus(const Softmax& softmax, int64_t n, double target);

  // Draws one of the first n, which are the n first of the row in the order of rank, the last of them at the
  // end.
  int32_t draw_from_first(int64_t n, double noise);

  // Draws one of the first n, whichever tokens they are; *total: of their weights.
  int32_t draw_from_list(int64_t n, double noise, double* total);

  int32_t draw_from_all(const Softmax& softmax, double noise);

 private:
  // Candidates among which the nucleus ends: ids()[begin, end). What stands before them weighs `before`.
  struct Span {
    int64_t begin = 0, end = 0;
    double before = 0;
  };

  Span narrow(const Softmax& softmax, int64_t n, double target);
  void order_by_id(int64_t n);

  const Kernels& k_;
  const float* x_;
  int64_t vocab_;
  const RowScratch& s_;
};

}  // namespace deepinfer::cpu
