// FP8 (e4m3) matrices as transformers and vLLM write them: weight [N, K], and weight_scale (one, or one a
// row) or weight_scale_inv (one a block, as DeepSeek-V3 defines it); value = code * scale in both cases.
// Source: vLLM, model_executor/layers/quantization/fp8.py; transformers, integrations/finegrained_fp8.py.
#include "base/check.h"
#include "base/shown.h"
#include "quant/unpack.h"

namespace deepinfer {
namespace {

class Fp8 final : public QuantReader {
 public:
  Fp8(ScaleBlocks blocks, bool fixed_x) : blocks_(blocks), fixed_x_(fixed_x) {}

  std::string_view kind() const override { return "fp8"; }
  std::string text() const override {
    const std::string x = fixed_x_ ? ", activations scaled as calibrated" : "";
    return blocks_.rows != 0 ? fmt::format("FP8, blocks of {}x{}{}", blocks_.rows, blocks_.cols, x)
                             : "FP8" + x;
  }
  Result<std::optional<CodedMatrix>> read(const TensorMap& tensors, const MatrixRequest& m,
                                          ThreadPool* pool) const override;
  Result<std::optional<ColumnGroups>> columns(const TensorMap& tensors,
                                              const MatrixRequest& m) const override {
    if (is_dense(tensors, m.layer)) return std::optional<ColumnGroups>();
    return std::optional(ColumnGroups{.group = blocks_.rows != 0 ? blocks_.cols : m.cols});
  }

 private:
  ScaleBlocks blocks_;
  bool fixed_x_;
};

Result<std::optional<CodedMatrix>> Fp8::read(const TensorMap& tensors, const MatrixRequest& m,
                                             ThreadPool* pool) const {
  // The dtype tells which layers are plain; modules_to_not_convert (ignored_layers) says the same again.
  if (is_dense(tensors, m.layer)) return std::optional<CodedMatrix>();
  const char* suffix = blocks_.rows != 0 ? "weight_scale_inv" : "weight_scale";
  const RawTensor* scales = find(tensors, m.layer, suffix);
  if (scales == nullptr && find(tensors, m.layer, "weight") != nullptr)
    return make_error(
        ErrorCode::kModel,
        "the tensor {}.{} is missing, but {}.weight is quantized: the checkpoint is incomplete; "
        "get it again, or quantize it again",
        m.layer, suffix, m.layer);
  if (scales == nullptr) DI_TRY(need(tensors, m.layer, "weight", {m.rows, m.cols}, {DType::kF8E4M3}));
  DI_ASSIGN(CodedMatrix out, read_bytes(tensors, m, DType::kF8E4M3, *scales, blocks_, pool));
  if (fixed_x_) {
    DI_ASSIGN(out.x_scale, read_x_scale(tensors, m.layer));
  }
  return std::optional(std::move(out));
}

}  // namespace

Result<std::unique_ptr<QuantReader>> open_fp8(const JsonObject& config) {
  DI_ASSIGN(const auto form, config.string("fmt"));
  if (form && *form != "e4m3")
    return make_error(ErrorCode::kModel, "{}: fmt is '{}', expected e4m3", config.name(), shown(*form));
  DI_ASSIGN(const auto scheme, config.string("activation_scheme"));
  if (scheme && *scheme != "dynamic" && *scheme != "static")
    return make_error(ErrorCode::kModel, "{}: activation_scheme is '{}', expected dynamic or static",
                      config.name(), shown(*scheme));
  DI_ASSIGN(const ScaleBlocks blocks, block_size(config, "weight_block_size"));
  return std::unique_ptr<QuantReader>(std::make_unique<Fp8>(blocks, scheme.value_or("dynamic") == "static"));
}

}  // namespace deepinfer
