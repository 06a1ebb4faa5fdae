// Where the parts of a packed block stand: a count of the rows that are changed, their indices, the rows, the
// lists. What is in use is a beginning of it.
#pragma once

#include "backend/cuda/sample.h"

namespace deepinfer::cuda {

inline constexpr uint32_t kSamplePadding = 1;    // writes its slot's last token only
inline constexpr uint32_t kSampleGreedy = 2;     // temperature 0
inline constexpr uint32_t kSampleChanged = 4;    // bias, banned tokens or penalties: needs a row of scratch
inline constexpr uint32_t kSamplePenalties = 8;  // counts tokens
inline constexpr uint32_t kSampleExtra = 16;     // has a DeviceShape
inline constexpr uint32_t kSampleShaped = 32;    // SampleRow::shaped(): draws by it
inline constexpr uint32_t kSampleMirostat = 64;  // tells its surprise

// What only few rows ask for. It stands in the lists, in the words before the row's bias, so that the others
// do not copy it.
struct DeviceShape {
  float temperature = 1;
  float typical_p = 1, top_n_sigma = -1;
  float xtc_probability = 0, xtc_threshold = 0;  // probability 0: off
  float dynatemp_range = 0, dynatemp_exponent = 1;
  int32_t mirostat = 0;
  float mu = 0;
  ListSpan late;  // pairs of token and bias, a token at most once
};
inline constexpr int32_t kShapeWords = sizeof(DeviceShape) / sizeof(int32_t);

inline constexpr size_t align16(size_t bytes) {
  return (bytes + 15) / 16 * 16;
}
inline constexpr size_t rows_offset(const SampleBlockLayout& layout) {
  return align16((1 + static_cast<size_t>(layout.max_rows)) * sizeof(int32_t));
}
inline constexpr size_t lists_offset(const SampleBlockLayout& layout) {
  return rows_offset(layout) + align16(static_cast<size_t>(layout.max_rows) * sizeof(DeviceSampleRow));
}

// What the lists of these rows take.
int32_t list_words(std::span<const SampleRow> rows, bool history);

// sample_device()'s arguments; with blocks of fewer threads for the emulation.
struct SampleCall {
  const Tensor& logits;
  const DeviceSampleBlock& block;
  const DeviceBatch& batch;
  int32_t block_size = 1;
  const SampleOutputs& out;
  std::byte* scratch = nullptr;
};
void sample_device_with(int threads, Gpu& gpu, const SampleCall& call);

// Rows of scratch that fit its 64 MB: as many changed rows are worked on at a time.
int32_t scratch_rows(int32_t max_rows, int64_t vocab);

}  // namespace deepinfer::cuda
