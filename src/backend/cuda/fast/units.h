// What the units compiled from FlashInfer's headers offer to fast_attention.cpp: tables of functions without
// its types. Both tables are empty in a build without DEEPINFER_FLASHINFER_DIR.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "backend/cuda/attention.h"
#include "backend/cuda/fast/plan.h"

namespace deepinfer::cuda {

struct Fa2Call {
  const PagedAttention* attention = nullptr;
  AttentionPlan plan;
  const int32_t* zeros = nullptr;        // [slots]
  const int32_t* large_chunk = nullptr;  // [1] more than any context
  int32_t slots = 0;
  int32_t tile = 128;         // 64, 128
  bool small_shared = false;  // about 100 KB in a multiprocessor, not 160 or more
  cudaStream_t stream = nullptr;
};

// One activation dtype, which is the cache's too; head dimensions 64 and 128, causal, with or without a
// window.
struct Fa2Unit {
  DType activation = DType::kBF16;
  bool (*ready)() = nullptr;  // has it code for the current device
  void (*launch)(const Fa2Call& call) = nullptr;
};

struct XqaCall {
  const PagedAttention* attention = nullptr;
  const uint32_t* kv_len = nullptr;  // [rows]
  int32_t rows = 0;
  int32_t splits = 1;              // blocks that share a row's context
  uint32_t* semaphores = nullptr;  // [rows, kv_heads], zero before and after
  void* scratch = nullptr;         // partial results, for splits > 1
  const float* sinks = nullptr;    // [heads] XqaSetup::empty_score each
  size_t smem = 0;
  cudaStream_t stream = nullptr;
  bool pdl = false;
};

struct XqaSetup {
  size_t smem = 0;  // of a block on the current device
  int blocks_per_sm = 0;
  size_t scratch_bytes = 0;  // for each of rows * kv_heads * splits
  float empty_score = 0;     // the running maximum that a row without context keeps
};

// One head dimension, GQA group, activation and cache dtype; pages of 16.
struct XqaUnit {
  int dim = 0, group = 0;
  DType activation = DType::kBF16, kv_dtype = DType::kBF16;
  bool (*prepare)(XqaSetup& setup) = nullptr;  // false: no code for the current device. Not in a capture
  void (*launch)(const XqaCall& call) = nullptr;
};

std::span<const Fa2Unit> fa2_units();
std::span<const XqaUnit> xqa_units();

}  // namespace deepinfer::cuda
