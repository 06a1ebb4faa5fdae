// What a request may ask for, and the form in which the scheduler keeps it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "deepinfer/engine.h"
#include "ops/params.h"

namespace deepinfer {

// kInvalidArgument that names the parameter (Error.param), what it got and what it may be. NaN and infinity
// are refused.
Result<void> validate(const SamplingParams& params, int vocab_size);

// What all choices of a request share.
struct ResolvedSampling {
  SamplingParams params;
  std::vector<LogitBias> bias;
  std::vector<int32_t> stop_ids;  // end ids unless ignore_eos, stop_token_ids; ascending
  bool penalties = false;         // the sampler reads prompt and output

  bool stops(int32_t token) const;
};

ResolvedSampling resolve(SamplingParams params, std::span<const int32_t> end_ids);

// Each choice of a request draws its own noise. Choice 0 has the request's seed.
uint64_t choice_seed(uint64_t seed, int choice);

}  // namespace deepinfer
