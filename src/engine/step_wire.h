// A step as numbers, for ranks in other processes: what they need to run forward, which is less than a Step
// holds. Sampling is rank 0's.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "deepinfer/result.h"
#include "engine/model_runner.h"

namespace deepinfer {

// Used by one thread; memory is kept from step to step.
class StepEncoder {
 public:
  // The numbers are valid until the next call. Tokens that only a slot knows are taken from `slots`.
  std::span<const int32_t> encode(const Step& step, const SlotTable& slots);

 private:
  std::vector<int32_t> out_;
};

class StepDecoder {
 public:
  struct Limits {
    int slots = 0;
    int64_t blocks = 0;
    int groups = 0;  // of KV layers
    int vocab = 0;
    int max_model_len = 0;
  };
  explicit StepDecoder(const Limits& limits) : limits_(limits) {}

  // The step is valid until the next call, and as long as `in` is. kInternal with what is wrong, and where.
  Result<const Step*> decode(std::span<const int32_t> in);

 private:
  class Reader;
  Result<void> read_row(Reader& in, size_t index);

  Limits limits_;
  Step step_;
  std::vector<std::vector<std::vector<int32_t>>> tables_;  // [rows][groups]
};

}  // namespace deepinfer
