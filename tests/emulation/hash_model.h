// A model whose logits are a hash of all tokens before them, read through the block tables of a KV cache on
// the device. A wrong table, a lost or doubled token, a block that is used again too early, a step that ran
// before its arrays had come: each changes what is generated. It needs none of the real kernels.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "model/model.h"

namespace deepinfer::test {

struct HashModelOptions {
  int vocab_size = 50;
  int window = 0;                                        // of a second group of layers; 0: there is none
  std::function<void(const StepBatch&)> before_forward;  // may throw
};

std::unique_ptr<Model> make_hash_model(const HashModelOptions& options);

// Logits after these tokens, by the host alone.
std::vector<float> hash_logits(const HashModelOptions& options, std::span<const int32_t> tokens);

// Greedy continuation of at most `count` tokens; ends with one of `ends`.
std::vector<int32_t> hash_continuation(const HashModelOptions& options, std::vector<int32_t> tokens,
                                       int count, std::span<const int32_t> ends = {});

}  // namespace deepinfer::test
