// Counts and times of the engine, for /metrics and the log.
//
// The engine's thread alone writes, any thread reads. Each number is an atomic that its one writer loads and
// stores relaxed, which costs what a plain variable does; a reader may see a histogram's sum one observation
// ahead of its counts. What an answer tells is recorded before it is told, so whoever has the answer finds it
// counted.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/clock.h"
#include "engine/sequence.h"

namespace deepinfer {

class Counter {
 public:
  void add(uint64_t n) { value_.store(value() + n, std::memory_order_relaxed); }
  uint64_t value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<uint64_t> value_ = 0;
};

class Histogram {
 public:
  explicit Histogram(std::vector<double> bounds);  // upper bounds of the buckets, ascending, inclusive

  void observe(double value);

  std::span<const double> bounds() const { return bounds_; }
  // Observations in a bucket, not those below it; of bounds().size(): above all bounds.
  uint64_t count(size_t bucket) const { return counts_[bucket].load(std::memory_order_relaxed); }
  double sum() const { return sum_.load(std::memory_order_relaxed); }

 private:
  std::vector<double> bounds_;
  std::unique_ptr<std::atomic<uint64_t>[]> counts_;  // [bounds + 1]
  std::atomic<double> sum_ = 0;
};

// 1, 2, 5, 10, 20, 50 ... up to `largest`.
std::vector<double> length_buckets(int64_t largest);

// How a sequence ended, as vLLM names it: stop, length, abort (its client left, or the server stopped),
// error.
enum class Ending : uint8_t { kStop, kLength, kAbort, kError };
inline constexpr std::array<const char*, 4> kEndingNames = {"stop", "length", "abort", "error"};

// When things happened to the sequences of one request.
struct RequestTimes {
  struct Choice {
    Clock::Time scheduled, first_token, last_token;
    int64_t tokens = 0;
    bool stopped = false;  // its reader has enough: cancelling it is a stop
    bool ended = false;
  };
  Clock::Time arrival;
  std::vector<Choice> choices;
  int open = 0;          // choices without an end
  bool answered = true;  // all that ended did so by stop or length
};

// The names and their meaning are vLLM's, docs/MONITORING.md explains them. "Request" in a name means one
// sequence (a choice of n), as in vLLM, but for request_params_n.
struct EngineMetrics {
  explicit EngineMetrics(int max_model_len);

  // The observers. `now` is read once a step.
  static RequestTimes arrived(Clock::Time arrival, size_t choices);
  void scheduled(RequestTimes& times, const Sequence& s, bool looked_up, Clock::Time now);
  void emitted(RequestTimes& times, const Sequence& s, size_t tokens, Clock::Time now);
  void count(Ending ending) { endings[static_cast<size_t>(ending)].add(1); }
  // Of each sequence once: further calls do nothing.
  void ended(RequestTimes& times, const Sequence& s, Ending ending, Clock::Time now);

  Counter prompt_tokens, prompt_tokens_cached, generation_tokens;
  Counter prefix_cache_queries, prefix_cache_hits;  // in tokens
  Counter preemptions;
  Counter drafts, draft_tokens, accepted_draft_tokens;  // of speculation
  std::array<Counter, kEndingNames.size()> endings;

  Histogram time_to_first_token, inter_token_latency, time_per_output_token;     // seconds
  Histogram e2e_latency, queue_time, inference_time, prefill_time, decode_time;  // seconds
  Histogram request_prompt_tokens, request_generation_tokens, params_n, params_max_tokens;
  Histogram iteration_tokens;  // of a step, prefill and decode

 private:
  void count_prompt(const Sequence& s);
};

}  // namespace deepinfer
