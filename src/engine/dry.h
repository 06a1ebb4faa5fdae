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

  // Where the last one stands, [begin, end): of those that begin at the same token the longest. False: none.
  bool find_last(std::span<const int32_t> tokens, int64_t& begin, int64_t& end) const;
  int64_t longest() const { return longest_; }  // of all sequences
  bool is_single(int32_t token) const { return contains(singles_, token); }

 private:
  static bool contains(const std::vector<uint32_t>& bits, int32_t token) {
    return !bits.empty() && (bits[token / 32] >> (token % 32) & 1) != 0;
  }

  std::vector<std::vector<int32_t>> longer_;  // of several tokens, sorted
  int64_t longest_ = 0;
  std::vector<uint32_t> singles_, heads_;  // [ceil(V / 32)] bits by token; heads: of all; empty: none
};

// What of one growing text is kept from token to token: for the earlier places that end with the same tokens
// as the text, how many. Of the texts that it is given each begins with the one before. One thread.
class DryHistory {
 public:
  // `gram`, 1 or 2, and `breakers` never change.
  void grow(std::span<const int32_t> tokens, int gram, const DryBreakers& breakers);

  // The last earlier place that may end with the same `gram` tokens, and that before `place`; -1: none. The
  // order is descending. A place is the index of its last token.
  int64_t last() const;
  int64_t before(int64_t place) const { return previous_[place]; }
  // Tokens up to `place` that equal the text's last ones: right where at least `gram` do.
  int64_t match(int64_t place) const { return matches_[place]; }

  // How many of the last tokens stand behind the last breaker of those from `begin` on; all of these when
  // there is none.
  int64_t tokens_behind(int64_t begin) const;

 private:
  void link(std::span<const int32_t> tokens, int gram);
  void extend_matches(std::span<const int32_t> tokens, int gram);

  std::vector<int32_t> heads_;     // by the hash of the last tokens: the last place; -1: none. 2^n of them
  std::vector<int32_t> previous_;  // by place: that before with the same hash
  std::vector<int32_t> matches_;   // by place
  int64_t length_ = 0;             // of the text
  int64_t breaker_begin_ = -1, breaker_end_ = 0;  // the last one's; -1: none
};

// The penalties of the token that follows `tokens`, as llama.cpp's server computes them: of the last
// dry_penalty_last_n tokens those that follow an earlier occurrence of the text's end of at least
// dry_allowed_length tokens get -multiplier * base^(length - allowed length), of the longest one. Looks at
// the earlier occurrences of the text's last two tokens (one, when so few are allowed). Keeps its memory from
// call to call; used by one thread.
class DryPenalties {
 public:
  // Replaces `out`; ascending by token. `history`: of this text, params and breakers alone.
  void compute(const SamplingParams& params, const DryBreakers& breakers, std::span<const int32_t> tokens,
               DryHistory& history, std::vector<LogitBias>& out);

 private:
  std::vector<int32_t> longest_;  // by token; zero between calls
};

}  // namespace deepinfer
