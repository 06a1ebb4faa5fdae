// The least time that a step can take on a device, from what it must read and multiply.
#pragma once

#include <cstdint>

#include "model/checkpoint.h"

namespace deepinfer {

// Read from a model; measured on a device (0: unknown, then there is no floor).
struct BenchFloor {
  double weight_bytes = 0;        // that every step reads
  double flop_per_token = 0;      // of the matrices, the head's included
  double head_flop = 0;           // of it, the head's: prefill needs it once
  double attention_flop = 0;      // a pair of tokens
  double kv_bytes_per_token = 0;  // of the cache
  double copy_gb_per_second = 0;  // a device-to-device copy, counting bytes read and written
  double tflop_per_second = 0;    // matrix products

  bool known() const { return copy_gb_per_second > 0 && tflop_per_second > 0; }

  // Seconds for one step that adds a token to each of `sequences` of `context` tokens: weights are read once,
  // or the products are the limit; the cache is read besides.
  double decode(double sequences, double context) const;
  // Seconds for one prompt of `tokens`, causal.
  double prefill(double tokens) const;
};

// `kv_bytes`: of one element of the KV cache.
BenchFloor bench_floor(const Checkpoint& checkpoint, double kv_bytes);

}  // namespace deepinfer
