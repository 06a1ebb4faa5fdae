// GPTQ. Source: AutoGPTQ, auto_gptq/nn_modules/qlinear; GPTQModel, gptqmodel/nn_modules/qlinear/__init__.py
// and utils/model.py (v1 and v2): qweight [K * bits / 32, N] holds the codes of a column of N one after
// another along K, low bits first; qzeros [groups, N * bits / 32] along N; scales [groups, N]; g_idx [K] is
// the group of each input. value = (code - zero) * scale. Version 1 stores zero - 1.
#include <algorithm>

#include "base/check.h"
#include "base/shown.h"
#include "quant/layer_pattern.h"
#include "quant/unpack.h"

namespace deepinfer {
namespace {

struct Settings {
  int bits = 4;
  int64_t group = 128;  // -1: the whole row
  bool act_order = false;
};

// GPTQModel's `dynamic`: "+:PATTERN" or "PATTERN" with settings of its own, "-:PATTERN" for plain numbers.
struct Exception {
  LayerPattern pattern;
  bool plain = false;
  std::optional<int64_t> bits, group;
};

class Gptq final : public QuantReader {
 public:
  Settings settings;
  bool v2 = false;
  LayerList plain;
  std::vector<Exception> exceptions;

  std::string_view kind() const override { return "gptq"; }
  std::string text() const override {
    const std::string groups =
        settings.group < 0 ? "one scale a row" : fmt::format("groups of {}", settings.group);
    return fmt::format("GPTQ {}-bit, {}{}", settings.bits, groups, settings.act_order ? ", act order" : "");
  }
  Result<std::optional<CodedMatrix>> read(const TensorMap& tensors, const MatrixRequest& m,
                                          ThreadPool* pool) const override;
  Result<std::optional<ColumnGroups>> columns(const TensorMap& tensors,
                                              const MatrixRequest& m) const override;

 private:
  std::optional<Settings> settings_of(const TensorMap& tensors, const std::string& layer) const;
};

// None: the layer's numbers are plain.
std::optional<Settings> Gptq::settings_of(const TensorMap& tensors, const std::string& layer) const {
  Settings s = settings;
  bool wants_plain = plain.has(layer);
  for (const Exception& e : exceptions) {
    if (!e.pattern.matches(layer)) continue;
    wants_plain |= e.plain;
    s.bits = static_cast<int>(e.bits.value_or(s.bits));
    s.group = e.group.value_or(s.group);
    break;
  }
  if (is_dense(tensors, layer) && (wants_plain || find(tensors, layer, "qweight") == nullptr)) return {};
  return s;
}

Result<std::vector<int32_t>> column_order(const TensorMap& tensors, const MatrixRequest& m, const Settings& s,
                                          int64_t group) {
  if (!s.act_order && find(tensors, m.layer, "g_idx") == nullptr) return std::vector<int32_t>();
  DI_ASSIGN(const RawTensor* g_idx, need(tensors, m.layer, "g_idx", {m.cols}, {DType::kI32}));
  return sorted_columns(*g_idx, group);
}

Result<std::optional<ColumnGroups>> Gptq::columns(const TensorMap& tensors, const MatrixRequest& m) const {
  const std::optional<Settings> s = settings_of(tensors, m.layer);
  if (!s) return std::optional<ColumnGroups>();
  const int64_t group = s->group < 0 ? m.cols : std::min(s->group, m.cols);
  DI_ASSIGN(const std::vector<int32_t> order, column_order(tensors, m, *s, group));
  return std::optional(ColumnGroups{.group = group, .permuted = !order.empty()});
}

Result<std::optional<CodedMatrix>> Gptq::read(const TensorMap& tensors, const MatrixRequest& m,
                                              ThreadPool* pool) const {
  const std::optional<Settings> found = settings_of(tensors, m.layer);
  if (!found) return std::optional<CodedMatrix>();
  const Settings& s = *found;
  const int64_t K = m.cols, N = m.rows, group = s.group < 0 ? K : std::min(s.group, K);
  const int64_t groups = (K + group - 1) / group, per_word = 32 / s.bits, words = N / per_word;
  if (N % per_word != 0 || K % per_word != 0)
    return make_error(ErrorCode::kModel, "{}: [{}, {}], expected multiples of {} ({} bits)", m.layer, N, K,
                      per_word, s.bits);
  DI_ASSIGN(const RawTensor* qweight, need(tensors, m.layer, "qweight", {K / per_word, N}, {DType::kI32}));
  DI_ASSIGN(const RawTensor* qzeros, need(tensors, m.layer, "qzeros", {groups, words}, {DType::kI32}));
  DI_ASSIGN(const RawTensor* scales, need(tensors, m.layer, "scales", {groups, N}, kScaleDtypes));
  DI_ASSIGN(const GroupCut cut, cut_groups(m, group));
  CodedMatrix out{
      .dtype = s.bits == 4 ? DType::kU4 : DType::kU8, .rows = cut.rows, .cols = cut.cols, .group = cut.group};
  DI_ASSIGN(out.column_order, column_order(tensors, m, s, group));
  DI_TRY(check_order_cut(m, out));
  DI_TRY(take_scales(*scales, cut, [N](int64_t row, int64_t g) { return g * N + row; }, pool, out));
  const auto* zeros = reinterpret_cast<const uint32_t*>(qzeros->data);
  const auto mask = static_cast<uint32_t>((1 << s.bits) - 1);
  take_zeros(
      cut,
      // A zero point 0 was stored as -1: only the bits of the field count.
      [&](int64_t row, int64_t g) {
        return static_cast<int16_t>((field(zeros + g * words, row, s.bits) + (v2 ? 0 : 1)) & mask);
      },
      pool, out);
  const auto* codes = reinterpret_cast<const uint32_t*>(qweight->data);
  const auto unpack = [&](int64_t first, int64_t count, uint8_t* to, int64_t stride) {
    const bool whole = cut.first_col % per_word == 0;
    int64_t c = 0;
    for (; whole && c + per_word <= cut.cols; c += per_word) {
      const uint32_t* row = codes + (cut.first_col + c) / per_word * N + first;
      for (int64_t i = 0; i < count; ++i) put_word(row[i], s.bits, to + i * stride + c);
    }
    for (; c < cut.cols; ++c) {
      const int64_t k = cut.first_col + c, shift = k % per_word * s.bits;
      const uint32_t* row = codes + k / per_word * N + first;
      for (int64_t i = 0; i < count; ++i) to[i * stride + c] = static_cast<uint8_t>(row[i] >> shift & mask);
    }
  };
  DI_TRY(take_codes(cut, unpack, pool, out));
  return std::optional(std::move(out));
}

Result<void> check(const JsonObject& config, const std::optional<int64_t>& bits,
                   const std::optional<int64_t>& group) {
  if (bits && *bits != 4 && *bits != 8)
    return make_error(ErrorCode::kModel, "{}: GPTQ of {} bits, expected 4 or 8", config.name(), *bits);
  if (group && *group != -1 && (*group < 32 || *group % 32 != 0))
    return make_error(ErrorCode::kModel, "{}: group_size is {}, expected a multiple of 32, or -1",
                      config.name(), *group);
  return {};
}

Result<std::vector<Exception>> read_exceptions(const JsonObject& config) {
  std::vector<Exception> out;
  const boost::json::value* dynamic = config.find("dynamic");
  if (dynamic == nullptr || dynamic->is_bool()) return out;
  if (!dynamic->is_object())
    return make_error(ErrorCode::kModel, "{}: dynamic is no object of patterns and settings", config.name());
  for (const auto& [key, value] : dynamic->get_object()) {
    std::string pattern(key);
    Exception e;
    e.plain = pattern.starts_with("-:");
    if (e.plain || pattern.starts_with("+:")) pattern.erase(0, 2);
    DI_ASSIGN(e.pattern, LayerPattern::compile(pattern, config.name() + ": dynamic"));
    if (value.is_object()) {
      const JsonObject own(value.get_object(), fmt::format("{}: dynamic: {}", config.name(), shown(pattern)));
      DI_ASSIGN(e.bits, own.integer("bits", 1, 64));
      DI_ASSIGN(e.group, own.integer("group_size", -1, 1 << 24));
      DI_TRY(check(own, e.bits, e.group));
    }
    out.push_back(std::move(e));
  }
  return out;
}

}  // namespace

Result<std::unique_ptr<QuantReader>> open_gptq(const JsonObject& config) {
  DI_ASSIGN(const int64_t bits, config.required_integer("bits", 1, 64));
  DI_ASSIGN(const auto group, config.integer("group_size", -1, 1 << 24));
  DI_TRY(check(config, bits, group));
  DI_ASSIGN(const auto act_order, config.boolean("desc_act"));
  DI_ASSIGN(const auto form, config.string("checkpoint_format"));
  if (form && *form != "gptq" && *form != "gptq_v2")
    return make_error(
        ErrorCode::kModel,
        "{}: checkpoint_format is '{}', expected gptq or gptq_v2: save the model again in one of "
        "these",
        config.name(), shown(*form));
  auto out = std::make_unique<Gptq>();
  out->settings = {static_cast<int>(bits), group.value_or(-1), act_order.value_or(false)};
  out->v2 = form == "gptq_v2";
  DI_ASSIGN(out->plain, LayerList::read(config, {"modules_to_not_convert"}));
  DI_ASSIGN(out->exceptions, read_exceptions(config));
  return std::unique_ptr<QuantReader>(std::move(out));
}

}  // namespace deepinfer
