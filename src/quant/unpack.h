// What the methods share: finding tensors, scales, and codes that stand packed in words of 32 bits.
#pragma once

#include <cstring>
#include <functional>
#include <string>

#include "quant/method.h"

namespace deepinfer {

// Which groups of a request's columns are asked for. kUnsupported when the cut is not on group boundaries.
struct GroupCut {
  int64_t group = 0;                    // columns
  int64_t all = 0;                      // groups of the whole matrix
  int64_t first_group = 0, groups = 0;  // of the cut
  int64_t first_row = 0, rows = 0;
  int64_t first_col = 0, cols = 0;
};
Result<GroupCut> cut_groups(const MatrixRequest& request, int64_t group);

// The tensor layer.suffix; kModel unless it exists with this shape and one of these dtypes.
Result<const RawTensor*> need(const TensorMap& tensors, const std::string& layer, std::string_view suffix,
                              const std::vector<int64_t>& shape, std::initializer_list<DType> dtypes);
const RawTensor* find(const TensorMap& tensors, const std::string& layer, std::string_view suffix);
// A matrix of plain numbers (F32, F16, BF16) under layer.weight.
bool is_dense(const TensorMap& tensors, const std::string& layer);

constexpr auto kScaleDtypes = {DType::kF16, DType::kBF16, DType::kF32};

// Fills the scales of `out` from a tensor in which scale (row, group) stands at `at(row, group)` of the whole
// matrix. kModel: a scale that is no finite number.
Result<void> take_scales(const RawTensor& scales, const GroupCut& cut,
                         const std::function<int64_t(int64_t row, int64_t group)>& at, ThreadPool* pool,
                         CodedMatrix& out);

// Zero points, the same way; dropped when all are the default of the dtype.
void take_zeros(const GroupCut& cut, const std::function<int16_t(int64_t row, int64_t group)>& zero,
                ThreadPool* pool, CodedMatrix& out);

// Writes the codes of rows [first, first + count) of the whole matrix, one a byte: row r, column c of the cut
// to out[(r - first) * stride + c].
using UnpackRows = std::function<void(int64_t first, int64_t count, uint8_t* out, int64_t stride)>;

// Codes of 4 or 8 bits into out.own_codes, split over the pool; columns in out.column_order when it has one.
Result<void> take_codes(const GroupCut& cut, const UnpackRows& unpack, ThreadPool* pool, CodedMatrix& out);

// The eight codes of a word of 4 bits each, low bits first, one a byte.
inline uint64_t spread(uint32_t word) {
  uint64_t x = word;
  x = (x | x << 16) & 0x0000ffff0000ffffu;
  x = (x | x << 8) & 0x00ff00ff00ff00ffu;
  return (x | x << 4) & 0x0f0f0f0f0f0f0f0fu;
}

// x as 8 x 8 bytes, transposed.
void transpose8(uint64_t (&x)[8]);

// The codes of one word of 4 or 8 bits to 8 or 4 bytes.
inline void put_word(uint32_t word, int bits, uint8_t* out) {
  if (bits == 8) {
    std::memcpy(out, &word, sizeof word);
    return;
  }
  const uint64_t bytes = spread(word);
  std::memcpy(out, &bytes, sizeof bytes);
}

// Field `index` of words of 32 bits, low bits first; bits is 4 or 8.
inline uint32_t field(const uint32_t* words, int64_t index, int bits) {
  const int per_word = 32 / bits;
  return words[index / per_word] >> (index % per_word * bits) & ((1u << bits) - 1);
}

// The columns sorted by their group in g_idx [K]; empty when they stand so. kModel unless this gives whole
// groups.
Result<std::vector<int32_t>> sorted_columns(const RawTensor& g_idx, int64_t group);
// kUnsupported: a matrix in another column order, of which only some columns are asked for.
Result<void> check_order_cut(const MatrixRequest& request, const CodedMatrix& out);

// A single finite number above zero: an input scale. 0 when the tensor is missing.
Result<float> read_x_scale(const TensorMap& tensors, const std::string& layer);

// The columns and rows that share a scale; 0: one scale a row, or one in all.
struct ScaleBlocks {
  int64_t rows = 0, cols = 0;
};
// [rows, columns] under `key`; none when absent.
Result<ScaleBlocks> block_size(const JsonObject& config, const char* key);

// layer.weight of F8_E4M3 or I8 (as U8 with zero point 128) with its scales. F8 is borrowed unless columns
// are cut.
Result<CodedMatrix> read_bytes(const TensorMap& tensors, const MatrixRequest& request, DType stored,
                               const RawTensor& scales, ScaleBlocks blocks, ThreadPool* pool);

}  // namespace deepinfer
