// What a sampler is to be told of the tokens before, computed the plain way: quadratic, and all anew for each
// token.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "deepinfer/engine.h"
#include "ops/params.h"

namespace deepinfer::test {

// Ascending by token.
std::vector<LogitBias> plain_dry(const SamplingParams& params, std::span<const int32_t> tokens);

// Ascending. stop_ids: banned while the output is shorter than min_tokens.
std::vector<int32_t> plain_banned(const SamplingParams& params, std::span<const int32_t> stop_ids, int vocab,
                                  std::span<const int32_t> output);

}  // namespace deepinfer::test
