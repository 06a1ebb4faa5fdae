#include "model/gguf_model.h"

#include <algorithm>
#include <array>
#include <limits>
#include <utility>

#include "base/check.h"
#include "base/shown.h"
#include "model/gguf_metadata.h"

namespace deepinfer {
namespace {

constexpr int64_t kMaxInt = std::numeric_limits<int32_t>::max();

const GgufTensor* find_tensor(const GgufFile& file, std::string_view name) {
  const auto it = std::find_if(file.tensors.begin(), file.tensors.end(),
                               [&](const GgufTensor& t) { return t.name == name; });
  return it == file.tensors.end() ? nullptr : &*it;
}

Result<RopeScaling> read_rope_scaling(const GgufMetadata& meta, const std::string& prefix,
                                      const std::string& name) {
  RopeScaling scaling;
  DI_ASSIGN(const auto type, meta.string(prefix + "rope.scaling.type"));
  DI_ASSIGN(auto factor, meta.number(prefix + "rope.scaling.factor", 0.0, 1e6));
  if (!factor) {
    DI_ASSIGN(factor, meta.number(prefix + "rope.scale_linear", 0.0, 1e6));
  }
  if (type && *type != "none" && *type != "linear")
    return make_error(
        ErrorCode::kModel,
        "{}: {}rope.scaling.type is '{}', which is not supported; expected none or linear (llama 3's "
        "scaling comes as the tensor rope_freqs.weight)",
        name, prefix, shown(*type));
  // Without a type a factor means linear; a factor of 0 means none.
  if ((!type || *type == "linear") && factor && *factor != 0.0 && *factor != 1.0) {
    scaling.kind = RopeScaling::Kind::kLinear;
    scaling.factor = static_cast<float>(*factor);
  }
  return scaling;
}

Result<void> read_heads(const GgufMetadata& meta, const std::string& prefix, const std::string& name,
                        ModelConfig& config) {
  DI_ASSIGN(const int64_t heads, meta.required_integer(prefix + "attention.head_count", 1, 65536));
  DI_ASSIGN(const auto kv_heads, meta.integer(prefix + "attention.head_count_kv", 1, 65536));
  config.heads = static_cast<int>(heads);
  config.kv_heads = static_cast<int>(kv_heads.value_or(heads));
  if (config.heads % config.kv_heads != 0)
    return make_error(ErrorCode::kModel, "{}: {} attention heads do not divide into {} key/value heads", name,
                      config.heads, config.kv_heads);
  DI_ASSIGN(const auto key_length, meta.integer(prefix + "attention.key_length", 2, 65536));
  if (!key_length && config.hidden % config.heads != 0)
    return make_error(ErrorCode::kModel,
                      "{}: the hidden size {} does not divide into {} heads, and {} is missing", name,
                      config.hidden, config.heads, prefix + "attention.key_length");
  config.head_dim = static_cast<int>(key_length.value_or(config.hidden / config.heads));
  if (config.head_dim < 2 || config.head_dim % 2 != 0)
    return make_error(ErrorCode::kModel, "{}: the head size is {}, expected an even number", name,
                      config.head_dim);
  for (const char* key : {"attention.value_length", "rope.dimension_count"}) {
    DI_ASSIGN(const auto length, meta.integer(prefix + key, 0, 65536));
    if (length && *length != config.head_dim)
      return make_error(ErrorCode::kModel,
                        "{}: {} is {}, expected the head size {}: other sizes are not supported", name,
                        prefix + key, *length, config.head_dim);
  }
  return {};
}

// Rows of the embedding, because the logits have that many; else what the metadata says.
Result<void> read_vocab(const GgufFile& file, const GgufMetadata& meta, const std::string& prefix,
                        const std::string& name, ModelConfig& config) {
  DI_ASSIGN(const auto stated, meta.integer(prefix + "vocab_size", 1, kMaxInt));
  DI_ASSIGN(const GgufArray* tokens, meta.array("tokenizer.ggml.tokens", GgufType::kString));
  int64_t size = stated.value_or(tokens != nullptr ? static_cast<int64_t>(tokens->count) : 0);
  if (const GgufTensor* embedding = find_tensor(file, "token_embd.weight")) {
    if (embedding->shape.size() != 2)
      return make_error(ErrorCode::kModel, "{}: token_embd.weight has {} dimensions, expected 2", name,
                        embedding->shape.size());
    size = embedding->shape.front();
  }
  if (size < 1 || size > kMaxInt)
    return make_error(ErrorCode::kModel, "{}: a vocabulary of {} tokens, expected 1 to {}", name, size,
                      kMaxInt);
  if (tokens != nullptr && tokens->count > static_cast<uint64_t>(size))
    return make_error(ErrorCode::kModel, "{}: the tokenizer has {} tokens, but the embedding only {} rows",
                      name, tokens->count, size);
  config.vocab_size = static_cast<int>(size);
  constexpr std::pair<const char*, bool> kIds[] = {{"tokenizer.ggml.eos_token_id", true},
                                                   {"tokenizer.ggml.eot_token_id", true},
                                                   {"tokenizer.ggml.eom_token_id", true},
                                                   {"tokenizer.ggml.bos_token_id", false}};
  for (const auto& [key, ends] : kIds) {
    DI_ASSIGN(const auto id, meta.integer(key, 0, size - 1));
    std::vector<int32_t>& list = ends ? config.eos : config.bos;
    if (id && std::find(list.begin(), list.end(), *id) == list.end())
      list.push_back(static_cast<int32_t>(*id));
  }
  return {};
}

struct NamePair {
  std::string_view gguf, hf;
};

constexpr NamePair kTopNames[] = {
    {"token_embd", "model.embed_tokens"},
    {"output_norm", "model.norm"},
    {"output", "lm_head"},
};

constexpr NamePair kLayerNames[] = {
    {"attn_norm", "input_layernorm"},    {"attn_q", "self_attn.q_proj"},
    {"attn_k", "self_attn.k_proj"},      {"attn_v", "self_attn.v_proj"},
    {"attn_output", "self_attn.o_proj"}, {"attn_q_norm", "self_attn.q_norm"},
    {"attn_k_norm", "self_attn.k_norm"}, {"ffn_norm", "post_attention_layernorm"},
    {"ffn_gate", "mlp.gate_proj"},       {"ffn_up", "mlp.up_proj"},
    {"ffn_down", "mlp.down_proj"},
};

template <size_t N>
const NamePair* find_name(const NamePair (&table)[N], std::string_view gguf) {
  const auto* it =
      std::find_if(std::begin(table), std::end(table), [&](const NamePair& p) { return p.gguf == gguf; });
  return it == std::end(table) ? nullptr : it;
}

bool is_layer_number(std::string_view s) {
  return !s.empty() && s.size() <= 6 && s.find_first_not_of("0123456789") == std::string_view::npos &&
         (s.size() == 1 || s.front() != '0');
}

}  // namespace

std::string hf_tensor_name(std::string_view name) {
  const size_t dot = name.rfind('.');
  if (dot == std::string_view::npos) return std::string(name);
  const std::string_view kind = name.substr(dot);  // ".weight" or ".bias"
  const std::string_view stem = name.substr(0, dot);
  if (const NamePair* p = find_name(kTopNames, stem)) return fmt::format("{}{}", p->hf, kind);
  if (!stem.starts_with("blk.")) return std::string(name);
  const std::string_view rest = stem.substr(4);
  const size_t split = std::min(rest.find('.'), rest.size());
  const std::string_view number = rest.substr(0, split);
  if (split == rest.size() || !is_layer_number(number)) return std::string(name);
  const NamePair* p = find_name(kLayerNames, rest.substr(split + 1));
  return p == nullptr ? std::string(name) : fmt::format("model.layers.{}.{}{}", number, p->hf, kind);
}

Result<std::string> gguf_arch(const GgufFile& file, const std::string& name) {
  DI_ASSIGN(const auto arch, GgufMetadata(file, name).string("general.architecture"));
  if (!arch || arch->empty())
    return make_error(ErrorCode::kModel,
                      "{}: the key general.architecture is missing, expected a name like 'llama'", name);
  return shown(*arch);
}

Result<ModelConfig> gguf_config(const GgufFile& file, const std::string& name) {
  const GgufMetadata meta(file, name);
  DI_ASSIGN(const std::string arch, gguf_arch(file, name));
  const std::string prefix = arch + ".";
  ModelConfig config;
  config.arch = arch == "llama" ? "LlamaForCausalLM" : arch;
  config.rope_interleaved = arch == "llama";
  DI_ASSIGN(const int64_t hidden, meta.required_integer(prefix + "embedding_length", 1, 1 << 20));
  DI_ASSIGN(const int64_t layers, meta.required_integer(prefix + "block_count", 1, 10000));
  DI_ASSIGN(const int64_t ffn, meta.required_integer(prefix + "feed_forward_length", 1, 1 << 24));
  DI_ASSIGN(const int64_t context, meta.required_integer(prefix + "context_length", 1, kMaxInt));
  config.hidden = static_cast<int>(hidden);
  config.layers = static_cast<int>(layers);
  config.ffn = static_cast<int>(ffn);
  config.max_position = static_cast<int>(context);
  DI_ASSIGN(const auto eps, meta.number(prefix + "attention.layer_norm_rms_epsilon", 0.0, 1.0));
  if (!eps)
    return make_error(ErrorCode::kModel, "{}: the key {}attention.layer_norm_rms_epsilon is missing", name,
                      prefix);
  config.norm_eps = static_cast<float>(*eps);
  DI_ASSIGN(const auto theta, meta.number(prefix + "rope.freq_base", 1e-3, 1e15));
  if (theta) config.rope_theta = static_cast<float>(*theta);
  DI_ASSIGN(const auto experts, meta.integer(prefix + "expert_count", 0, kMaxInt));
  if (experts.value_or(0) > 0)
    return make_error(ErrorCode::kModel,
                      "{}: a mixture of {} experts, which is not supported; expected a dense model", name,
                      *experts);
  DI_TRY(read_heads(meta, prefix, name, config));
  DI_ASSIGN(config.rope_scaling, read_rope_scaling(meta, prefix, name));
  DI_TRY(read_vocab(file, meta, prefix, name, config));
  config.tied_head = find_tensor(file, "output.weight") == nullptr;
  config.attention_bias = find_tensor(file, "blk.0.attn_q.bias") != nullptr;
  config.mlp_bias = find_tensor(file, "blk.0.ffn_gate.bias") != nullptr;
  return config;
}

Result<GenerationDefaults> gguf_generation(const GgufFile& file, const std::string& name) {
  const GgufMetadata meta(file, name);
  GenerationDefaults g;
  DI_ASSIGN(g.temperature, meta.number("general.sampling.temp", 0.0, 100.0));
  DI_ASSIGN(g.top_p, meta.number("general.sampling.top_p", 0.0, 1.0));
  DI_ASSIGN(g.min_p, meta.number("general.sampling.min_p", 0.0, 1.0));
  DI_ASSIGN(g.repetition_penalty, meta.number("general.sampling.penalty_repeat", 1e-3, 100.0));
  DI_ASSIGN(const auto top_k, meta.integer("general.sampling.top_k", -1, kMaxInt));
  if (top_k) g.top_k = static_cast<int>(*top_k);
  if (g.top_p == 0.0) g.top_p.reset();  // nothing could be drawn
  return g;
}

std::string gguf_chat_template(const GgufFile& file) {
  const auto it = file.metadata.find("tokenizer.chat_template");
  if (it == file.metadata.end()) return {};
  const auto* text = std::get_if<std::string_view>(&it->second);
  return text == nullptr ? std::string() : std::string(*text);
}

Result<GgufCheckpoint> open_gguf(const std::filesystem::path& path) {
  GgufCheckpoint out;
  DI_ASSIGN(MappedFile mapped, MappedFile::open(path));
  const std::string name = path.string();
  DI_ASSIGN(out.header, parse_gguf(mapped.bytes(), name));
  DI_ASSIGN(const auto parts, GgufMetadata(out.header, name).integer("split.count", 0, kMaxInt));
  if (parts.value_or(1) > 1)
    return make_error(
        ErrorCode::kModel,
        "{}: one of {} parts of a split model, expected a whole one; join them: llama-gguf-split --merge "
        "FIRST-PART OUT",
        name, *parts);
  const std::string file = path.filename().string();
  for (const GgufTensor& t : out.header.tensors) {
    RawTensor raw{t.dtype, t.shape, mapped.bytes().data() + t.offset, t.bytes,
                  fmt::format("{}: {}", file, shown(t.name))};
    if (!out.weights.tensors.emplace(hf_tensor_name(t.name), std::move(raw)).second)
      return make_error(ErrorCode::kModel, "{}: tensor '{}' and another one mean the same weight ({})", name,
                        shown(t.name), hf_tensor_name(t.name));
  }
  out.weights.files.push_back(std::move(mapped));
  return out;
}

}  // namespace deepinfer
