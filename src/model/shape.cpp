#include "model/shape.h"

#include <boost/json.hpp>
#include <cmath>

#include "base/check.h"
#include "base/json_file.h"
#include "model/hf_config.h"
#include "model/model.h"
#include "model/quantization.h"
#include "quant/method.h"

namespace deepinfer {
namespace {

namespace json = boost::json;

// How often an integer of this name stands in an object, at any depth; the first one found.
const json::value* find_deep(const json::object& object, std::string_view key) {
  for (const auto& [name, value] : object) {
    if (std::string_view(name) == key && value.is_int64()) return &value;
    if (!value.is_object()) continue;
    if (const json::value* found = find_deep(value.get_object(), key)) return found;
  }
  return nullptr;
}

int64_t integer_of(const json::object& object, std::initializer_list<std::string_view> keys, int64_t absent) {
  for (const std::string_view key : keys)
    if (const json::value* v = find_deep(object, key)) return v->get_int64();
  return absent;
}

// Bits that a coded element takes, its share of scales and zero points included.
double coded_bits(const QuantReader& reader, const json::object& config, int64_t cols) {
  const std::string_view kind = reader.kind();
  if (kind == "fp8") return 8;
  const bool has_zeros = kind == "awq" || kind == "gptq";
  const auto bits =
      static_cast<double>(integer_of(config, {"bits", "w_bit", "num_bits"}, kind == "int8" ? 8 : 4));
  const int64_t group = integer_of(config, {"group_size", "q_group_size"}, has_zeros ? 128 : -1);
  const auto shared = static_cast<double>(group > 0 ? group : cols);
  return bits + (16 + (has_zeros ? bits : 0)) / shared;
}

Result<DType> dtype_of(const std::string& name, const std::string& file) {
  if (name.empty() || name == "auto" || name == "bfloat16") return DType::kBF16;
  if (name == "float16") return DType::kF16;
  if (name == "float32") return DType::kF32;
  return make_error(ErrorCode::kModel, "{}: dtype is '{}', expected bfloat16, float16 or float32", file,
                    name);
}

bool is_coded(const PlannedTensor& t) {
  return t.shape.size() == 2 && t.name.ends_with("_proj.weight");
}

// Coded matrices as large as the files leave them, where these were seen.
void scale_to_files(Checkpoint& c, size_t dense, size_t coded, int64_t file_bytes) {
  if (coded == 0 || file_bytes <= static_cast<int64_t>(dense)) return;
  const double factor =
      (static_cast<double>(file_bytes) - static_cast<double>(dense)) / static_cast<double>(coded);
  for (auto& [name, t] : c.weights.tensors)
    if (t.dtype == DType::kU8) t.bytes = static_cast<size_t>(static_cast<double>(t.bytes) * factor);
}

}  // namespace

std::vector<PlannedTensor> planned_tensors(const ModelConfig& c) {
  const int64_t H = c.hidden, Q = int64_t{c.heads} * c.head_dim, KV = int64_t{c.kv_heads} * c.head_dim;
  std::vector<PlannedTensor> all = {{"model.embed_tokens.weight", {c.vocab_size, H}},
                                    {"model.norm.weight", {H}}};
  if (!c.tied_head) all.push_back({"lm_head.weight", {c.vocab_size, H}});
  for (int i = 0; i < c.layers; ++i) {
    const std::string p = fmt::format("model.layers.{}.", i), a = p + "self_attn.", m = p + "mlp.";
    const auto add = [&](const std::string& name, std::vector<int64_t> shape, bool bias) {
      if (bias) all.push_back({name + ".bias", {shape.front()}});
      all.push_back({name + ".weight", std::move(shape)});
    };
    add(p + "input_layernorm", {H}, false);
    add(a + "q_proj", {Q, H}, c.attention_bias);
    add(a + "k_proj", {KV, H}, c.attention_bias);
    add(a + "v_proj", {KV, H}, c.attention_bias);
    add(a + "o_proj", {H, Q}, c.attention_bias);
    add(p + "post_attention_layernorm", {H}, false);
    add(m + "gate_proj", {c.ffn, H}, c.mlp_bias);
    add(m + "up_proj", {c.ffn, H}, c.mlp_bias);
    add(m + "down_proj", {H, c.ffn}, c.mlp_bias);
  }
  return all;
}

std::vector<KvGroupSpec> full_attention_groups(const ModelConfig& c, int layers, DType kv_dtype) {
  return {{.num_layers = layers,
           .kv_heads = c.kv_heads,
           .head_dim_k = c.head_dim,
           .head_dim_v = c.head_dim,
           .dtype = kv_dtype}};
}

Result<Checkpoint> planned_checkpoint(std::string_view config_json, const std::filesystem::path& folder,
                                      int64_t file_bytes) {
  const std::string name = (folder / "config.json").string();
  Checkpoint c;
  c.path = folder;
  DI_ASSIGN(const std::string arch, hf_arch(config_json, name));
  if (find_arch(arch) == nullptr)
    return make_error(ErrorCode::kModel, "{}: the architecture '{}' is not supported; supported: {}", name,
                      arch, known_archs());
  DI_ASSIGN(c.config, parse_hf_config(config_json, name));
  DI_ASSIGN(const DType dtype, dtype_of(c.config.dtype, name));
  if (c.config.dtype.empty() || c.config.dtype == "auto") c.config.dtype = "bfloat16";
  DI_ASSIGN(c.weights.quant, read_quantization(config_json, folder));
  DI_ASSIGN(const json::value root, parse_json(config_json, name));
  size_t dense = 0, coded = 0;
  for (PlannedTensor& p : planned_tensors(c.config)) {
    double elems = 1;
    for (const int64_t n : p.shape) elems *= static_cast<double>(n);
    if (elems > 1e15)
      return make_error(ErrorCode::kModel, "{}: {} has {:.0f} elements, expected at most 10^15", name, p.name,
                        elems);
    const bool codes = c.weights.quant != nullptr && is_coded(p);
    const double bits = codes ? coded_bits(*c.weights.quant, root.get_object(), p.shape[1])
                              : 8.0 * info(dtype).block_bytes / info(dtype).block_elems;
    RawTensor t{.dtype = codes ? DType::kU8 : dtype,
                .shape = std::move(p.shape),
                .bytes = static_cast<size_t>(std::ceil(elems * bits / 8)),
                .origin = name + ": " + p.name};
    (codes ? coded : dense) += t.bytes;
    c.weights.tensors.emplace(std::move(p.name), std::move(t));
  }
  scale_to_files(c, dense, coded, file_bytes);
  for (const auto& [tensor, t] : c.weights.tensors) c.weight_bytes += static_cast<int64_t>(t.bytes);
  return c;
}

}  // namespace deepinfer
