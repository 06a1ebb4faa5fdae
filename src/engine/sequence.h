// One choice of one request, from its arrival to its last token.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "deepinfer/engine.h"
#include "engine/block_pool.h"
#include "engine/drafting.h"
#include "engine/sampling_params.h"

namespace deepinfer {

inline constexpr int kMaxChoices = 128;  // of a request

inline uint64_t sequence_id(uint64_t request, int choice) {
  return request * kMaxChoices + static_cast<uint64_t>(choice);
}

// What the choices of one request share.
struct SequenceFamily {
  std::shared_ptr<const ResolvedSampling> sampling;
  int max_tokens = 0;
  BlockKey root{};            // of the block keys: the cache salt
  bool prompt_ready = false;  // the first choice's prompt is cached: the others may start
};

// Owner: the scheduler; its thread only. Counts are in tokens. "Planned" includes steps in flight and is an
// upper bound; the rest is committed.
struct Sequence {
  enum class State : uint8_t { kWaiting, kRunning, kFinished };

  uint64_t id = 0;
  uint64_t request = 0;
  int choice = 0;
  int priority = 0;
  uint64_t seed = 0;
  std::shared_ptr<SequenceFamily> family;
  std::vector<int32_t> tokens;  // prompt, then output
  int64_t prompt_len = 0;
  int64_t max_len = 0;  // of prompt and output

  State state = State::kWaiting;
  bool was_scheduled = false;
  int64_t cached_tokens = 0;  // prefix hit of the first schedule
  FinishReason finish = FinishReason::kNone;
  int32_t stop_token = -1;
  std::vector<OutputToken> prompt_scores;  // of the prompt's tokens from the second on, as far as committed
  float mirostat_mu = 0;                   // a function of the committed tokens

  // Lists of the sampling row in flight that were made for it alone: where the family's sampling is stateful,
  // there is at most one.
  std::vector<int32_t> banned_now;
  std::vector<LogitBias> dry_now;
  DryHistory dry_history;  // of `tokens`; empty without DRY

  // Of the sampling row in flight: its input token and what is guessed to follow. More than is drafted, to
  // learn from.
  std::vector<int32_t> guessed;
  std::vector<int32_t> output_and_guessed;  // where penalties need the tokens before each guess
  DraftRecord record;

  int32_t slot = -1;  // while it runs, or rows of it are in flight
  BlockTables tables;
  std::vector<BlockKey> keys;    // of full blocks, as far as needed
  int64_t published_blocks = 0;  // full blocks that were offered to the cache
  int64_t num_computed = 0;      // positions whose KV is in the cache
  int64_t planned_computed = 0;  // num_computed after the rows in flight that have ids
  int64_t planned_room = 0;      // tokens that the sampling rows in flight may add
  int rows_in_flight = 0;
  int samples_in_flight = 0;
  uint64_t failed_epoch = ~uint64_t{0};  // the pool's, when there was no room for it

  const SamplingParams& params() const { return family->sampling->params; }
  int64_t length() const { return static_cast<int64_t>(tokens.size()); }
  int64_t planned_length() const { return length() + planned_room; }
  int64_t output_len() const { return length() - prompt_len; }
  std::span<const int32_t> prompt() const { return std::span(tokens).first(prompt_len); }
  std::span<const int32_t> output() const { return std::span(tokens).subspan(prompt_len); }
  // The request's choices share a prompt: the first one scores it.
  bool wants_scores() const {
    return choice == 0 && params().prompt_logprobs >= 0 &&
           static_cast<int64_t>(prompt_scores.size()) + 1 < prompt_len;
  }
  // Stop ids are impossible for the token at `position`.
  bool bans_stops_at(int64_t position) const {
    return position - prompt_len < params().min_tokens && !family->sampling->stop_ids.empty();
  }

  // Served before: lower priority value, then earlier request, then lower choice.
  bool before(const Sequence& other) const {
    if (priority != other.priority) return priority < other.priority;
    if (request != other.request) return request < other.request;
    return choice < other.choice;
  }
};

struct SequenceLimits {
  int64_t max_len = 0;  // of prompt and output
  int vocab_size = 0;
  int block_size = 16;
  bool prefix_caching = true;  // compute the keys of the prompt's blocks
  std::vector<int32_t> end_ids;
};

// The n sequences of a checked request. Computes the keys of the prompt's blocks: call it on the submitting
// thread. Sequence ids are those of sequence_id().
std::vector<std::unique_ptr<Sequence>> make_sequences(uint64_t request_id, EngineRequest request,
                                                      const SequenceLimits& limits);

}  // namespace deepinfer
