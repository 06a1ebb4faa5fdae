// What the device's block tables hold, as far as the host knows: a step sends only what differs.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/cuda_step.h"
#include "engine/model_runner.h"

namespace deepinfer {

// Owner: the runner. One thread.
class TableMirror {
 public:
  TableMirror(int groups, int slots, int max_blocks);

  // Appends what the device must change so that the row's slot has the row's tables, and takes it as sent.
  void diff(const StepRow& row, std::vector<cuda::BlockDelta>& out);

  // A step was not sent after all: nothing is known any more.
  void forget();

 private:
  struct Table {
    std::vector<int32_t> known;  // on the device, from the start
    size_t length = 0;           // of the sequence's own table when it was last sent
    size_t freed = 0;            // of its first blocks, behind a window
  };
  struct Slot {
    uint64_t sequence = ~uint64_t{0};
    std::vector<Table> tables;  // [groups]
  };

  void compare(Table& table, const std::vector<int32_t>& wanted, size_t from, size_t to,
               std::vector<cuda::BlockDelta>& out, int64_t start);

  int slots_, max_blocks_;
  std::vector<Slot> state_;  // [slots]
};

}  // namespace deepinfer
