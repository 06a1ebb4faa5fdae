// What a row's sampler is told, and what of its history follows from the tokens that are known.
#include <algorithm>

#include "engine/scheduler.h"

namespace deepinfer {
namespace {

// The last tokens of bad words whose others stand at the end of the output. As in vLLM, a word that began in
// the prompt does not count.
void ban_word_ends(const Sequence& s, std::vector<int32_t>& banned) {
  const std::span<const int32_t> output = s.output();
  for (const std::vector<int32_t>& word : s.params().bad_words) {
    const size_t before = word.size() - 1;
    if (before == 0 || before > output.size()) continue;
    if (std::equal(word.begin(), word.end() - 1, output.end() - static_cast<int64_t>(before)))
      banned.push_back(word.back());
  }
}

// `banned` is ascending and distinct.
bool leaves_none(const ResolvedSampling& sampling, std::span<const int32_t> banned) {
  if (static_cast<int64_t>(banned.size()) < sampling.allowed_count) return false;
  return std::count_if(banned.begin(), banned.end(), [&](int32_t id) { return sampling.allows(id); }) ==
         sampling.allowed_count;
}

}  // namespace

// Tokens that cannot come at `position`. Some token is always left: see SamplingParams::bad_words.
std::span<const int32_t> Scheduler::banned_at(Sequence& s, int64_t position) {
  const ResolvedSampling& sampling = *s.family->sampling;
  const bool stops = s.bans_stops_at(position);
  const std::vector<int32_t>& fixed = stops ? sampling.banned_and_stops : sampling.banned;
  if (sampling.long_bad_words) {
    std::vector<int32_t>& banned = s.banned_now;
    banned.clear();
    ban_word_ends(s, banned);
    const auto ends = static_cast<int64_t>(banned.size());
    for (bool with_stops : {true, false}) {
      const std::vector<int32_t>& rest = with_stops ? fixed : sampling.banned;
      banned.resize(static_cast<size_t>(ends));
      banned.insert(banned.end(), rest.begin(), rest.end());
      std::sort(banned.begin(), banned.end());
      banned.erase(std::unique(banned.begin(), banned.end()), banned.end());
      if (!leaves_none(sampling, banned)) return banned;
      banned.clear();
      ban_word_ends(s, banned);
    }
  } else if (!leaves_none(sampling, fixed)) {
    return fixed;
  }
  return sampling.banned;
}

void Scheduler::fill_sampling(Sequence& s, int64_t position, SampleRow& r) {
  const SamplingParams& p = s.params();
  const ResolvedSampling& sampling = *s.family->sampling;
  r.slot = s.slot;
  r.seed = s.seed;
  r.position = position;
  r.temperature = p.temperature;
  r.top_p = p.top_p;
  r.min_p = p.min_p;
  r.top_k = std::max(p.top_k, 0);
  r.presence_penalty = p.presence_penalty;
  r.frequency_penalty = p.frequency_penalty;
  r.repetition_penalty = p.repetition_penalty;
  if (sampling.penalties) {
    r.prompt = s.prompt();
    r.output = s.output();
  }
  r.bias = sampling.bias;
  if (sampling.dry) {
    dry_.compute(p, sampling.breakers, s.tokens, s.dry_history, s.dry_now);
    r.late_bias = s.dry_now;
  }
  r.banned = banned_at(s, position);
  if (!sampling.mask.empty()) r.mask = sampling.mask.data();
  r.logprobs = p.logprobs;
  r.typical_p = p.typical_p;
  r.top_n_sigma = p.top_n_sigma;
  r.xtc_probability = p.xtc_probability;
  r.xtc_threshold = p.xtc_threshold;
  r.dynatemp_range = p.dynatemp_range;
  r.dynatemp_exponent = p.dynatemp_exponent;
  r.mirostat = p.mirostat;
  r.mirostat_mu = s.mirostat_mu;
}

}  // namespace deepinfer
