// compressed-tensors, what llm-compressor writes. Source: compressed-tensors, quantization/quant_config.py
// and compressors/: pack-quantized has weight_packed [N, K * bits / 32] with value + 2^(bits - 1) along K,
// low bits first, weight_scale [N, groups], weight_zero_point packed the same way along N, and weight_g_idx
// [K]; float-quantized, int-quantized and naive-quantized have weight [N, K] of F8_E4M3 or I8.
#include <algorithm>

#include "base/check.h"
#include "base/shown.h"
#include "quant/layer_pattern.h"
#include "quant/unpack.h"

namespace deepinfer {
namespace {

struct Scheme {
  int bits = 4;
  bool floats = false;
  bool symmetric = true;
  bool act_order = false;
  bool fixed_x = false;  // input_activations are not dynamic
  int64_t group = -1;    // -1: one scale a row, or one in all
  ScaleBlocks blocks;

  std::string text() const {
    std::string out = floats ? std::string("FP8") : fmt::format("{}-bit integers", bits);
    if (blocks.rows != 0) out += fmt::format(", blocks of {}x{}", blocks.rows, blocks.cols);
    if (group > 0) out += fmt::format(", groups of {}", group);
    return out + (act_order ? ", act order" : "");
  }
};

struct Target {
  LayerList layers;
  bool all = false;  // "Linear"
  Scheme scheme;
};

class CompressedTensors final : public QuantReader {
 public:
  std::vector<Target> targets;
  LayerList plain;

  std::string_view kind() const override {
    const Scheme& s = targets.front().scheme;
    if (s.floats) return "fp8";
    return s.bits == 4 ? "int4" : "int8";
  }
  std::string text() const override {
    return fmt::format("compressed-tensors {}{}", targets.front().scheme.text(),
                       targets.size() > 1 ? ", and others" : "");
  }
  Result<std::optional<CodedMatrix>> read(const TensorMap& tensors, const MatrixRequest& m,
                                          ThreadPool* pool) const override;
  Result<std::optional<ColumnGroups>> columns(const TensorMap& tensors,
                                              const MatrixRequest& m) const override;

 private:
  // Null: the layer's numbers are plain.
  Result<const Scheme*> scheme_for(const TensorMap& tensors, const std::string& layer) const;
  // The layer's own name before the class of it.
  const Scheme* scheme_of(const std::string& layer) const {
    for (const Target& t : targets)
      if (t.layers.has(layer)) return &t.scheme;
    for (const Target& t : targets)
      if (t.all) return &t.scheme;
    return nullptr;
  }
};

Result<void> packed_zeros(const TensorMap& tensors, const MatrixRequest& m, const GroupCut& cut, int bits,
                          ThreadPool* pool, CodedMatrix& out) {
  const RawTensor* t = find(tensors, m.layer, "weight_zero_point");
  if (t != nullptr && t->dtype == DType::kI8) {  // as versions before 0.9 wrote them
    DI_TRY(need(tensors, m.layer, "weight_zero_point", {m.rows, cut.all}, {DType::kI8}));
    const auto* values = reinterpret_cast<const int8_t*>(t->data);
    const int16_t middle = static_cast<int16_t>(1 << (bits - 1));
    take_zeros(
        cut, [&](int64_t row, int64_t g) { return static_cast<int16_t>(values[row * cut.all + g] + middle); },
        pool, out);
    return {};
  }
  const int64_t per_word = 32 / bits, words = (m.rows + per_word - 1) / per_word;
  DI_ASSIGN(t, need(tensors, m.layer, "weight_zero_point", {words, cut.all}, {DType::kI32}));
  const auto* values = reinterpret_cast<const uint32_t*>(t->data);
  const uint32_t mask = (1u << bits) - 1;
  take_zeros(
      cut,
      [&](int64_t row, int64_t g) {
        return static_cast<int16_t>(values[row / per_word * cut.all + g] >> row % per_word * bits & mask);
      },
      pool, out);
  return {};
}

Result<std::vector<int32_t>> column_order(const TensorMap& tensors, const MatrixRequest& m, const Scheme& s,
                                          int64_t group) {
  if (!s.act_order && find(tensors, m.layer, "weight_g_idx") == nullptr) return std::vector<int32_t>();
  DI_ASSIGN(const RawTensor* g_idx, need(tensors, m.layer, "weight_g_idx", {m.cols}, {DType::kI32}));
  return sorted_columns(*g_idx, group);
}

Result<CodedMatrix> read_packed(const TensorMap& tensors, const MatrixRequest& m, const Scheme& s,
                                ThreadPool* pool) {
  const int64_t K = m.cols, group = s.group < 0 ? K : std::min(s.group, K);
  const int64_t words = (K * s.bits + 31) / 32;
  DI_ASSIGN(const RawTensor* packed, need(tensors, m.layer, "weight_packed", {m.rows, words}, {DType::kI32}));
  DI_ASSIGN(const GroupCut cut, cut_groups(m, group));
  const RawTensor* scales = find(tensors, m.layer, "weight_scale");
  const bool one = scales != nullptr && s.group < 0 && scales->shape == std::vector<int64_t>{1};
  if (one) {
    DI_ASSIGN(scales, need(tensors, m.layer, "weight_scale", {1}, kScaleDtypes));
  } else {
    DI_ASSIGN(scales, need(tensors, m.layer, "weight_scale", {m.rows, cut.all}, kScaleDtypes));
  }
  CodedMatrix out{
      .dtype = s.bits == 4 ? DType::kU4 : DType::kU8, .rows = cut.rows, .cols = cut.cols, .group = cut.group};
  out.zero = s.bits == 4 ? 8 : 128;
  DI_ASSIGN(out.column_order, column_order(tensors, m, s, group));
  DI_TRY(check_order_cut(m, out));
  DI_TRY(take_scales(
      *scales, cut, [&](int64_t row, int64_t g) { return one ? 0 : row * cut.all + g; }, pool, out));
  if (!s.symmetric) DI_TRY(packed_zeros(tensors, m, cut, s.bits, pool, out));
  const auto* codes = reinterpret_cast<const uint32_t*>(packed->data);
  const auto unpack = [&](int64_t first, int64_t count, uint8_t* to, int64_t stride) {
    const int per_word = 32 / s.bits;
    const bool whole = cut.first_col % per_word == 0;
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t* row = codes + (first + i) * words;
      int64_t c = 0;
      for (; whole && c + per_word <= cut.cols; c += per_word)
        put_word(row[(cut.first_col + c) / per_word], s.bits, to + i * stride + c);
      for (; c < cut.cols; ++c)
        to[i * stride + c] = static_cast<uint8_t>(field(row, cut.first_col + c, s.bits));
    }
  };
  DI_TRY(take_codes(cut, unpack, pool, out));
  return out;
}

// I8 or F8_E4M3 under layer.weight.
Result<CodedMatrix> read_plain_bytes(const TensorMap& tensors, const MatrixRequest& m, const Scheme& s,
                                     ThreadPool* pool) {
  const RawTensor* scales = find(tensors, m.layer, "weight_scale");
  const DType stored = s.floats ? DType::kF8E4M3 : DType::kI8;
  DI_TRY(need(tensors, m.layer, "weight", {m.rows, m.cols}, {stored}));
  if (scales == nullptr) DI_TRY(need(tensors, m.layer, "weight_scale", {m.rows, 1}, kScaleDtypes));
  const ScaleBlocks blocks = s.group > 0 ? ScaleBlocks{1, s.group} : s.blocks;
  DI_ASSIGN(CodedMatrix out, read_bytes(tensors, m, stored, *scales, blocks, pool));
  if (s.floats && s.fixed_x) {
    DI_ASSIGN(out.x_scale, read_x_scale(tensors, m.layer));
  }
  if (s.symmetric) return out;
  DI_ASSIGN(const GroupCut cut, cut_groups(m, s.group > 0 ? s.group : m.cols));
  DI_TRY(need(tensors, m.layer, "weight_zero_point", {m.rows, cut.all}, {DType::kI8}));
  DI_TRY(packed_zeros(tensors, m, cut, 8, pool, out));
  return out;
}

Result<const Scheme*> CompressedTensors::scheme_for(const TensorMap& tensors,
                                                    const std::string& layer) const {
  const bool packed = find(tensors, layer, "weight_packed") != nullptr;
  if (is_dense(tensors, layer) && (!packed || plain.has(layer))) return nullptr;
  const Scheme* s = scheme_of(layer);
  if (s != nullptr) return s;
  return make_error(ErrorCode::kModel,
                    "{}: quantized, but no target of quantization_config's config_groups names it", layer);
}

Result<std::optional<ColumnGroups>> CompressedTensors::columns(const TensorMap& tensors,
                                                               const MatrixRequest& m) const {
  DI_ASSIGN(const Scheme* s, scheme_for(tensors, m.layer));
  if (s == nullptr) return std::optional<ColumnGroups>();
  if (s->group <= 0 && s->blocks.rows != 0) return std::optional(ColumnGroups{.group = s->blocks.cols});
  const int64_t group = s->group <= 0 ? m.cols : std::min(s->group, m.cols);
  if (find(tensors, m.layer, "weight_packed") == nullptr) return std::optional(ColumnGroups{.group = group});
  DI_ASSIGN(const std::vector<int32_t> order, column_order(tensors, m, *s, group));
  return std::optional(ColumnGroups{.group = group, .permuted = !order.empty()});
}

Result<std::optional<CodedMatrix>> CompressedTensors::read(const TensorMap& tensors, const MatrixRequest& m,
                                                           ThreadPool* pool) const {
  DI_ASSIGN(const Scheme* s, scheme_for(tensors, m.layer));
  if (s == nullptr) return std::optional<CodedMatrix>();
  const bool packed = find(tensors, m.layer, "weight_packed") != nullptr;
  if (packed || find(tensors, m.layer, "weight") == nullptr) {
    DI_ASSIGN(CodedMatrix out, read_packed(tensors, m, *s, pool));
    return std::optional(std::move(out));
  }
  DI_ASSIGN(CodedMatrix out, read_plain_bytes(tensors, m, *s, pool));
  return std::optional(std::move(out));
}

Result<Scheme> read_scheme(const JsonObject& group) {
  DI_ASSIGN(const auto weights, group.object("weights"));
  if (!weights) return make_error(ErrorCode::kModel, "{}: weights is missing", group.name());
  Scheme s;
  DI_ASSIGN(const int64_t bits, weights->required_integer("num_bits", 1, 64));
  DI_ASSIGN(const auto type, weights->string("type"));
  DI_ASSIGN(const auto symmetric, weights->boolean("symmetric"));
  DI_ASSIGN(const auto group_size, weights->integer("group_size", -1, 1 << 24));
  DI_ASSIGN(const auto strategy, weights->string("strategy"));
  DI_ASSIGN(s.blocks, block_size(*weights, "block_structure"));
  s.bits = static_cast<int>(bits);
  s.floats = type == "float";
  s.symmetric = symmetric.value_or(true);
  s.group = group_size.value_or(-1) > 0 ? *group_size : -1;
  // true and "group" mean that groups follow the order; "weight" (and "static") that columns stand as they
  // were.
  const boost::json::value* order = weights->find("actorder");
  s.act_order =
      order != nullptr &&
      ((order->is_bool() && order->get_bool()) ||
       (order->is_string() && (order->get_string() == "group" || order->get_string() == "dynamic")));
  if (s.floats ? bits != 8 : bits != 4 && bits != 8)
    return make_error(ErrorCode::kModel, "{}: {} of {} bits, expected int of 4 or 8, or float of 8",
                      weights->name(), shown(type.value_or("int")), bits);
  if (s.group > 0 && s.group % 32 != 0)
    return make_error(ErrorCode::kModel, "{}: group_size is {}, expected a multiple of 32", weights->name(),
                      s.group);
  if (strategy == "group" && s.group < 0)
    return make_error(ErrorCode::kModel, "{}: strategy is group, but group_size is missing", weights->name());
  DI_ASSIGN(const auto x, group.object("input_activations"));
  if (x) {
    const boost::json::value* dynamic = x->find("dynamic");
    s.fixed_x = dynamic == nullptr || (dynamic->is_bool() && !dynamic->get_bool());
  }
  return s;
}

Result<void> check_format(const JsonObject& config) {
  DI_ASSIGN(const auto format, config.string("format"));
  for (const char* known :
       {"pack-quantized", "float-quantized", "int-quantized", "naive-quantized", "mixed-precision"})
    if (!format || *format == known) return {};
  return make_error(ErrorCode::kModel,
                    "{}: format is '{}', expected pack-quantized, float-quantized, int-quantized or "
                    "naive-quantized: save the model again in one of these",
                    config.name(), shown(*format));
}

}  // namespace

Result<std::unique_ptr<QuantReader>> open_compressed_tensors(const JsonObject& config) {
  DI_ASSIGN(const auto groups, config.object("config_groups"));
  // Only the KV cache is quantized: the matrices stand as they are, in the format "dense".
  const bool cache_only = config.find("kv_cache_scheme") != nullptr && (!groups || groups->object().empty());
  if (cache_only) return std::unique_ptr<QuantReader>();
  DI_TRY(check_format(config));
  DI_ASSIGN(const auto sparsity, config.object("sparsity_config"));
  if (sparsity) {
    DI_ASSIGN(const auto format, sparsity->string("format"));
    if (format && *format != "dense")
      return make_error(ErrorCode::kModel,
                        "{}: format is '{}', expected dense: sparse weights are not supported",
                        sparsity->name(), shown(*format));
  }
  if (!groups) return make_error(ErrorCode::kModel, "{}: config_groups is missing", config.name());
  auto out = std::make_unique<CompressedTensors>();
  for (const auto& [key, value] : groups->object()) {
    const std::string name = fmt::format("{}: {}", groups->name(), shown(std::string_view(key)));
    DI_ASSIGN(const JsonObject group, as_object(value, name));
    DI_TRY(check_format(group));
    Target t;
    DI_ASSIGN(t.scheme, read_scheme(group));
    DI_ASSIGN(t.layers, LayerList::read(group, {"targets"}));
    t.all = t.layers.lists("Linear");
    out->targets.push_back(std::move(t));
  }
  if (out->targets.empty())
    return make_error(ErrorCode::kModel, "{}: config_groups is empty, expected what is quantized and how",
                      config.name());
  DI_ASSIGN(out->plain, LayerList::read(config, {"ignore"}));
  return std::unique_ptr<QuantReader>(std::move(out));
}

}  // namespace deepinfer
