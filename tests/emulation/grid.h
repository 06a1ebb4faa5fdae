// One launch of a kernel: its blocks one after another, in a shuffled order.
#pragma once

#include <memory>
#include <vector>

#include "emulation/block.h"

namespace deepinfer::emulation {

class Grid {
 public:
  explicit Grid(KernelLaunch launch);

  // For a launch with pdl: some blocks, each as far as grid_dependency_wait().
  void start_before_dependency();
  bool all_started() const { return next_ == order_.size(); }
  // All that is left.
  void run();

 private:
  uint3 index(size_t block) const;

  GridState state_;
  std::vector<uint32_t> order_;  // of blocks
  size_t next_ = 0;
  std::vector<std::unique_ptr<Block>> suspended_;
};

}  // namespace deepinfer::emulation
