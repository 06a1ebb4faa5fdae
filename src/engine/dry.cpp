#include "engine/dry.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace deepinfer {
namespace {

// base^x stays a finite float.
double most_exponent(double base) {
  constexpr double kLogOfLargest = 88.7228391;
  return base > 1.000001 ? std::floor(kLogOfLargest / std::log(base)) : INT32_MAX;
}

// The Z-algorithm (Gusfield, "Algorithms on strings, trees and sequences", 1.4) on the reversed text:
// matches[k] is how many tokens before the k-th last equal the last ones, at most `limit`.
void match_suffixes(std::span<const int32_t> tokens, int64_t limit, std::vector<int32_t>& matches) {
  const auto n = static_cast<int64_t>(tokens.size());
  const int32_t* const last = tokens.data() + (n - 1);
  matches.assign(tokens.size(), 0);
  int64_t begin = 0, end = 0;  // the match that reaches furthest, not shortened: [begin, end)
  for (int64_t k = 1; k < n; ++k) {
    // Within it the text repeats its beginning, whose own matches are known where they end inside.
    int64_t length = k < end ? std::min<int64_t>(matches[k - begin], end - k) : 0;
    const bool open = k + length >= end;
    if (open) {
      while (length < limit && k + length < n && last[-length] == last[-(k + length)]) ++length;
      if (k + length > end) {
        begin = k;
        end = k + length;
      }
    }
    matches[k] = static_cast<int32_t>(length);
  }
}

}  // namespace

DryBreakers::DryBreakers(std::vector<std::vector<int32_t>> sequences, int vocab_size) {
  if (sequences.empty()) return;
  heads_.assign((static_cast<size_t>(vocab_size) + 31) / 32, 0);
  singles_ = heads_;
  for (std::vector<int32_t>& s : sequences) {
    heads_[s[0] / 32] |= 1u << (s[0] % 32);
    if (s.size() == 1) {
      singles_[s[0] / 32] |= 1u << (s[0] % 32);
    } else {
      longer_.push_back(std::move(s));
    }
  }
  std::sort(longer_.begin(), longer_.end());
}

int64_t DryBreakers::tokens_behind(std::span<const int32_t> tokens) const {
  if (heads_.empty()) return static_cast<int64_t>(tokens.size());
  for (size_t at = tokens.size(); at-- > 0;) {
    if (!contains(heads_, tokens[at])) continue;
    const std::span<const int32_t> rest = tokens.subspan(at);
    size_t longest = contains(singles_, tokens[at]) ? 1 : 0;
    auto it = std::lower_bound(longer_.begin(), longer_.end(), tokens[at],
                               [](const std::vector<int32_t>& s, int32_t head) { return s[0] < head; });
    for (; it != longer_.end() && (*it)[0] == tokens[at]; ++it) {
      if (it->size() > longest && it->size() <= rest.size() &&
          std::equal(it->begin(), it->end(), rest.begin()))
        longest = it->size();
    }
    if (longest > 0) return static_cast<int64_t>(rest.size() - longest);
  }
  return static_cast<int64_t>(tokens.size());
}

void DryPenalties::compute(const SamplingParams& params, const DryBreakers& breakers,
                           std::span<const int32_t> tokens, std::vector<LogitBias>& out) {
  out.clear();
  if (params.dry_penalty_last_n >= 0 && tokens.size() > static_cast<size_t>(params.dry_penalty_last_n))
    tokens = tokens.last(static_cast<size_t>(params.dry_penalty_last_n));
  const auto n = static_cast<int64_t>(tokens.size());
  const int64_t allowed = params.dry_allowed_length;
  if (n <= allowed) return;
  const int64_t limit = breakers.tokens_behind(tokens);
  if (limit < allowed) return;
  match_suffixes(tokens, limit, matches_);
  for (int64_t k = 1; k < n; ++k) {
    const int32_t next = tokens[n - k];
    if (matches_[k] < allowed || breakers.is_single(next)) continue;
    if (static_cast<size_t>(next) >= longest_.size()) longest_.resize(static_cast<size_t>(next) + 1, 0);
    if (longest_[next] == 0) out.push_back({next, 0});
    longest_[next] = std::max(longest_[next], matches_[k]);
  }
  std::sort(out.begin(), out.end(), [](const LogitBias& a, const LogitBias& b) { return a.token < b.token; });
  const double most = most_exponent(params.dry_base);
  for (LogitBias& b : out) {
    const auto length = static_cast<double>(std::exchange(longest_[b.token], 0));
    const double exponent = std::min(length - static_cast<double>(allowed), most);
    const double penalty = params.dry_multiplier * std::pow(static_cast<double>(params.dry_base), exponent);
    b.bias = -static_cast<float>(std::min(penalty, 3.4e38));
  }
}

}  // namespace deepinfer
