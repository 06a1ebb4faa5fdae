// Speculation without a second model: what followed the last time that the text said the same is guessed to
// follow again (prompt look-up), verified in one step with the token before it.
//
// A guess changes when tokens come, never which: each is sampled from its own logits with its own random
// number, and counts only while all guesses before it were right.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "deepinfer/engine.h"

namespace deepinfer {

inline constexpr int kMostDrafts = 32;  // tokens of a draft

// What followed the place in `tokens` that ends like `tokens` does: of the longest common ending from
// lookup_min to lookup_max tokens, the last place. Appends `most` tokens, or none when there is no place.
void look_up(std::span<const int32_t> tokens, const SpeculationOptions& options, size_t most,
             std::vector<int32_t>& out);

// The time of a step as a line over its tokens, fitted to what steps took, late ones above all.
class StepCost {
 public:
  void observe(int64_t tokens, double seconds);
  // Of a step of `tokens`, in an arbitrary unit.
  double of(int64_t tokens) const;

 private:
  double weight_ = 0, tokens_ = 0, seconds_ = 0;  // means
  double variance_ = 0, covariance_ = 0;          // of tokens, and of tokens with seconds
};

// How well guesses have done in one sequence. Those that were not drafted count too, by the token that came.
class DraftRecord {
 public:
  void observe(bool right);
  // The number of guesses, 0 to `most`, that promises the most tokens a second for a step of `tokens` tokens
  // without them.
  int64_t worth(int64_t most, int64_t tokens, const StepCost& cost) const;

 private:
  // A sequence starts without trust: text that repeats nothing pays for no draft.
  double right_ = 0, wrong_ = 1;
};

}  // namespace deepinfer
