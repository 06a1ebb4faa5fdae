// The engine: token ids in, token ids out. Text, templates and stop strings are the business of those who
// call it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "deepinfer/result.h"

namespace deepinfer {

// How the next token is chosen. Names, meaning and defaults are vLLM's SamplingParams, and llama.cpp's
// server's for its samplers; ranges: engine/sampling_params.cpp.
struct SamplingParams {
  int n = 1;                        // choices of one prompt, 1 to 128
  float temperature = 1.0f;         // 0: the most likely token
  float top_p = 1.0f;               // (0, 1]
  int top_k = -1;                   // -1 or 0: all
  float min_p = 0.0f;               // [0, 1]
  float presence_penalty = 0.0f;    // [-2, 2]
  float frequency_penalty = 0.0f;   // [-2, 2]
  float repetition_penalty = 1.0f;  // (0, 2]
  std::optional<int64_t> seed;      // unset: drawn at random
  int max_tokens = 16;              // at least 1; 0: only with prompt_logprobs
  int min_tokens = 0;               // end of sequence and stop ids are impossible before
  std::vector<int32_t> stop_token_ids;
  bool ignore_eos = false;
  std::vector<std::pair<int32_t, float>> logit_bias;  // token, [-100, 100]
  int logprobs = -1;         // -1: none; 0: of the chosen token; k: and of the k most likely ones
  int prompt_logprobs = -1;  // the same for each token of the prompt but its first; max_tokens may be 0 then
  // Token sequences that the output never holds (one that began in the prompt is not seen, as in vLLM). Where
  // allowed_token_ids and these leave no token, the ban of stop ids by min_tokens gives way first, then that
  // of sequences of several tokens; what cannot leave one from the start is refused.
  std::vector<std::vector<int32_t>> bad_words;
  std::vector<int32_t> allowed_token_ids;  // empty: all
  // Tokens that are guessed from the text before and verified together, where the device can: the same tokens
  // sooner. -1: as the engine's option; 0: none; at most 32.
  int num_speculative_tokens = -1;

  // llama.cpp's samplers. The order of all steps, and what of mixtures differs from llama.cpp: SampleRow in
  // ops/params.h.
  float typical_p = 1.0f;        // (0, 1]; 1: off
  float top_n_sigma = -1.0f;     // tokens within so many standard deviations of the largest logit; <= 0: off
  float xtc_probability = 0.0f;  // [0, 1]; 0: off
  float xtc_threshold = 0.1f;    // [0, 1]; above 0.5: off
  float dynatemp_range = 0.0f;   // temperature -+ this, by the entropy; 0: off
  float dynatemp_exponent = 1.0f;
  int mirostat = 0;  // 0: off; 1, 2: the version, which replaces the other cuts
  float mirostat_tau = 5.0f;
  float mirostat_eta = 0.1f;
  float dry_multiplier = 0.0f;  // 0: off
  float dry_base = 1.75f;
  int dry_allowed_length = 2;
  int dry_penalty_last_n = -1;                     // tokens looked back; -1: the context; 0: off
  std::vector<std::vector<int32_t>> dry_breakers;  // token sequences at which a repetition ends
};

struct TokenLogprob {
  int32_t token = 0;
  float logprob = 0;
};

struct OutputToken {
  int32_t id = 0;
  int32_t rank = 0;   // of a prompt's token among all by its logit, 1: the most likely; 0: not asked for
  float logprob = 0;  // of the raw logits, before penalties and temperature; valid when logprobs >= 0
  std::vector<TokenLogprob> top;  // `logprobs` entries, most likely first
};

enum class FinishReason : uint8_t { kNone, kStop, kLength, kCancelled, kError };

// One piece of news of one choice. Views are valid during the call only.
struct OutputEvent {
  uint64_t request = 0;
  int choice = 0;          // 0 to n-1
  bool scheduled = false;  // first news: the request left the queue
  std::span<const OutputToken>
      tokens;  // new ones, in order; the token that ended the sequence (eos, stop id) comes last
  FinishReason finish = FinishReason::kNone;
  // Of the prompt's tokens from the second on, once, with choice 0's first tokens or finish; when asked for.
  std::span<const OutputToken> prompt_logprobs;
  int32_t stop_token = -1;  // the id that ended it, when finish is kStop
  int prompt_tokens = 0;
  int cached_tokens = 0;         // of the prompt, taken from the prefix cache
  const Error* error = nullptr;  // when finish is kError
};

// Called on the engine's thread: hand the event over and return, never block, never throw.
using OnEvent = std::function<void(const OutputEvent&)>;

struct ResolvedSampling;  // checked, and in the engine's form: engine/sampling_params.h

struct EngineRequest {
  std::vector<int32_t> prompt;  // token ids, 1 to max_model_len - 1
  SamplingParams sampling;
  int priority = 0;        // lower is served first
  std::string cache_salt;  // prefixes are shared only between equal salts
  std::string name;        // what log lines and the event log call it (an HTTP request's id); empty: nothing
  // What several requests have in common, of Engine::prepare(): then of `sampling` max_tokens alone is read.
  std::shared_ptr<const ResolvedSampling> shared;
};

struct EngineStats {
  int running = 0;  // sequences
  int waiting = 0;
  int64_t total_blocks = 0;
  int64_t free_blocks = 0;    // includes cached ones that nobody uses
  int64_t cached_blocks = 0;  // those: they hold the prefixes of finished prompts
  uint64_t steps = 0;
  uint64_t preemptions = 0;
  uint64_t prompt_tokens = 0;
  uint64_t cached_tokens = 0;
  uint64_t generated_tokens = 0;
  double seconds_since_heartbeat = 0;  // 0 when idle
};

// What the memory went to that the engine holds besides the weights, in bytes, of the device it runs on.
struct HeldMemory {
  int64_t cache = 0;       // the KV cache as far as memory stands behind it
  int64_t graphs = 0;      // captured ones, and what is kept free for the others
  int64_t workspaces = 0;  // what steps compute in
  int64_t pinned = 0;      // of the host, what copies to and from a GPU pass through
};

// What empty_cache() found that nobody used.
struct EmptiedCache {
  int64_t blocks = 0;  // of finished prompts: forgotten
  int64_t bytes = 0;   // given back to the system
};

class Clock;
class ModelRunner;
class Profiler;
struct EngineMetrics;

// Guesses of tokens by what followed earlier in the same text: engine/drafting.h.
struct SpeculationOptions {
  int num_tokens = 0;  // guessed at a time at most, to 32; 0: none but those that a request wants
  int lookup_min = 2;  // tokens that the place before must share with the text's end
  int lookup_max = 8;  // more than these are not compared
};

struct EngineOptions {
  int max_num_batched_tokens = 2048;
  SpeculationOptions speculation;
  bool enable_chunked_prefill = true;
  bool enable_prefix_caching = true;
  int max_queue = 512;           // waiting sequences, n counts
  double queue_timeout = 60;     // seconds; 0: none
  double timeout = 600;          // seconds in all; 0: none
  std::vector<int32_t> end_ids;  // end of sequence
  std::string event_log;         // a file for one JSON line per event; empty: none
  Profiler* profiler = nullptr;  // profile/profiler.h; outlives the engine; null: none
};

// One thread owns all scheduling state; these methods may be called from any thread.
class Engine {
 public:
  // Starts the engine's thread. `clock` null: the steady clock.
  Engine(std::unique_ptr<ModelRunner> runner, EngineOptions options, Clock* clock = nullptr);
  ~Engine();  // stop()
  Engine(const Engine&) = delete;

  // Checks this and makes its lists, once for any number of requests. kInvalidArgument.
  Result<std::shared_ptr<const ResolvedSampling>> prepare(SamplingParams sampling) const;

  // Returns the request's id; events follow until each choice had its finish. kInvalidArgument,
  // kContextLength, kQueueFull, kUnavailable (draining).
  Result<uint64_t> submit(EngineRequest request, OnEvent on_event);

  // The request's sequences and blocks, or those of one choice (a stop string was found), are free by the end
  // of the step that runs; each gets its kCancelled. Unknown ids and finished choices are ignored.
  // `answered`: the caller has all it wanted, so that metrics count an answer that stopped, not an abort.
  void cancel(uint64_t request, int choice = -1, bool answered = false);

  void drain();  // refuse new requests, let the running ones end
  bool idle() const;
  void stop();  // end at once: what runs gets kCancelled

  bool reset_prefix_cache();  // false while sequences run
  // The same, and memory that no step needs goes back to the system (on a GPU it is planned and stays).
  // Unset while sequences run.
  std::optional<EmptiedCache> empty_cache();
  HeldMemory held_memory() const;

  // Called once, on the engine's thread, when the device is gone for this process: all requests have ended
  // with kMemory and no others are taken; only another process helps. At once if it has happened already.
  void on_device_lost(std::function<void(const std::string& why)> callback);
  EngineStats stats() const;
  const EngineMetrics& metrics() const;  // engine/engine_metrics.h; as long as the engine

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace deepinfer
