// The boundary between the scheduler's world and the device: a step in, sampled tokens out.
#pragma once

#include <cstdint>
#include <span>
#include <stdexcept>
#include <vector>

#include "deepinfer/engine.h"
#include "ops/params.h"
#include "tensor/kv_cache.h"

namespace deepinfer {

// One row of a step. Views stay valid until wait() of the step returned, but block tables may grow meanwhile:
// a runner that works asynchronously copies what it needs in launch_forward().
//
// A row with ids (re)starts its slot: last token and length on the device follow from it. A row with
// kTokenFromSlot goes on from there; its context_len and sampling.position are then upper bounds, exact when
// every earlier row accepted `room` tokens. A row that accepts nothing leaves the slot at its last input
// token, which the next row computes again.
struct StepRow {
  uint64_t sequence = 0;
  int32_t slot = 0;
  int32_t context_len = 0;          // tokens in the cache before the step (upper bound in flight)
  std::span<const int32_t> tokens;  // of this step: ids, or one kTokenFromSlot
  std::span<const std::vector<int32_t>> block_table;  // [KV groups] block ids by position, -1 where freed
  bool samples = false;                               // the last token's logits are wanted
  // So many of the last tokens are guesses: logits of the token before them and of each are wanted, sampled
  // at sampling.position and those after it, with the guesses before as output (sampling.output is followed
  // by them in memory). Accepted are the first token, and each behind a guess that was what came.
  int32_t drafts = 0;
  int32_t room = 1;    // tokens that it may accept: its blocks hold context_len + tokens + room - 1 positions
  SampleRow sampling;  // when it samples
  // The tokens that come behind the row's first ones: how likely they are is wanted (of a prompt).
  std::span<const int32_t> targets;
  int32_t target_top = 0;  // most likely tokens that are told besides
};

struct Step {
  uint64_t id = 0;            // ascending
  std::vector<StepRow> rows;  // decode rows first, then prefill chunks
  std::vector<BlockCopy> copies;
};

struct StepOutput {
  // Accepted tokens of each sampling row, in the order of the rows: 0 to k of them.
  std::vector<std::vector<OutputToken>> accepted;
  // Of each row with targets, in the order of the rows: these tokens, scored.
  std::vector<std::vector<OutputToken>> scored;
  // SampleParams::surprise of each sampling row, 0 of those without mirostat; empty when no row has it.
  std::vector<float> surprise;
};

// The device is gone for this process (its context is broken): every later call throws this too, at once.
class DeviceLost : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Two launches a step, so that a grammar's mask can be computed while forward runs. Several steps may be in
// flight: wait() is called once for each that was launched, in order. Used by the engine's thread only. A
// fault throws and the engine fails the step's sequences; std::bad_alloc (or what derives from it) means that
// the device ran out of memory: the newest sequence of the step fails and the others go on. DeviceLost ends
// all requests, and the engine takes no more.
class ModelRunner {
 public:
  struct Info {
    std::vector<KvGroupSpec> groups;
    int block_size = 16;
    int64_t num_blocks = 0;
    int num_slots = 0;  // = max_num_seqs
    int vocab_size = 0;
    int max_model_len = 0;
    int max_in_flight = 1;  // steps that may be launched before the oldest is waited for
    // Stages of a pipeline, each of which works on another step: a sequence has rows in one step at a time
    // but for the chunks of its prompt, and no step takes so much that others find nothing. As many may be in
    // flight.
    int stages = 1;
    int max_accepted = 1;  // tokens that a decode row may accept without drafts (guesses of the device)
    int logit_rows = 0;    // sampling rows and drafts that a step may have together; 0: no drafts
    // Memory that was never used costs nothing yet: cached blocks are evicted before it is used, once the
    // blocks ever used are half as many again as were in use at once (or an eighth of the pool). So memory
    // grows with use, not with time. False where all of the pool is mapped anyway (GPU).
    bool touched_first = true;
    // The runner knows the tokens of rows in flight, and a row with room for one token accepts one: neither
    // penalties nor min_tokens wait for a commit. It reads the size of sampling.prompt, and no output.
    bool tracks_tokens = false;
  };

  virtual ~ModelRunner() = default;
  virtual const Info& info() const = 0;
  virtual void launch_forward(const Step& step) = 0;
  virtual void launch_sample(const Step& step) = 0;
  virtual StepOutput wait(uint64_t step_id) = 0;

  // Any thread.
  virtual HeldMemory held_memory() const { return {}; }
  // No step is in flight and no block in use: gives back to the system what can be had again. The bytes.
  virtual int64_t release_unused() { return 0; }
};

}  // namespace deepinfer
