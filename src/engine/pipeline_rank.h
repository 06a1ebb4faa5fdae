// A rank of a pipeline: its place, what it hears and tells, and what it does of a step.
//
// Ranks are numbered by stage, and in a stage by their share of each layer (tensor parallelism): rank = stage
// * shares + share. A step starts at rank 0, which tells its stage. Every rank runs its layers and passes
// step and hidden states to the rank of its share in the next stage; the last stage sends the rows that the
// head is wanted for back to the first, which has the head. So nobody waits for two, and a stage is free for
// the next step as soon as it has passed one on.
//
// Messages form a ring through the stages. All are sent by send_copy(), so a sender waits only while a step
// lies before its peer besides: a ring that waits for itself would hold two steps for each stage, and there
// is one.
#pragma once

#include <memory>
#include <span>

#include "base/arena.h"
#include "comm/communicator.h"
#include "engine/cpu_runner.h"
#include "engine/step_wire.h"

namespace deepinfer {

struct PipelinePlace {
  int stages = 1, shares = 1, rank = 0;

  int ranks() const { return stages * shares; }
  int stage() const { return rank / shares; }
  int share() const { return rank % shares; }
  bool first() const { return stage() == 0; }
  bool last() const { return stage() == stages - 1; }
  int before() const { return rank - shares; }
  int behind() const { return rank + shares; }
  int end() const { return (stages - 1) * shares + share(); }  // the last stage's rank of this share
};

// Through which a rank talks.
struct PipelineComms {
  std::unique_ptr<Communicator> world;  // of all ranks
  std::unique_ptr<Communicator> stage;  // of this stage's; none: it is alone. Talks through world, perhaps

  ~PipelineComms() { stage.reset(); }
  PipelineComms() = default;
  PipelineComms(PipelineComms&&) = default;
  PipelineComms& operator=(PipelineComms&& o) noexcept {
    stage = std::move(o.stage);  // before the world that it talks through
    world = std::move(o.world);
    return *this;
  }
  void abort(const std::string& reason);
};

// Precedes every message's data.
struct PipelineHead {
  enum Kind : int32_t { kStep = 1, kHead, kRows, kNothing, kRelease, kReleased, kEnd };
  int32_t kind = kNothing;
  int32_t words = 0;                // kStep: numbers of StepEncoder
  int32_t scored = 0, sampled = 0;  // kHead, kRows
  int64_t amount = 0;               // kStep: tokens; kRelease, kReleased: bytes
};

// Used by one thread at a time. What fails throws: CommError, or what the runner threw.
class PipelineRank {
 public:
  // All outlive it, or are exchanged by join().
  PipelineRank(const PipelinePlace& place, CpuRunner& runner) : place_(place), runner_(runner) {}
  void join(PipelineComms& comms);

  const PipelinePlace& place() const { return place_; }

  // Rank 0: to the others of the first stage.
  void tell_stage(const PipelineHead& head, std::span<const int32_t> words);
  // The first stage: layers and passing on.
  void start(const Step& step, const PipelineHead& head, std::span<const int32_t> words);
  // The first stage: the rows of the oldest step that did not come back yet. [count.all(), H], until the next
  // call.
  Tensor receive_rows(const CpuRunner::Rows& count);
  // To the next stage, without data.
  void pass(const PipelineHead& head);
  // Rank 0, after kRelease: what all others have given back.
  int64_t receive_released();

  // Any other rank, until rank 0 ends it.
  void follow();

 private:
  // Grows with what it has to hold: hidden states [T, H], then the words of their step.
  class Body {
   public:
    std::span<std::byte> of(size_t bytes);

   private:
    Buffer memory_;
  };

  PipelineHead hear();
  std::span<std::byte> body_of(const PipelineHead& head);
  void check(const PipelineHead& head) const;
  void forward(const Step& step, const PipelineHead& head, std::span<std::byte> body);
  bool obey(PipelineHead head, StepDecoder& decoder);
  void step(const PipelineHead& head, StepDecoder& decoder);
  void release(PipelineHead head);

  const PipelinePlace place_;
  CpuRunner& runner_;
  PipelineComms* comms_ = nullptr;
  Body body_, rows_;
};

}  // namespace deepinfer
