// One row of logits becomes one token, in the order of steps at SampleRow; before them log-probabilities are
// taken of the raw logits. (min_p stands before top_k and top_p as in vLLM, so top_p is of what min_p left.)
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
  float* surprise = nullptr;  // rows with mirostat
};

// Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011), key `seed`, counter
// `position`: twice 53 bits as a number in [0, 1).
struct Noise {
  double draw = 0, coin = 0;  // coin: xtc's
};
Noise noise_of(uint64_t seed, int64_t position);
double uniform(uint64_t seed, int64_t position);

bool has_penalties(const SampleRow& row);

// NaN counts as -inf, +inf as the largest float. A row without a finite logit gives its lowest token that
// mask and banned allow, else 0. Ties go to the lowest id. x [V] is changed.
void sample_row(const Kernels& kernels, const SampleRow& row, float* x, int64_t vocab,
                const RowScratch& scratch, const RowOutput& out);

}  // namespace deepinfer::cpu
