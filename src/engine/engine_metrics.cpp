#include "engine/engine_metrics.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/check.h"

namespace deepinfer {
namespace {

double seconds(Clock::Time from, Clock::Time to) {
  return std::chrono::duration<double>(to - from).count();
}

// vLLM's bounds, so that its dashboards and recorded quantiles stay comparable.
std::vector<double> first_token_buckets() {
  return {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
          1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560};
}
std::vector<double> token_buckets() {
  return {.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80};
}
std::vector<double> latency_buckets() {
  return {.3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
}

}  // namespace

Histogram::Histogram(std::vector<double> bounds)
    : bounds_(std::move(bounds)), counts_(std::make_unique<std::atomic<uint64_t>[]>(bounds_.size() + 1)) {
  DI_CHECK(std::is_sorted(bounds_.begin(), bounds_.end()), "bounds of a histogram are not ascending");
}

void Histogram::observe(double value) {
  const auto bucket = std::lower_bound(bounds_.begin(), bounds_.end(), value) - bounds_.begin();
  counts_[bucket].store(count(bucket) + 1, std::memory_order_relaxed);
  sum_.store(sum() + value, std::memory_order_relaxed);
}

std::vector<double> length_buckets(int64_t largest) {
  std::vector<double> bounds;
  for (int64_t power = 1; power <= largest; power *= 10)
    for (const int64_t mantissa : {1, 2, 5})
      if (mantissa * power <= largest) bounds.push_back(static_cast<double>(mantissa * power));
  return bounds;
}

EngineMetrics::EngineMetrics(int max_model_len)
    : time_to_first_token(first_token_buckets()),
      inter_token_latency(token_buckets()),
      time_per_output_token(token_buckets()),
      e2e_latency(latency_buckets()),
      queue_time(latency_buckets()),
      inference_time(latency_buckets()),
      prefill_time(latency_buckets()),
      decode_time(latency_buckets()),
      request_prompt_tokens(length_buckets(max_model_len)),
      request_generation_tokens(length_buckets(max_model_len)),
      params_n({1, 2, 5, 10, 20}),
      params_max_tokens(length_buckets(max_model_len)),
      iteration_tokens({1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384}) {}

RequestTimes EngineMetrics::arrived(Clock::Time arrival, size_t choices) {
  RequestTimes times;
  times.arrival = arrival;
  times.choices.resize(choices);
  times.open = static_cast<int>(choices);
  return times;
}

void EngineMetrics::scheduled(RequestTimes& times, const Sequence& s, bool looked_up, Clock::Time now) {
  times.choices[s.choice].scheduled = now;
  if (!looked_up) return;
  prefix_cache_queries.add(static_cast<uint64_t>(s.prompt_len));
  prefix_cache_hits.add(static_cast<uint64_t>(s.cached_tokens));
}

void EngineMetrics::count_prompt(const Sequence& s) {
  prompt_tokens.add(static_cast<uint64_t>(s.prompt_len));
  prompt_tokens_cached.add(static_cast<uint64_t>(s.cached_tokens));
}

void EngineMetrics::emitted(RequestTimes& times, const Sequence& s, size_t tokens, Clock::Time now) {
  RequestTimes::Choice& choice = times.choices[s.choice];
  if (tokens == 0 || choice.ended) return;
  generation_tokens.add(tokens);
  if (choice.tokens == 0) {
    count_prompt(s);
    time_to_first_token.observe(seconds(times.arrival, now));
    choice.first_token = now;
  } else {
    inter_token_latency.observe(seconds(choice.last_token, now));
  }
  choice.tokens += static_cast<int64_t>(tokens);
  choice.last_token = now;
}

// What was not answered whole would only blur the distributions: it is counted, and not timed.
void EngineMetrics::ended(RequestTimes& times, const Sequence& s, Ending ending, Clock::Time now) {
  RequestTimes::Choice& choice = times.choices[s.choice];
  if (std::exchange(choice.ended, true)) return;
  count(ending);
  --times.open;
  if (ending == Ending::kAbort || ending == Ending::kError) {
    times.answered = false;
    return;
  }
  if (choice.tokens == 0) {  // only the prompt was wanted
    count_prompt(s);
    choice.first_token = choice.last_token = now;
  }
  const double decode = seconds(choice.first_token, choice.last_token);
  e2e_latency.observe(seconds(times.arrival, now));
  queue_time.observe(seconds(times.arrival, choice.scheduled));
  prefill_time.observe(seconds(choice.scheduled, choice.first_token));
  inference_time.observe(seconds(choice.scheduled, choice.last_token));
  decode_time.observe(decode);
  time_per_output_token.observe(choice.tokens > 1 ? decode / static_cast<double>(choice.tokens - 1) : 0);
  request_prompt_tokens.observe(static_cast<double>(s.prompt_len));
  request_generation_tokens.observe(static_cast<double>(choice.tokens));
  params_max_tokens.observe(static_cast<double>(s.family->max_tokens));
  if (times.open == 0 && times.answered) params_n.observe(static_cast<double>(times.choices.size()));
}

}  // namespace deepinfer
