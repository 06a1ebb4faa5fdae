// A scheduler and a fake runner, stepped by hand.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/scheduler.h"
#include "fake_runner.h"

namespace deepinfer::test {

struct SimOptions {
  FakeOptions fake;
  int budget = 16;
  bool chunked = true;
  bool prefix_caching = true;
  std::vector<int32_t> end_ids;
  SpeculationOptions speculation;
};

struct SimSequence {
  OracleRequest oracle;
  std::vector<int32_t> output;
  std::vector<OutputToken> scores;
  FinishReason finish = FinishReason::kNone;
  int64_t cached_tokens = -1;  // of the first schedule
  int preemptions = 0;
  int64_t released = -1;
};

class Sim {
 public:
  explicit Sim(SimOptions options);

  // Refused (0) when it can never fit.
  uint64_t add(EngineRequest request);
  void cancel(uint64_t request);
  bool launch();                     // one plan; false: nothing to plan
  bool commit();                     // the oldest; false: nothing in flight
  void step();                       // as many launches as may be in flight, then one commit
  void run(int max_steps = 100000);  // until empty
  void rollback();

  // Outputs against the oracle (a prefix of it for cancelled ones), all blocks free, no fault. Empty: all
  // holds.
  std::string verdict() const;

  Scheduler& scheduler() { return scheduler_; }
  FakeRunner& runner() { return runner_; }
  SimSequence& sequence(uint64_t request, int choice = 0) { return sequences_[sequence_id(request, choice)]; }
  const std::vector<uint64_t>& schedule_order() const { return schedule_order_; }
  const StepPlan* last_plan() const { return last_plan_; }

 private:
  void collect();

  SimOptions options_;
  FakeRunner runner_;
  Scheduler scheduler_;
  std::map<uint64_t, SimSequence> sequences_;
  std::vector<uint64_t> schedule_order_;
  std::vector<Emission> emissions_;
  std::vector<uint64_t> launched_;
  const StepPlan* last_plan_ = nullptr;
  uint64_t next_request_ = 1;
};

std::vector<int32_t> iota_prompt(int length, int start = 0, int vocab = 50);

}  // namespace deepinfer::test
