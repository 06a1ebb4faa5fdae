#include "engine/sampling_params.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "engine/drafting.h"
#include "engine/sequence.h"

namespace deepinfer {
namespace {

struct FloatRange {
  const char* name;
  float SamplingParams::* field;
  float low, high;
  bool open;  // `low` itself is not allowed
  const char* hint;
};

struct IntRange {
  const char* name;
  int SamplingParams::* field;
  int low, high;
  const char* hint;
};

constexpr float kMaxSigma = 1000;

// The one table of ranges (the OpenAI API's where it has one, else vLLM's).
constexpr FloatRange kFloatRanges[] = {
    {"temperature", &SamplingParams::temperature, 0, 2, false, " (0: always the most likely token)"},
    {"top_p", &SamplingParams::top_p, 0, 1, true, " (1: all tokens)"},
    {"min_p", &SamplingParams::min_p, 0, 1, false, " (0: off)"},
    {"presence_penalty", &SamplingParams::presence_penalty, -2, 2, false, " (0: off)"},
    {"frequency_penalty", &SamplingParams::frequency_penalty, -2, 2, false, " (0: off)"},
    {"repetition_penalty", &SamplingParams::repetition_penalty, 0, 2, true, " (1: off)"},
    {"typical_p", &SamplingParams::typical_p, 0, 1, true, " (1: off)"},
    {"top_n_sigma", &SamplingParams::top_n_sigma, -kMaxSigma, kMaxSigma, false, " (0 or less: off)"},
    {"xtc_probability", &SamplingParams::xtc_probability, 0, 1, false, " (0: off)"},
    {"xtc_threshold", &SamplingParams::xtc_threshold, 0, 1, false, " (above 0.5: off)"},
    {"dynatemp_range", &SamplingParams::dynatemp_range, 0, 2, false, " (0: off)"},
    {"dynatemp_exponent", &SamplingParams::dynatemp_exponent, 0, 10, true, ""},
    {"mirostat_tau", &SamplingParams::mirostat_tau, 0, 20, true, ""},
    {"mirostat_eta", &SamplingParams::mirostat_eta, 0, 1, true, ""},
    {"dry_multiplier", &SamplingParams::dry_multiplier, 0, 10, false, " (0: off)"},
    {"dry_base", &SamplingParams::dry_base, 1, 10, false, ""},
};
constexpr IntRange kIntRanges[] = {
    {"n", &SamplingParams::n, 1, kMaxChoices, ""},
    {"top_k", &SamplingParams::top_k, -1, INT32_MAX, " (-1 or 0: all tokens)"},
    {"max_tokens", &SamplingParams::max_tokens, 0, INT32_MAX, ""},
    {"min_tokens", &SamplingParams::min_tokens, 0, INT32_MAX, ""},
    {"logprobs", &SamplingParams::logprobs, -1, kMaxTopLogprobs, " (-1: none)"},
    {"prompt_logprobs", &SamplingParams::prompt_logprobs, -1, kMaxTopLogprobs, " (-1: none)"},
    {"mirostat", &SamplingParams::mirostat, 0, 2, " (0: off)"},
    {"num_speculative_tokens", &SamplingParams::num_speculative_tokens, -1, kMostDrafts,
     " (-1: as the engine's option, 0: off)"},
    {"dry_allowed_length", &SamplingParams::dry_allowed_length, 1, INT32_MAX, ""},
    {"dry_penalty_last_n", &SamplingParams::dry_penalty_last_n, -1, INT32_MAX,
     " (-1: the whole context, 0: off)"},
};
constexpr float kMaxBias = 100;
constexpr size_t kMaxStopIds = 1024;
constexpr size_t kMaxBadWords = 1024;
constexpr size_t kMaxBreakers = 65536;  // a short string is part of many tokens
constexpr size_t kMaxSequenceTokens = 64;

template <class... Args>
Error invalid(const char* param, fmt::format_string<Args...> format, Args&&... args) {
  return Error{ErrorCode::kInvalidArgument,
               fmt::format("{}: {}", param, fmt::format(format, std::forward<Args>(args)...)), param};
}

Result<void> check_floats(const SamplingParams& params) {
  for (const FloatRange& range : kFloatRanges) {
    float value = params.*range.field;
    // The comparison is false for NaN too.
    bool inside = (range.open ? value > range.low : value >= range.low) && value <= range.high;
    if (inside) continue;
    if (range.open) {
      return invalid(range.name, "got {}, expected more than {} and at most {}{}", value, range.low,
                     range.high, range.hint);
    }
    return invalid(range.name, "got {}, expected {} to {}{}", value, range.low, range.high, range.hint);
  }
  return {};
}

Result<void> check_ints(const SamplingParams& params) {
  for (const IntRange& range : kIntRanges) {
    int value = params.*range.field;
    if (value >= range.low && value <= range.high) continue;
    if (range.high == INT32_MAX) {
      return invalid(range.name, "got {}, expected at least {}{}", value, range.low, range.hint);
    }
    return invalid(range.name, "got {}, expected {} to {}{}", value, range.low, range.high, range.hint);
  }
  return check_lengths(params, params.max_tokens);
}

Result<void> check_sequences(const char* name, const std::vector<std::vector<int32_t>>& sequences,
                             size_t most, int vocab_size) {
  if (sequences.size() > most) {
    return invalid(name, "got {} sequences, expected at most {}", sequences.size(), most);
  }
  for (const std::vector<int32_t>& sequence : sequences) {
    if (sequence.empty() || sequence.size() > kMaxSequenceTokens) {
      return invalid(name, "got a sequence of {} tokens, expected 1 to {}", sequence.size(),
                     kMaxSequenceTokens);
    }
    for (int32_t id : sequence) {
      if (id < 0 || id >= vocab_size) {
        return invalid(name, "got token {}, expected 0 to {}", id, vocab_size - 1);
      }
    }
  }
  return {};
}

// Also that the bans of single tokens leave one.
Result<void> check_allowed(const SamplingParams& params, int vocab_size) {
  std::vector<bool> allowed(static_cast<size_t>(vocab_size), params.allowed_token_ids.empty());
  int64_t left = params.allowed_token_ids.empty() ? vocab_size : 0;
  for (int32_t id : params.allowed_token_ids) {
    if (id < 0 || id >= vocab_size) {
      return invalid("allowed_token_ids", "got token {}, expected 0 to {}", id, vocab_size - 1);
    }
    if (allowed[id]) return invalid("allowed_token_ids", "got token {} twice, expected distinct ids", id);
    allowed[id] = true;
    ++left;
  }
  for (const std::vector<int32_t>& word : params.bad_words) {
    if (word.size() != 1 || !allowed[word[0]]) continue;
    allowed[word[0]] = false;
    --left;
  }
  if (left > 0) return {};
  return invalid("bad_words", "got words that forbid every token of {}, expected at least one to be left",
                 params.allowed_token_ids.empty() ? "the vocabulary" : "allowed_token_ids");
}

Result<void> check_tokens(const SamplingParams& params, int vocab_size) {
  if (params.stop_token_ids.size() > kMaxStopIds) {
    return invalid("stop_token_ids", "got {} ids, expected at most {}", params.stop_token_ids.size(),
                   kMaxStopIds);
  }
  for (int32_t id : params.stop_token_ids) {
    if (id < 0 || id >= vocab_size) {
      return invalid("stop_token_ids", "got token {}, expected 0 to {}", id, vocab_size - 1);
    }
  }
  if (params.logit_bias.size() > static_cast<size_t>(vocab_size)) {
    return invalid("logit_bias", "got {} entries, expected at most one for each of {} tokens",
                   params.logit_bias.size(), vocab_size);
  }
  for (auto [id, bias] : params.logit_bias) {
    if (id < 0 || id >= vocab_size) {
      return invalid("logit_bias", "got token {}, expected 0 to {}", id, vocab_size - 1);
    }
    if (!(std::fabs(bias) <= kMaxBias)) {
      return invalid("logit_bias", "got {} for token {}, expected {} to {}", bias, id, -kMaxBias, kMaxBias);
    }
  }
  return {};
}

void sort_unique(std::vector<int32_t>& ids) {
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
}

}  // namespace

Result<void> check_lengths(const SamplingParams& params, int max_tokens) {
  if (max_tokens < 0) return invalid("max_tokens", "got {}, expected at least 0", max_tokens);
  if (max_tokens == 0 && params.prompt_logprobs < 0) {
    return invalid("max_tokens", "got 0, expected at least 1 where no prompt_logprobs are wanted");
  }
  if (params.min_tokens > max_tokens) {
    return invalid("min_tokens", "got {}, expected at most max_tokens, which is {}", params.min_tokens,
                   max_tokens);
  }
  return {};
}

Result<void> validate(const SamplingParams& params, int vocab_size) {
  DI_TRY(check_floats(params));
  DI_TRY(check_ints(params));
  DI_TRY(check_sequences("bad_words", params.bad_words, kMaxBadWords, vocab_size));
  DI_TRY(check_sequences("dry_breakers", params.dry_breakers, kMaxBreakers, vocab_size));
  if (!params.allowed_token_ids.empty() || !params.bad_words.empty()) {
    DI_TRY(check_allowed(params, vocab_size));
  }
  return check_tokens(params, vocab_size);
}

bool ResolvedSampling::stops(int32_t token) const {
  return std::binary_search(stop_ids.begin(), stop_ids.end(), token);
}

ResolvedSampling resolve(SamplingParams params, std::span<const int32_t> end_ids, int vocab_size) {
  ResolvedSampling r;
  r.penalties =
      params.presence_penalty != 0 || params.frequency_penalty != 0 || params.repetition_penalty != 1;
  for (auto [token, bias] : params.logit_bias) r.bias.push_back({token, bias});
  r.stop_ids = params.stop_token_ids;
  if (!params.ignore_eos) r.stop_ids.insert(r.stop_ids.end(), end_ids.begin(), end_ids.end());
  sort_unique(r.stop_ids);
  for (const std::vector<int32_t>& word : params.bad_words) {
    if (word.size() == 1) r.banned.push_back(word[0]);
  }
  r.long_bad_words = r.banned.size() < params.bad_words.size();
  sort_unique(r.banned);
  r.banned_and_stops = r.banned;
  r.banned_and_stops.insert(r.banned_and_stops.end(), r.stop_ids.begin(), r.stop_ids.end());
  sort_unique(r.banned_and_stops);
  r.allowed_count = vocab_size;
  if (!params.allowed_token_ids.empty()) {
    r.allowed_count = static_cast<int64_t>(params.allowed_token_ids.size());
    r.mask.assign((static_cast<size_t>(vocab_size) + 31) / 32, 0);
    for (int32_t id : params.allowed_token_ids) r.mask[id / 32] |= 1u << (id % 32);
  }
  r.dry = params.dry_multiplier > 0 && params.dry_penalty_last_n != 0;
  if (r.dry) r.breakers = DryBreakers(std::move(params.dry_breakers), vocab_size);
  r.params = std::move(params);
  return r;
}

uint64_t choice_seed(uint64_t seed, int choice) {
  if (choice == 0) return seed;
  uint64_t z = seed + 0x9e3779b97f4a7c15u * static_cast<uint64_t>(choice);  // splitmix64
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

}  // namespace deepinfer
