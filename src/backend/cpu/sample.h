// Sampling: rows of logits become tokens, one row a thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>

namespace deepinfer::cpu {

// What sample() takes from the context's scratch arena and gives back.
size_t sample_scratch_bytes(int threads, int64_t vocab);

}  // namespace deepinfer::cpu
