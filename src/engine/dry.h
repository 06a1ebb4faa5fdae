// DRY ("don't repeat yourself", the author's description: oobabooga/text-generation-webui#5677): a token that
// would go on with a repetition of what already stands in the text is made less likely, the more so the
// longer the repetition.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "deepinfer/engine.h"
#include "ops/params.h"

namespace deepinfer {

// Token sequences at which a repetition ends. Immutable.
class DryBreakers {
 public:
  DryBreakers() = default;
  // Ids below vocab_size, no sequence empty.
  DryBreakers(std::vector<std::vector<int32_t>> sequences, int vocab_size);

  // How many of the last tokens stand behind the last breaker; all when there is none. Of those that begin
  // at the same token the longest counts.
  int64_t tokens_behind(std::span<const int32_t> tokens) const;
  bool is_single(int32_t token) const { return contains(singles_, token); }

 private:
  static bool contains(const std::vector<uint32_t>& bits, int32_t token) {
    return !bits.empty() && (bits[token / 32] >> (token % 32) & 1) != 0;
  }

  std::vector<std::vector<int32_t>> longer_;  // of several tokens, sorted
  std::vector<uint32_t> singles_, heads_;     // [ceil(V / 32)] bits by token; heads: of all; empty: none
};

// The penalties of the token that follows `tokens`, as llama.cpp's server computes them: of the last
// dry_penalty_last_n tokens those that follow an earlier occurrence of the text's end of at least
// dry_allowed_length tokens get -multiplier * base^(length - allowed length), of the longest one. Linear in
// the tokens looked at. Keeps its memory from call to call; used by one thread.
class DryPenalties {
 public:
  // Replaces `out`; ascending by token.
  void compute(const SamplingParams& params, const DryBreakers& breakers, std::span<const int32_t> tokens,
               std::vector<LogitBias>& out);

 private:
  std::vector<int32_t> matches_;  // [tokens looked at]
  std::vector<int32_t> longest_;  // by token; zero between calls
};

}  // namespace deepinfer
