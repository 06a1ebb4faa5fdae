#include "oracle_lists.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

namespace deepinfer::test {
namespace {

bool stands_at(std::span<const int32_t> tokens, int64_t at, const std::vector<int32_t>& sequence) {
  for (size_t i = 0; i < sequence.size(); ++i) {
    const int64_t p = at + static_cast<int64_t>(i);
    if (p >= static_cast<int64_t>(tokens.size()) || tokens[p] != sequence[i]) return false;
  }
  return true;
}

}  // namespace

std::vector<LogitBias> plain_dry(const SamplingParams& params, std::span<const int32_t> tokens) {
  if (params.dry_multiplier == 0 || params.dry_penalty_last_n == 0) return {};
  const auto all = static_cast<int64_t>(tokens.size());
  int64_t n = all;
  if (params.dry_penalty_last_n > 0) n = std::min<int64_t>(n, params.dry_penalty_last_n);
  tokens = tokens.last(n);
  if (n <= params.dry_allowed_length) return {};
  int64_t limit = n;
  for (int64_t at = n - 1; at >= 0; --at) {
    int64_t longest = 0;
    for (const auto& b : params.dry_breakers)
      if (stands_at(tokens, at, b)) longest = std::max(longest, static_cast<int64_t>(b.size()));
    if (longest == 0) continue;
    limit = n - at - longest;
    break;
  }
  if (limit < params.dry_allowed_length) return {};
  std::map<int32_t, int64_t> longest;
  for (int64_t next = 1; next < n; ++next) {  // the token that would be said again
    int64_t length = 0;
    while (length < limit && next - 1 - length >= 0 && tokens[next - 1 - length] == tokens[n - 1 - length])
      ++length;
    if (length >= params.dry_allowed_length) longest[tokens[next]] = std::max(longest[tokens[next]], length);
  }
  std::vector<LogitBias> penalties;
  for (auto [token, length] : longest) {
    const bool breaks = std::any_of(params.dry_breakers.begin(), params.dry_breakers.end(),
                                    [&](const auto& b) { return b.size() == 1 && b[0] == token; });
    if (breaks) continue;
    double exponent = static_cast<double>(length - params.dry_allowed_length);
    if (params.dry_base > 1.000001f)
      exponent = std::min(exponent, std::floor(88.7228391 / std::log(static_cast<double>(params.dry_base))));
    const double penalty = params.dry_multiplier * std::pow(static_cast<double>(params.dry_base), exponent);
    penalties.push_back({token, -static_cast<float>(std::min(penalty, 3.4e38))});
  }
  return penalties;
}

std::vector<int32_t> plain_banned(const SamplingParams& params, std::span<const int32_t> stop_ids, int vocab,
                                  std::span<const int32_t> output) {
  std::set<int32_t> single, longer, stops;
  for (const auto& word : params.bad_words) {
    const auto before = static_cast<int64_t>(word.size()) - 1;
    if (before == 0) single.insert(word[0]);
    if (before == 0 || before > static_cast<int64_t>(output.size())) continue;
    const std::vector<int32_t> head(word.begin(), word.end() - 1);
    if (stands_at(output, static_cast<int64_t>(output.size()) - before, head)) longer.insert(word.back());
  }
  if (static_cast<int64_t>(output.size()) < params.min_tokens) stops.insert(stop_ids.begin(), stop_ids.end());
  std::set<int32_t> allowed(params.allowed_token_ids.begin(), params.allowed_token_ids.end());
  for (int32_t id = 0; id < vocab && params.allowed_token_ids.empty(); ++id) allowed.insert(id);
  std::set<int32_t> banned = single;
  banned.insert(longer.begin(), longer.end());
  banned.insert(stops.begin(), stops.end());
  const auto leaves_some = [&](const std::set<int32_t>& b) {
    return std::any_of(allowed.begin(), allowed.end(), [&](int32_t id) { return !b.contains(id); });
  };
  if (!leaves_some(banned)) {
    banned = single;
    banned.insert(longer.begin(), longer.end());
  }
  if (!leaves_some(banned)) banned = single;
  return {banned.begin(), banned.end()};
}

}  // namespace deepinfer::test
