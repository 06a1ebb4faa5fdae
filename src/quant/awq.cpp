// AWQ in the layout of its GEMM kernels. Source: AutoAWQ, awq/modules/linear/gemm.py and
// awq/utils/packing_utils.py: qweight [K, N / 8] and qzeros [K / group, N / 8] hold eight columns of N a
// word, in the order 0 2 4 6 1 3 5 7; scales [K / group, N]; value = (code - zero) * scale.
#include <algorithm>

#include "base/check.h"
#include "base/shown.h"
#include "quant/layer_pattern.h"
#include "quant/unpack.h"

namespace deepinfer {
namespace {

constexpr int kPerWord = 8;
constexpr int kPlaceOf[kPerWord] = {0, 4, 1, 5, 2, 6, 3, 7};  // in its word, of column n % 8

// One word of each of `cols` rows of qweight: eight rows of the matrix.
void unpack_words(const uint32_t* words, int64_t pitch, int64_t cols, uint8_t* out, int64_t stride) {
  int64_t c = 0;
  for (; c + 8 <= cols; c += 8) {
    uint64_t block[8];
    for (int k = 0; k < 8; ++k) block[k] = spread(words[(c + k) * pitch]);
    transpose8(block);
    for (int n = 0; n < kPerWord; ++n) std::memcpy(out + n * stride + c, &block[kPlaceOf[n]], 8);
  }
  for (; c < cols; ++c)
    for (int n = 0; n < kPerWord; ++n)
      out[n * stride + c] = static_cast<uint8_t>(words[c * pitch] >> kPlaceOf[n] * 4 & 15);
}

class Awq final : public QuantReader {
 public:
  Awq(int64_t group, LayerList plain) : group_(group), plain_(std::move(plain)) {}

  std::string_view kind() const override { return "awq"; }
  std::string text() const override {
    return group_ < 0 ? std::string("AWQ 4-bit, one scale a row")
                      : fmt::format("AWQ 4-bit, groups of {}", group_);
  }
  Result<std::optional<CodedMatrix>> read(const TensorMap& tensors, const MatrixRequest& m,
                                          ThreadPool* pool) const override;
  Result<std::optional<ColumnGroups>> columns(const TensorMap& tensors,
                                              const MatrixRequest& m) const override {
    if (is_plain(tensors, m.layer)) return std::optional<ColumnGroups>();
    return std::optional(ColumnGroups{.group = group_ < 0 ? m.cols : group_});
  }

 private:
  bool is_plain(const TensorMap& tensors, const std::string& layer) const {
    return is_dense(tensors, layer) && (plain_.has(layer) || find(tensors, layer, "qweight") == nullptr);
  }

  int64_t group_;  // -1: the whole row
  LayerList plain_;
};

Result<std::optional<CodedMatrix>> Awq::read(const TensorMap& tensors, const MatrixRequest& m,
                                             ThreadPool* pool) const {
  if (is_plain(tensors, m.layer)) return std::optional<CodedMatrix>();
  const int64_t K = m.cols, N = m.rows, group = group_ < 0 ? K : group_;
  if (N % kPerWord != 0 || K % group != 0)
    return make_error(
        ErrorCode::kModel,
        "{}: {} rows and {} columns, expected a multiple of 8 rows and of {} columns (q_group_size)", m.layer,
        N, K, group);
  DI_ASSIGN(const GroupCut cut, cut_groups(m, group));
  const int64_t words = N / kPerWord;
  DI_ASSIGN(const RawTensor* qweight, need(tensors, m.layer, "qweight", {K, words}, {DType::kI32}));
  DI_ASSIGN(const RawTensor* qzeros, need(tensors, m.layer, "qzeros", {K / group, words}, {DType::kI32}));
  DI_ASSIGN(const RawTensor* scales, need(tensors, m.layer, "scales", {K / group, N}, kScaleDtypes));
  CodedMatrix out{.dtype = DType::kU4, .rows = cut.rows, .cols = cut.cols, .group = cut.group};
  DI_TRY(take_scales(*scales, cut, [N](int64_t row, int64_t g) { return g * N + row; }, pool, out));
  const auto* zeros = reinterpret_cast<const uint32_t*>(qzeros->data);
  take_zeros(
      cut,
      [&](int64_t row, int64_t g) {
        const uint32_t word = zeros[g * words + row / kPerWord];
        return static_cast<int16_t>(word >> kPlaceOf[row % kPerWord] * 4 & 15);
      },
      pool, out);
  const auto* codes = reinterpret_cast<const uint32_t*>(qweight->data);
  const auto one = [&](int64_t n, int64_t c) {
    const uint32_t word = codes[(cut.first_col + c) * words + n / kPerWord];
    return static_cast<uint8_t>(word >> kPlaceOf[n % kPerWord] * 4 & 15);
  };
  const auto unpack = [&](int64_t first, int64_t count, uint8_t* to, int64_t stride) {
    int64_t i = 0;
    for (; first % kPerWord == 0 && i + kPerWord <= count; i += kPerWord)
      unpack_words(codes + cut.first_col * words + (first + i) / kPerWord, words, cut.cols, to + i * stride,
                   stride);
    for (; i < count; ++i)
      for (int64_t c = 0; c < cut.cols; ++c) to[i * stride + c] = one(first + i, c);
  };
  DI_TRY(take_codes(cut, unpack, pool, out));
  return std::optional(std::move(out));
}

}  // namespace

Result<std::unique_ptr<QuantReader>> open_awq(const JsonObject& config) {
  // transformers writes bits and group_size, AutoAWQ itself w_bit and q_group_size.
  int64_t bits = 4, group = 128;
  for (const char* key : {"w_bit", "bits"}) {
    DI_ASSIGN(const auto given, config.integer(key, 1, 64));
    bits = given.value_or(bits);
  }
  for (const char* key : {"q_group_size", "group_size"}) {
    DI_ASSIGN(const auto given, config.integer(key, -1, 1 << 24));
    group = given.value_or(group);
  }
  DI_ASSIGN(const auto version, config.string("version"));
  std::string layout = version.value_or("gemm");
  std::transform(layout.begin(), layout.end(), layout.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
  if (bits != 4) return make_error(ErrorCode::kModel, "{}: AWQ of {} bits, expected 4", config.name(), bits);
  if (group != -1 && group != 32 && group != 64 && group != 128)
    return make_error(ErrorCode::kModel, "{}: AWQ groups of {}, expected 32, 64, 128 or -1", config.name(),
                      group);
  if (layout != "gemm")
    return make_error(ErrorCode::kModel,
                      "{}: AWQ in the layout '{}', expected gemm: quantize the model again with version GEMM",
                      config.name(), shown(layout));
  DI_ASSIGN(LayerList plain, LayerList::read(config, {"modules_to_not_convert"}));
  return std::unique_ptr<QuantReader>(std::make_unique<Awq>(group, std::move(plain)));
}

}  // namespace deepinfer
