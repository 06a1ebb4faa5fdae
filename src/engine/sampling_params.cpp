#include "engine/sampling_params.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
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

// The one table of ranges (the OpenAI API's where it has one, else vLLM's).
constexpr FloatRange kFloatRanges[] = {
    {"temperature", &SamplingParams::temperature, 0, 2, false, " (0: always the most likely token)"},
    {"top_p", &SamplingParams::top_p, 0, 1, true, " (1: all tokens)"},
    {"min_p", &SamplingParams::min_p, 0, 1, false, " (0: off)"},
    {"presence_penalty", &SamplingParams::presence_penalty, -2, 2, false, " (0: off)"},
    {"frequency_penalty", &SamplingParams::frequency_penalty, -2, 2, false, " (0: off)"},
    {"repetition_penalty", &SamplingParams::repetition_penalty, 0, 2, true, " (1: off)"},
};
constexpr IntRange kIntRanges[] = {
    {"n", &SamplingParams::n, 1, kMaxChoices, ""},
    {"top_k", &SamplingParams::top_k, -1, INT32_MAX, " (-1 or 0: all tokens)"},
    {"max_tokens", &SamplingParams::max_tokens, 0, INT32_MAX, ""},
    {"min_tokens", &SamplingParams::min_tokens, 0, INT32_MAX, ""},
    {"logprobs", &SamplingParams::logprobs, -1, kMaxTopLogprobs, " (-1: none)"},
    {"prompt_logprobs", &SamplingParams::prompt_logprobs, -1, kMaxTopLogprobs, " (-1: none)"},
};
constexpr float kMaxBias = 100;
constexpr size_t kMaxStopIds = 1024;

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
  if (params.max_tokens == 0 && params.prompt_logprobs < 0) {
    return invalid("max_tokens", "got 0, expected at least 1 where no prompt_logprobs are wanted");
  }
  if (params.min_tokens > params.max_tokens) {
    return invalid("min_tokens", "got {}, expected at most max_tokens, which is {}", params.min_tokens,
                   params.max_tokens);
  }
  return {};
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

}  // namespace

Result<void> validate(const SamplingParams& params, int vocab_size) {
  DI_TRY(check_floats(params));
  DI_TRY(check_ints(params));
  return check_tokens(params, vocab_size);
}

bool ResolvedSampling::stops(int32_t token) const {
  return std::binary_search(stop_ids.begin(), stop_ids.end(), token);
}

ResolvedSampling resolve(SamplingParams params, std::span<const int32_t> end_ids) {
  ResolvedSampling r;
  r.penalties =
      params.presence_penalty != 0 || params.frequency_penalty != 0 || params.repetition_penalty != 1;
  for (auto [token, bias] : params.logit_bias) r.bias.push_back({token, bias});
  r.stop_ids = params.stop_token_ids;
  if (!params.ignore_eos) r.stop_ids.insert(r.stop_ids.end(), end_ids.begin(), end_ids.end());
  std::sort(r.stop_ids.begin(), r.stop_ids.end());
  r.stop_ids.erase(std::unique(r.stop_ids.begin(), r.stop_ids.end()), r.stop_ids.end());
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
