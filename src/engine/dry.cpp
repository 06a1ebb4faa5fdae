#include "engine/dry.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

#include "base/check.h"

namespace deepinfer {
namespace {

// base^x stays a finite float.
double most_exponent(double base) {
  constexpr double kLogOfLargest = 88.7228391;
  return base > 1.000001 ? std::floor(kLogOfLargest / std::log(base)) : INT32_MAX;
}

// The Z-algorithm (Gusfield, "Algorithms on strings, trees and sequences", 1.4) on the reversed text:
// matches[place] is how many tokens up to there equal the last ones.
void match_suffixes(std::span<const int32_t> tokens, std::vector<int32_t>& matches) {
  const auto n = static_cast<int64_t>(tokens.size());
  const int32_t* const last = tokens.data() + (n - 1);
  int32_t* const match = matches.data() + (n - 1);  // match[-k]: k tokens before the last
  int64_t begin = 0, end = 0;                       // the match that reaches furthest: [begin, end)
  for (int64_t k = 1; k < n; ++k) {
    // Within it the text repeats its beginning, whose own matches are known where they end inside.
    int64_t length = k < end ? std::min<int64_t>(match[-(k - begin)], end - k) : 0;
    if (k + length >= end) {
      while (k + length < n && last[-length] == last[-(k + length)]) ++length;
      if (k + length > end) {
        begin = k;
        end = k + length;
      }
    }
    match[-k] = static_cast<int32_t>(length);
  }
}

// Of the `gram` tokens up to `place`, into a table of 2^n places.
size_t hash_of(std::span<const int32_t> tokens, int64_t place, int gram, size_t table) {
  const auto last = static_cast<uint32_t>(tokens[place]);
  const auto before = gram > 1 ? static_cast<uint32_t>(tokens[place - 1]) : 0;
  uint64_t h = (static_cast<uint64_t>(before) << 32 | last) * 0x9e3779b97f4a7c15u;
  return static_cast<size_t>(h >> 32) & (table - 1);
}

bool same_gram(std::span<const int32_t> tokens, int64_t a, int64_t b, int gram) {
  return tokens[a] == tokens[b] && (gram < 2 || tokens[a - 1] == tokens[b - 1]);
}

}  // namespace

DryBreakers::DryBreakers(std::vector<std::vector<int32_t>> sequences, int vocab_size) {
  if (sequences.empty()) return;
  heads_.assign((static_cast<size_t>(vocab_size) + 31) / 32, 0);
  singles_ = heads_;
  for (std::vector<int32_t>& s : sequences) {
    longest_ = std::max(longest_, static_cast<int64_t>(s.size()));
    heads_[s[0] / 32] |= 1u << (s[0] % 32);
    if (s.size() == 1) {
      singles_[s[0] / 32] |= 1u << (s[0] % 32);
    } else {
      longer_.push_back(std::move(s));
    }
  }
  std::sort(longer_.begin(), longer_.end());
}

bool DryBreakers::find_last(std::span<const int32_t> tokens, int64_t& begin, int64_t& end) const {
  if (heads_.empty()) return false;
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
    if (longest == 0) continue;
    begin = static_cast<int64_t>(at);
    end = static_cast<int64_t>(at + longest);
    return true;
  }
  return false;
}

// Appends what follows `length_` to the chains of equal hashes.
void DryHistory::link(std::span<const int32_t> tokens, int gram) {
  const auto n = static_cast<int64_t>(tokens.size());
  int64_t from = length_;
  if (heads_.size() < tokens.size()) {
    heads_.assign(std::bit_ceil(std::max<size_t>(2 * tokens.size(), 1024)), -1);
    from = 0;
  }
  for (int64_t place = std::max<int64_t>(from, gram - 1); place < n; ++place) {
    int32_t& head = heads_[hash_of(tokens, place, gram, heads_.size())];
    previous_[place] = std::exchange(head, static_cast<int32_t>(place));
  }
}

// `tokens`, linked, is one token longer than what the matches are of.
void DryHistory::extend_matches(std::span<const int32_t> tokens, int gram) {
  const int64_t end = static_cast<int64_t>(tokens.size()) - 1;
  // Descending, so that a place's match is read before the one that follows from it is written beside it.
  for (int64_t place = previous_[end]; place >= 0; place = previous_[place]) {
    if (!same_gram(tokens, place, end, gram)) continue;
    // One token longer than the match before, if that was one that is known.
    const bool known = place >= gram && tokens[place - gram] == tokens[end - gram];
    matches_[place] = known ? matches_[place - 1] + 1 : gram;
  }
}

void DryHistory::grow(std::span<const int32_t> tokens, int gram, const DryBreakers& breakers) {
  const auto n = static_cast<int64_t>(tokens.size());
  DI_CHECK(n >= length_, "a text of {} tokens shrank to {}", length_, n);
  if (n == length_) return;
  previous_.resize(tokens.size(), -1);
  matches_.resize(tokens.size(), 0);
  link(tokens, gram);
  if (n == length_ + 1 && n > gram)
    extend_matches(tokens, gram);
  else
    match_suffixes(tokens, matches_);
  // What is new ends among the last ones; a breaker that begins before them has begun and ended before.
  const int64_t first = std::max<int64_t>(length_ - breakers.longest(), 0);
  int64_t begin, end;
  if (breakers.find_last(tokens.subspan(first), begin, end)) {
    breaker_begin_ = first + begin;
    breaker_end_ = first + end;
  }
  length_ = n;
}

int64_t DryHistory::last() const {
  return length_ == 0 ? -1 : previous_[length_ - 1];
}

int64_t DryHistory::tokens_behind(int64_t begin) const {
  return length_ - (breaker_begin_ >= begin ? breaker_end_ : begin);
}

void DryPenalties::compute(const SamplingParams& params, const DryBreakers& breakers,
                           std::span<const int32_t> tokens, DryHistory& history,
                           std::vector<LogitBias>& out) {
  out.clear();
  const int64_t allowed = params.dry_allowed_length;
  const int gram = allowed > 1 ? 2 : 1;
  history.grow(tokens, gram, breakers);
  const auto n = static_cast<int64_t>(tokens.size());
  const int64_t window = params.dry_penalty_last_n;
  const int64_t begin = window >= 0 && n > window ? n - window : 0;
  const int64_t limit = history.tokens_behind(begin);
  if (n == 0 || limit < allowed) return;
  for (int64_t place = history.last(); place >= begin; place = history.before(place)) {
    if (!same_gram(tokens, place, n - 1, gram)) continue;
    const int64_t match = std::min({history.match(place), limit, place + 1 - begin});
    const int32_t next = tokens[place + 1];
    if (match < allowed || breakers.is_single(next)) continue;
    if (static_cast<size_t>(next) >= longest_.size()) longest_.resize(static_cast<size_t>(next) + 1, 0);
    if (longest_[next] == 0) out.push_back({next, 0});
    longest_[next] = std::max(longest_[next], static_cast<int32_t>(match));
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
