// A runner that several engines use one after the other, each with fewer slots than it has: other limits
// without loading the weights again.
#pragma once

#include "engine/model_runner.h"

namespace deepinfer::tune {

class LimitedRunner final : public ModelRunner {
 public:
  // `runner` is borrowed; no step of it is in flight. `slots`: at most its own.
  LimitedRunner(ModelRunner& runner, int slots) : runner_(runner), info_(runner.info()) {
    info_.num_slots = slots;
  }

  const Info& info() const override { return info_; }
  void launch_forward(const Step& step) override { runner_.launch_forward(step); }
  void launch_sample(const Step& step) override { runner_.launch_sample(step); }
  StepOutput wait(uint64_t step_id) override { return runner_.wait(step_id); }

 private:
  ModelRunner& runner_;
  Info info_;
};

}  // namespace deepinfer::tune
