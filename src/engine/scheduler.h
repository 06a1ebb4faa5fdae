// Decides what each step computes. Pure: no threads, no clock, no device; the engine's thread (or a test)
// calls it.
//
//   plan()    the next step: running sequences in order of precedence, decode rows before prefill chunks,
//   then
//             waiting ones while tokens, slots and blocks last
//   commit()  the oldest planned step, with what its rows accepted
//
// Up to max_in_flight plans may be uncommitted. Meanwhile lengths are upper bounds, and nothing that a row in
// flight may touch (blocks, slot) is given to another sequence.
//
// Where steps pass through the stages of a pipeline, those in flight are of other sequences, and each takes
// its share of what there is to do, so that every stage has some.
//
// When blocks run out, the running sequence of lowest precedence without rows in flight is preempted: its
// blocks go back (full ones stay cached) and it is computed again later. Where all candidates have rows in
// flight, they are left out of the plan until these are committed. So the first in order always advances.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "engine/block_pool.h"
#include "engine/drafting.h"
#include "engine/dry.h"
#include "engine/model_runner.h"
#include "engine/sequence.h"

namespace deepinfer {

struct SchedulerOptions {
  ModelRunner::Info device;
  int max_num_batched_tokens = 2048;
  bool enable_chunked_prefill = true;
  bool enable_prefix_caching = true;
  SpeculationOptions speculation;
};

struct DraftCounts {
  uint64_t drafts = 0, tokens = 0, accepted = 0;  // rows with drafts; their guesses; those that were right
};

struct PlannedRow {
  Sequence* sequence = nullptr;
  int64_t start = 0;  // position of the first token (upper bound when from the slot)
  int64_t count = 0;  // tokens
  int64_t room = 0;   // tokens that it may accept; 0: does not sample
  bool from_slot = false;
  bool drafted = false;  // the scheduler guessed: `room` - 1 tokens of the sequence's guesses are verified
};

struct StepPlan {
  Step step;
  std::vector<PlannedRow> rows;  // in the order of step.rows
  int64_t tokens = 0;
  bool decodes_only = true;
};

// New tokens of a committed row. Valid until the next call of the scheduler.
struct Emission {
  const Sequence* sequence = nullptr;
  std::span<const OutputToken> tokens;
  FinishReason finish = FinishReason::kNone;
};

struct SchedulerEvent {
  enum class Kind : uint8_t { kScheduled, kPreempted, kFinished, kReleased } kind = Kind::kScheduled;
  const Sequence* sequence = nullptr;
  bool first = false;         // kScheduled: not after a preemption
  int64_t cached_tokens = 0;  // kScheduled: prefix hit
  int64_t blocks = 0;         // kReleased, kPreempted: that it held
  int64_t free_blocks = 0;    // after it
};

class Scheduler {
 public:
  explicit Scheduler(SchedulerOptions options);

  // Longest prompt and output together, and whether the model (else the pool of blocks) sets it.
  int64_t max_len() const { return max_len_; }

  void add(std::unique_ptr<Sequence> sequence);
  // Ends all sequences of a request, or one sequence. Blocks are free now, or when rows in flight are
  // committed.
  void end_request(uint64_t request, FinishReason reason);
  void end_sequence(uint64_t sequence, FinishReason reason);

  // Null when nothing can be planned before a commit (or nothing is left to do). The plan is the scheduler's,
  // until its commit.
  StepPlan* plan();
  // `plan` is the oldest one. Appends to `emissions`, whose spans point into `output`.
  void commit(StepPlan& plan, const StepOutput& output, std::vector<Emission>& emissions);
  // Forgets all plans in flight: their rows are computed again.
  void rollback();

  StepPlan* oldest() { return in_flight_ == 0 ? nullptr : &ring_[first_plan_]; }
  int in_flight() const { return in_flight_; }
  bool empty() const { return sequences_.empty(); }  // nothing left to do or to release
  int running() const { return static_cast<int>(running_.size()); }
  int waiting() const { return static_cast<int>(waiting_.size()); }
  const BlockPool& pool() const { return pool_; }

  // What happened since clear_events(), in order. Finished sequences live until then.
  std::span<const SchedulerEvent> events() const { return events_; }
  void clear_events();

  // After the device ran out of memory: plan at most half as many tokens from now on.
  void shrink_budget();
  void reset_prefix_cache() { pool_.reset_cache(); }

  // How long steps without prefill took: what drafts are worth follows from it. Tokens never do.
  void observe_cost(int64_t tokens, double seconds) { cost_.observe(tokens, seconds); }
  const DraftCounts& drafts() const { return drafts_; }

  // Throws InternalError when something does not hold.
  void check_invariants() const;

 private:
  // State of one call of plan().
  struct Round {
    int64_t budget = 0;    // tokens left
    int64_t drafts = 0;    // tokens that may be drafted yet
    int64_t tokens = 0;    // of decode rows, as far as they are planned or known to be wanted
    int64_t decodes = 0;   // sequences not looked at yet that want one token: the budget keeps it for them
    int64_t share = 0;     // of them, that may still be taken
    bool stalled = false;  // no block: what follows in order has to wait
    bool preempted = false;
  };

  int64_t step_budget() const;
  void plan_running(Round& round);
  void plan_waiting(Round& round);
  bool admit(Sequence& s, Round& round);
  bool needs_commit(const Sequence& s) const;
  bool wants_row(const Sequence& s) const;
  bool wants_decode(const Sequence& s) const;
  PlannedRow make_row(const Sequence& s, int64_t budget) const;
  void draft(Sequence& s, PlannedRow& row, Round& round, int64_t budget);
  bool make_room(Sequence& s, PlannedRow& row, Round& round);
  void cut_to_fit(const Sequence& s, PlannedRow& row) const;
  Sequence* victim(const Sequence& s) const;
  void preempt(Sequence& s);
  void place(const PlannedRow& row, Round& round);
  int64_t reserved_blocks() const;
  void build_step(StepPlan& plan);
  void fill_row(StepRow& out, const PlannedRow& row);
  void fill_sampling(Sequence& s, int64_t position, SampleRow& out);
  std::span<const int32_t> banned_at(Sequence& s, int64_t position);

  void commit_row(const PlannedRow& row, std::span<const OutputToken> accepted, float surprise,
                  std::vector<Emission>& emissions);
  void commit_scores(const StepPlan& plan, const StepOutput& output);
  void account(const PlannedRow& row);
  void append(Sequence& s, std::span<const OutputToken> accepted, std::vector<Emission>& emissions);
  void learn(const PlannedRow& row, std::span<const OutputToken> accepted);
  void publish(Sequence& s);
  void extend_keys(Sequence& s, int64_t blocks);
  void finish(Sequence& s, FinishReason reason);
  int64_t release(Sequence& s);
  void event(SchedulerEvent::Kind kind, const Sequence& s, int64_t blocks);
  void check_sequence(const Sequence& s) const;

  SchedulerOptions options_;
  BlockPool pool_;
  BlockHasher hasher_;
  int64_t max_len_ = 0;
  int64_t budget_ = 0;
  std::unordered_map<uint64_t, std::unique_ptr<Sequence>> sequences_;
  std::vector<Sequence*> running_, waiting_;  // by precedence
  std::vector<int32_t> free_slots_;
  std::vector<StepPlan> ring_;  // [max_in_flight]
  int first_plan_ = 0, in_flight_ = 0;
  uint64_t next_step_ = 1;
  DryPenalties dry_;
  std::vector<PlannedRow> decode_rows_,
      prefill_rows_;  // of the plan being made; those with drafts are prefill
  StepCost cost_;
  DraftCounts drafts_;
  std::vector<SchedulerEvent> events_;
  std::vector<std::unique_ptr<Sequence>> finished_;  // released; until clear_events()
};

}  // namespace deepinfer
