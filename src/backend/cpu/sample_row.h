// One row of logits becomes one token. The order is vLLM's: log-probabilities of the raw logits, then mask
// and banned tokens, bias, repetition, frequency and presence penalty, temperature, min_p, top_k, top_p, draw
// (min_p stands before top_k and top_p there, so top_p is of what min_p left).
//
// Everything here depends on the row alone: the noise is one number, a function of (seed, position), that the
// inverse of the distribution, cumulated by id, turns into a token.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/cpu/kernels.h"
#include "ops/params.h"

namespace deepinfer::cpu {

// Memory of one thread, for a vocabulary of V.
struct RowScratch {
  int32_t* ids = nullptr;      // [V + kCollectRoom]
  float* values = nullptr;     // [max(V, kSampleBlock)]
  float* raw = nullptr;        // [V]
  float* weights = nullptr;    // [V] by token
  uint32_t* counts = nullptr;  // [V] by token; zero between rows; null when no row has penalties
  double* sums = nullptr;      // [ceil(V / kSampleBlock)]
};

// Where the results of a row go; only what the row asks for is written.
struct RowOutput {
  int32_t* token = nullptr;
  float* logprob = nullptr;      // rows with logprobs >= 0
  int32_t* top_token = nullptr;  // [logprobs]; -1 and -inf where the row has fewer finite logits
  float* top_logprob = nullptr;
};

// Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011), key `seed`, counter
// `position`: 53 bits as a number in [0, 1).
double uniform(uint64_t seed, int64_t position);

// The larger logit first, the lower id first among equals: no two tokens are equal.
struct Ahead {
  const float* x;
  bool operator()(int32_t a, int32_t b) const { return x[a] != x[b] ? x[a] > x[b] : a < b; }
};

// The k first of the tokens above `floor` into ids [vocab + kCollectRoom], in no order; returns how many.
int64_t most_likely(const Kernels& kernels, const float* x, int64_t vocab, int64_t k, float floor,
                    int32_t* ids);

bool has_penalties(const SampleRow& row);

// NaN counts as -inf, +inf as the largest float. A row without a finite logit gives its lowest token that
// mask and banned allow, else 0. Ties go to the lowest id. x [V] is changed.
void sample_row(const Kernels& kernels, const SampleRow& row, float* x, int64_t vocab,
                const RowScratch& scratch, const RowOutput& out);

}  // namespace deepinfer::cpu
