// What a request may ask for, and the form in which the scheduler keeps it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "deepinfer/engine.h"
#include "engine/dry.h"
#include "ops/params.h"

namespace deepinfer {

// kInvalidArgument that names the parameter (Error.param), what it got and what it may be. NaN and infinity
// are refused.
Result<void> validate(const SamplingParams& params, int vocab_size);
// The part of it that depends on max_tokens, for another one.
Result<void> check_lengths(const SamplingParams& params, int max_tokens);

// What all choices of a request, and requests of Engine::prepare(), share. Immutable.
struct ResolvedSampling {
  SamplingParams params;
  std::vector<LogitBias> bias;
  std::vector<int32_t> stop_ids;          // end ids unless ignore_eos, stop_token_ids; ascending
  std::vector<int32_t> banned;            // bad words of one token; ascending
  std::vector<int32_t> banned_and_stops;  // both; ascending
  std::vector<uint32_t> mask;             // [ceil(V / 32)] of the allowed ids; empty: all
  int64_t allowed_count = 0;              // tokens that the mask allows
  DryBreakers breakers;
  bool penalties = false;       // the sampler reads prompt and output
  bool long_bad_words = false;  // some of several tokens
  bool dry = false;

  bool stops(int32_t token) const;
  bool allows(int32_t token) const { return mask.empty() || (mask[token / 32] >> (token % 32) & 1) != 0; }
  // What the host makes of the tokens before, for each token anew: it has to know them all.
  bool stateful() const { return dry || long_bad_words || params.mirostat != 0; }
};

ResolvedSampling resolve(SamplingParams params, std::span<const int32_t> end_ids, int vocab_size);

// Each choice of a request draws its own noise. Choice 0 has the request's seed.
uint64_t choice_seed(uint64_t seed, int choice);

}  // namespace deepinfer
