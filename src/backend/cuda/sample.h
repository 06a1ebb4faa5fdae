// Sampling on the device: rows of logits become tokens without the host. No CUDA header is needed to include
// this.
//
// What a step's rows ask for is packed by the host into one block, which is copied in one piece; what a
// grammar allows comes later, in an array of its own, so that it may be computed while forward runs. The
// kernel reads both at fixed addresses, so it can be captured into a graph; the block of a later step then
// decides what it does. Rows that pad a graph are rows of the block too.
//
// A row's result depends on the row alone. Weights are summed as integers, so no order of summation shows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "backend/cuda/device_batch.h"
#include "ops/params.h"

namespace deepinfer::cuda {

class Gpu;

inline constexpr int64_t kMaxSampleVocab = 1 << 21;  // larger vocabularies are refused

// A part of the block's lists, in words of 4 bytes.
struct ListSpan {
  int32_t begin = 0, count = 0;  // count: of entries
};

// One row as the kernel reads it.
struct DeviceSampleRow {
  uint64_t seed = 0;
  int64_t position = 0;  // of the token to be drawn, where the batch does not say
  double floor = 0;      // log(min_p) * temperature
  float scale = 1;       // 1 / temperature
  float top_p = 1, min_p = 0;
  float presence = 0, frequency = 0, repetition = 1;
  int32_t top_k = 0;
  int32_t slot = 0;
  int32_t logprobs = -1;
  int32_t mask = -1;        // row of the masks; -1: all tokens are allowed
  int32_t prompt_len = 0;   // tokens of the history that are prompt
  ListSpan bias;            // pairs of token and bias, by token
  ListSpan banned, tokens;  // tokens: prompt and output where there is no history
  uint32_t flags = 0;
};

// Sizes of a block, fixed while graphs that read it live.
struct SampleBlockLayout {
  int32_t max_rows = 0;    // padding included
  int32_t list_words = 0;  // for all lists of a step: see list_words()
};

// Multiple of 16, as the block's address must be.
size_t sample_block_bytes(const SampleBlockLayout& layout);

// A packed block in the device's memory (or a step's pinned memory: the same layout).
struct DeviceSampleBlock {
  std::byte* data = nullptr;  // [sample_block_bytes]
  SampleBlockLayout layout;
  const uint32_t* masks = nullptr;  // [max_rows][mask_words(vocab)], rows as pack_masks() numbers them
  int32_t first_row = 0;            // of the block: what row 0 of the logits is, when they come in pieces
  bool shaped = false;              // Packed::shaped: one more kernel
};

struct SamplePacking {
  SampleBlockLayout layout;
  int32_t rows = 0;        // in the block: those given, then padding; 0: no padding
  int32_t dummy_slot = 0;  // of padding
  int64_t vocab = 0;
  // Penalties read DeviceBatch::history, and of SampleRow::prompt only the size counts. Else prompt and
  // output are packed, as lists.
  bool history = true;
};

struct Packed {
  size_t bytes = 0;        // of the block that are in use: copy so many
  int32_t list_words = 0;  // that the rows need
  bool shaped = false;     // some row asks for llama.cpp's samplers
  bool fits = false;       // false: nothing is packed, the layout needs more rows or list_words
};

// Writes the block's bytes at `host`. Rows ask for at most kMaxTopLogprobs.
Packed pack_sample_block(std::span<const SampleRow> rows, const SamplePacking& packing, std::byte* host);

inline int64_t mask_words(int64_t vocab) {
  return (vocab + 31) / 32;
}
// The masks of the rows that have one, in the rows' order. Returns the bytes to copy. Whether a row has a
// mask is known when the block is packed; what the mask says is read only here.
size_t pack_masks(std::span<const SampleRow> rows, int64_t vocab, uint32_t* host);

// Where results go, in the device's memory. Of a row's logprobs only what it asks for is written; padding
// writes its slot's last_token and nothing else.
struct SampleOutputs {
  int32_t* token = nullptr;      // [S]
  float* logprob = nullptr;      // [S], or null when no row asks
  int32_t* top_token = nullptr;  // [S, top_stride]: -1 past the finite ones; or null when no row asks
  float* top_logprob = nullptr;  // [S, top_stride]: -inf there
  int64_t top_stride = kMaxTopLogprobs;
  int32_t* last_token = nullptr;  // [slots], or null
  float* surprise = nullptr;      // [S], or null when no row has mirostat
};

// Memory of the kernel: its owner zeroes it once, and every launch leaves it so. At most about 64 MB.
size_t sample_scratch_bytes(int32_t max_rows, int64_t vocab);

// logits: [S, V] F32 in the device's memory, not changed. batch: logit_token, position, and for penalties
// with a history the block tables; pass {} when the block has tokens in its lists. Asynchronous; may be
// captured: all that decides the launch is S, V, max_rows and shaped.
// `scratch`: sample_scratch_bytes(layout.max_rows, V).
void sample_device(Gpu& gpu, const Tensor& logits, const DeviceSampleBlock& block, const DeviceBatch& batch,
                   int32_t block_size, const SampleOutputs& out, std::byte* scratch);

}  // namespace deepinfer::cuda
