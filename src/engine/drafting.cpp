#include "engine/drafting.h"

#include <algorithm>

namespace deepinfer {
namespace {

constexpr double kRecordKeeps = 0.9;  // of what a record knew, at each guess: it knows about the last ten
constexpr double kCostKeeps = 0.98;
// Until steps of different sizes were seen: what a token more costs, in steps of one token. Few tokens share
// the reading of the weights, so it is far from 1.
constexpr double kTokenPrior = 0.35;
constexpr double kPriorWeight = 0.1;  // in square tokens, against the variance that was seen

}  // namespace

void look_up(std::span<const int32_t> tokens, const SpeculationOptions& o, size_t most,
             std::vector<int32_t>& out) {
  if (tokens.size() < 2 || most == 0) return;
  const size_t last = tokens.size() - 1;
  const auto limit = static_cast<size_t>(o.lookup_max);
  size_t best = static_cast<size_t>(o.lookup_min) - 1, place = 0;
  for (size_t i = last; i-- > 0;) {
    if (tokens[i] != tokens[last]) continue;
    size_t same = 1;
    while (same < limit && same <= i && tokens[i - same] == tokens[last - same]) ++same;
    if (same <= best) continue;
    best = same;
    place = i + 1;
    if (same == limit) break;
  }
  if (place == 0) return;
  // Where the place is so near to the end that guesses reach it, they go on with themselves.
  const size_t begin = out.size();
  for (size_t i = place; i < place + most; ++i)
    out.push_back(i < tokens.size() ? tokens[i] : out[begin + i - tokens.size()]);
}

void StepCost::observe(int64_t tokens, double seconds) {
  if (seconds <= 0) return;
  weight_ = kCostKeeps * weight_ + 1;
  const double part = 1 / weight_;
  const double dx = static_cast<double>(tokens) - tokens_, dy = seconds - seconds_;
  tokens_ += part * dx;
  seconds_ += part * dy;
  variance_ = (1 - part) * (variance_ + part * dx * dx);
  covariance_ = (1 - part) * (covariance_ + part * dx * dy);
}

double StepCost::of(int64_t tokens) const {
  if (weight_ == 0) return 1 + kTokenPrior * static_cast<double>(tokens - 1);
  const double each = seconds_ / tokens_;  // the slope of a line through 0: no step is worse than that
  const double prior = kTokenPrior * seconds_ / (1 + kTokenPrior * (tokens_ - 1));
  const double slope = (covariance_ + kPriorWeight * prior) / (variance_ + kPriorWeight);
  return seconds_ + std::clamp(slope, 0.02 * each, each) * (static_cast<double>(tokens) - tokens_);
}

void DraftRecord::observe(bool right) {
  right_ = kRecordKeeps * right_ + (right ? 1 : 0);
  wrong_ = kRecordKeeps * wrong_ + (right ? 0 : 1);
}

int64_t DraftRecord::worth(int64_t most, int64_t tokens, const StepCost& cost) const {
  const double chance = right_ / (right_ + wrong_);
  double expected = static_cast<double>(tokens), reach = 1;
  double best = expected / cost.of(tokens);
  int64_t count = 0;
  for (int64_t k = 1; k <= most; ++k) {
    reach *= chance;
    expected += reach;
    const double rate = expected / cost.of(tokens + k);
    if (rate <= best) break;  // the gain of one more only falls
    best = rate;
    count = k;
  }
  return count;
}

}  // namespace deepinfer
