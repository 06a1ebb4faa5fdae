#include "model/hf_config.h"

#include <boost/json/array.hpp>
#include <limits>

#include "base/check.h"
#include "base/json_file.h"
#include "base/shown.h"
#include "model/kv_scales.h"

namespace deepinfer {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

constexpr int64_t kMaxInt = std::numeric_limits<int32_t>::max();

Result<void> read_llama3(const JsonObject& o, int max_position, RopeScaling& scaling) {
  scaling.kind = RopeScaling::Kind::kLlama3;
  DI_ASSIGN(const auto low, o.number("low_freq_factor", 1e-6, 1e6));
  DI_ASSIGN(const auto high, o.number("high_freq_factor", 1e-6, 1e6));
  DI_ASSIGN(const auto original, o.integer("original_max_position_embeddings", 1, kMaxInt));
  if (!low || !high)
    return make_error(ErrorCode::kModel, "{}: llama3 scaling needs low_freq_factor and high_freq_factor",
                      o.name());
  if (*low >= *high)
    return make_error(ErrorCode::kModel, "{}: low_freq_factor is {}, expected less than high_freq_factor {}",
                      o.name(), *low, *high);
  scaling.low_freq_factor = static_cast<float>(*low);
  scaling.high_freq_factor = static_cast<float>(*high);
  scaling.original_max_position = static_cast<int>(original.value_or(max_position));
  return {};
}

// rope_scaling (transformers 4) or rope_parameters (5, with rope_theta inside).
Result<void> read_rope(const JsonObject& o, ModelConfig& config) {
  DI_ASSIGN(const auto theta, o.number("rope_theta", 1e-3, 1e15));
  if (theta) config.rope_theta = static_cast<float>(*theta);
  DI_ASSIGN(auto type, o.string("rope_type"));
  if (!type) {
    DI_ASSIGN(type, o.string("type"));
  }
  DI_ASSIGN(const auto partial, o.number("partial_rotary_factor", 0.0, 1.0));
  if (partial.value_or(1.0) != 1.0)
    return make_error(ErrorCode::kModel,
                      "{}: partial_rotary_factor is {}, expected 1: others are not supported", o.name(),
                      *partial);
  const std::string kind = type.value_or("default");
  if (kind == "default" || kind == "none") return {};
  if (kind != "linear" && kind != "llama3")
    return make_error(ErrorCode::kModel,
                      "{}: rope_type is '{}', which is not supported; expected default, linear or llama3",
                      o.name(), shown(kind));
  DI_ASSIGN(const auto factor, o.number("factor", 1e-6, 1e6));
  if (!factor) return make_error(ErrorCode::kModel, "{}: factor is missing, expected a number", o.name());
  config.rope_scaling.factor = static_cast<float>(*factor);
  if (kind == "llama3") return read_llama3(o, config.max_position, config.rope_scaling);
  config.rope_scaling.kind = RopeScaling::Kind::kLinear;
  return {};
}

Result<void> read_rotary(const JsonObject& o, ModelConfig& config) {
  DI_ASSIGN(const auto theta, o.number("rope_theta", 1e-3, 1e15));
  if (theta) config.rope_theta = static_cast<float>(*theta);
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    DI_ASSIGN(const auto rope, o.object(key));
    if (rope) DI_TRY(read_rope(*rope, config));
  }
  return {};
}

Result<void> read_heads(const JsonObject& o, ModelConfig& config) {
  DI_ASSIGN(const int64_t heads, o.required_integer("num_attention_heads", 1, 65536));
  DI_ASSIGN(const auto kv_heads, o.integer("num_key_value_heads", 1, 65536));
  DI_ASSIGN(const auto head_dim, o.integer("head_dim", 2, 65536));
  config.heads = static_cast<int>(heads);
  config.kv_heads = static_cast<int>(kv_heads.value_or(heads));
  if (config.heads % config.kv_heads != 0)
    return make_error(ErrorCode::kModel,
                      "{}: num_attention_heads {} is no multiple of num_key_value_heads {}", o.name(),
                      config.heads, config.kv_heads);
  if (!head_dim && config.hidden % config.heads != 0)
    return make_error(ErrorCode::kModel,
                      "{}: hidden_size {} is no multiple of num_attention_heads {}, and head_dim is missing",
                      o.name(), config.hidden, config.heads);
  config.head_dim = static_cast<int>(head_dim.value_or(config.hidden / config.heads));
  if (config.head_dim < 2 || config.head_dim % 2 != 0)
    return make_error(ErrorCode::kModel, "{}: head_dim is {}, expected an even number", o.name(),
                      config.head_dim);
  return {};
}

// What the file asks for and is not built must be refused: the output would be wrong without a word.
Result<void> refuse_unsupported(const JsonObject& o) {
  DI_ASSIGN(const auto activation, o.string("hidden_act"));
  if (activation && *activation != "silu" && *activation != "swish")
    return make_error(ErrorCode::kModel, "{}: hidden_act is '{}', expected silu: others are not supported",
                      o.name(), shown(*activation));
  return {};
}

Result<json::value> parse_object(std::string_view text, const std::string& name) {
  DI_ASSIGN(json::value value, parse_json(text, name));
  if (!value.is_object()) return make_error(ErrorCode::kModel, "{}: expected a JSON object", name);
  return value;
}

Result<std::string> arch_of(const JsonObject& o) {
  const json::value* list = o.find("architectures");
  if (list == nullptr || !list->is_array() || list->get_array().empty() || !list->get_array()[0].is_string())
    return make_error(ErrorCode::kModel,
                      "{}: architectures is missing, expected a list with a name like \"LlamaForCausalLM\"",
                      o.name());
  return shown(std::string(list->get_array()[0].get_string()));
}

}  // namespace

Result<std::string> hf_arch(std::string_view text, const std::string& name) {
  DI_ASSIGN(const json::value value, parse_object(text, name));
  return arch_of(JsonObject(value.get_object(), name));
}

Result<ModelConfig> parse_hf_config(std::string_view text, const std::string& name) {
  DI_ASSIGN(const json::value value, parse_object(text, name));
  const JsonObject o(value.get_object(), name);
  ModelConfig config;
  DI_ASSIGN(config.arch, arch_of(o));
  DI_TRY(refuse_unsupported(o));
  DI_ASSIGN(config.kv_cache, kv_cache_scheme(o));
  DI_ASSIGN(const int64_t vocab, o.required_integer("vocab_size", 1, kMaxInt));
  DI_ASSIGN(const int64_t hidden, o.required_integer("hidden_size", 1, 1 << 20));
  DI_ASSIGN(const int64_t layers, o.required_integer("num_hidden_layers", 1, 10000));
  DI_ASSIGN(const int64_t ffn, o.required_integer("intermediate_size", 1, 1 << 24));
  // Absent keys mean what transformers' LlamaConfig says.
  DI_ASSIGN(const auto context, o.integer("max_position_embeddings", 1, kMaxInt));
  DI_ASSIGN(const auto eps, o.number("rms_norm_eps", 0.0, 1.0));
  config.vocab_size = static_cast<int>(vocab);
  config.hidden = static_cast<int>(hidden);
  config.layers = static_cast<int>(layers);
  config.ffn = static_cast<int>(ffn);
  config.max_position = static_cast<int>(context.value_or(2048));
  config.norm_eps = static_cast<float>(eps.value_or(1e-6));
  DI_TRY(read_heads(o, config));
  DI_TRY(read_rotary(o, config));
  DI_ASSIGN(const auto tied, o.boolean("tie_word_embeddings"));
  DI_ASSIGN(const auto attention_bias, o.boolean("attention_bias"));
  DI_ASSIGN(const auto mlp_bias, o.boolean("mlp_bias"));
  config.tied_head = tied.value_or(false);
  config.attention_bias = attention_bias.value_or(false);
  config.mlp_bias = mlp_bias.value_or(false);
  DI_ASSIGN(config.eos, o.ids("eos_token_id", 0, vocab - 1));
  DI_ASSIGN(config.bos, o.ids("bos_token_id", 0, vocab - 1));
  for (const char* key : {"torch_dtype", "dtype"}) {
    DI_ASSIGN(const auto dtype, o.string(key));
    if (dtype) config.dtype = shown(*dtype);
  }
  return config;
}

Result<GenerationDefaults> parse_generation_config(std::string_view text, const std::string& name) {
  DI_ASSIGN(const json::value value, parse_object(text, name));
  const JsonObject o(value.get_object(), name);
  GenerationDefaults g;
  DI_ASSIGN(g.temperature, o.number("temperature", 0.0, 100.0));
  DI_ASSIGN(g.top_p, o.number("top_p", 0.0, 1.0));
  if (g.top_p == 0.0) g.top_p.reset();  // nothing could be drawn
  DI_ASSIGN(g.min_p, o.number("min_p", 0.0, 1.0));
  DI_ASSIGN(g.repetition_penalty, o.number("repetition_penalty", 1e-3, 100.0));
  DI_ASSIGN(const auto top_k, o.integer("top_k", -1, kMaxInt));
  DI_ASSIGN(const auto max_tokens, o.integer("max_new_tokens", 1, kMaxInt));
  if (top_k) g.top_k = static_cast<int>(*top_k);
  if (max_tokens) g.max_tokens = static_cast<int>(*max_tokens);
  DI_ASSIGN(g.eos, o.ids("eos_token_id", 0, kMaxInt));
  return g;
}

Result<std::string> read_chat_template(const fs::path& folder) {
  std::error_code ec;
  const fs::path own = folder / "chat_template.jinja";
  if (fs::exists(own, ec)) return read_file(own, kMaxConfigBytes);
  const fs::path config = folder / "tokenizer_config.json";
  if (!fs::exists(config, ec)) return std::string();
  DI_ASSIGN(const std::string text, read_file(config, kMaxConfigBytes));
  DI_ASSIGN(const json::value value, parse_object(text, config.string()));
  const json::value* t = JsonObject(value.get_object(), config.string()).find("chat_template");
  if (t == nullptr) return std::string();
  if (t->is_string()) return std::string(t->get_string());
  if (!t->is_array())
    return make_error(ErrorCode::kModel, "{}: chat_template is neither a string nor a list", config.string());
  for (const json::value& item : t->get_array()) {
    if (!item.is_object()) continue;
    const json::value* item_name = item.get_object().if_contains("name");
    const json::value* source = item.get_object().if_contains("template");
    if (item_name != nullptr && source != nullptr && item_name->is_string() && source->is_string() &&
        item_name->get_string() == "default")
      return std::string(source->get_string());
  }
  return make_error(ErrorCode::kModel, "{}: chat_template is a list without one named \"default\"",
                    config.string());
}

}  // namespace deepinfer
