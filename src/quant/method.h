// Checkpoints that other tools have quantized: what quantization_config says, and matrices of them as codes
// (quant/codes.h). One file a method; the table is in methods.cpp.
#pragma once

#include <boost/json/object.hpp>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/json_file.h"
#include "base/thread_pool.h"
#include "deepinfer/result.h"
#include "ops/linear_weight.h"
#include "tensor/raw_tensor.h"

namespace deepinfer {

using TensorMap = std::map<std::string, RawTensor>;

// Which part of a matrix to read: rows [first_row, +rows) and columns [first_col, +cols) of the whole matrix.
// What a rank of tensor parallelism needs: only this part is touched.
struct Cut {
  int64_t first_row = 0, rows = 0;
  int64_t first_col = 0, cols = 0;
};

struct MatrixRequest {
  std::string layer;           // "model.layers.0.mlp.down_proj"
  int64_t rows = 0, cols = 0;  // of the whole matrix
  std::optional<Cut> cut = {};
};

// A matrix in codes. Owns what it does not borrow from the checkpoint, which must outlive it.
struct CodedMatrix {
  DType dtype = DType::kU4;
  int64_t rows = 0, cols = 0;
  int64_t group = 0;
  DType scale_dtype = DType::kF16;
  int16_t zero = 0;
  float x_scale = 0;
  std::vector<int32_t> column_order;
  const std::byte* codes = nullptr;  // in own_codes or in the checkpoint
  Buffer own_codes;
  std::vector<std::byte> scales;  // [rows, groups] of scale_dtype
  std::vector<int16_t> zeros;     // [rows, groups], or empty

  int64_t groups() const { return (cols + group - 1) / group; }
  LinearPart part() const;      // borrows
  LinearSource source() const;  // of this one part, with its column order; borrows
};

// How far the columns of a matrix in codes belong together.
struct ColumnGroups {
  int64_t group = 0;      // columns that share a scale: cuts stand on multiples; cols: one scale a row
  bool permuted = false;  // sorted by group, in another order than x (act order): no cut gets whole groups
};

// What a checkpoint's quantization_config says. Immutable.
class QuantReader {
 public:
  virtual ~QuantReader() = default;

  // "awq", "gptq", "fp8", "int4" or "int8": what model.quantization may demand of it.
  virtual std::string_view kind() const = 0;
  // "AWQ 4-bit, groups of 128", for people.
  virtual std::string text() const = 0;
  // A matrix as codes; none when it stands in the checkpoint as plain numbers. kModel with the tensor's name:
  // missing, of another shape or dtype, or with a scale that is no number.
  virtual Result<std::optional<CodedMatrix>> read(const TensorMap& tensors, const MatrixRequest& request,
                                                  ThreadPool* pool) const = 0;
  // Of the same matrix, without reading its codes; none when it is plain or not there. kModel.
  virtual Result<std::optional<ColumnGroups>> columns(const TensorMap& tensors,
                                                      const MatrixRequest& request) const = 0;
};

struct QuantMethod {
  std::string_view name;  // quant_method
  std::string_view file;  // where old checkpoints have their settings instead, or empty
  Result<std::unique_ptr<QuantReader>> (*open)(const JsonObject& config);
};

std::span<const QuantMethod> quant_methods();

// By quant_method of `config`, or `fallback` when it has none. Null: only the KV cache is quantized. kModel:
// an unknown method, bits, group size, ...
Result<std::unique_ptr<QuantReader>> open_quantization(const JsonObject& config, std::string_view fallback);

// One function a method, each in its own file.
Result<std::unique_ptr<QuantReader>> open_awq(const JsonObject& config);
Result<std::unique_ptr<QuantReader>> open_gptq(const JsonObject& config);
Result<std::unique_ptr<QuantReader>> open_fp8(const JsonObject& config);
Result<std::unique_ptr<QuantReader>> open_compressed_tensors(const JsonObject& config);

}  // namespace deepinfer
