#include "cli/serve_banner.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <boost/json/serialize.hpp>
#include <vector>

#include "config/value.h"
#include "deepinfer/version.h"

namespace deepinfer {
namespace {

constexpr double kMiB = 1024.0 * 1024.0;

std::string size_text(int64_t bytes) {
  const double mib = static_cast<double>(bytes) / kMiB;
  return mib < 10240 ? fmt::format("{:.0f} MiB", mib) : fmt::format("{:.1f} GiB", mib / 1024);
}

int max_queue(const Config& config) {
  return config.server.max_queue != 0 ? config.server.max_queue : 4 * config.gpu.max_num_seqs;
}

// A line that works when it is pasted into a shell.
std::string curl_line(const server::Address& address, const Llm& llm, bool needs_key) {
  std::string model = boost::json::serialize(boost::json::string_view(llm.names.front()));
  // Inside single quotes a shell takes everything as it is, but for the quote itself.
  for (size_t at = model.find('\''); at != std::string::npos; at = model.find('\'', at + 4))
    model.replace(at, 1, R"('\'')");
  const bool chat = llm.chat_template != nullptr;
  return fmt::format(
      "curl {}/v1/{} -H 'Content-Type: application/json'{} \\\n"
      "  -d '{{\"model\": {}, {}, \"max_tokens\": 64}}'",
      address.curl, chat ? "chat/completions" : "completions",
      needs_key ? " -H \"Authorization: Bearer $API_KEY\"" : "", model,
      chat ? R"("messages": [{"role": "user", "content": "Why is the sky blue?"}])"
           : R"("prompt": "The capital of France is")");
}

}  // namespace

std::string chosen_settings(const LoadedConfig& loaded) {
  const Config builtin;
  std::vector<std::string> parts;
  for (const Key& key : keys()) {
    const std::string& origin = loaded.origin_of(key);
    if (origin == "built-in") continue;
    if (value_text(key, loaded.config) == value_text(key, builtin)) continue;
    const std::string value = key.secret ? "(hidden)" : value_text(key, loaded.config);
    parts.push_back(fmt::format("{} {} ({})", key.path(), value, origin));
  }
  return fmt::format("{}", fmt::join(parts, ", "));
}

std::string banner(const Config& config, const std::string& settings, const Llm& llm,
                   const server::Address& address) {
  const LoadSummary& s = llm.summary;
  const bool needs_key = !config.server.api_key.empty() || !config.server.api_key_file.empty();
  std::string out = fmt::format("DeepInfer {}, {}\n", version(), s.device);
  const auto line = [&](const char* name, const std::string& text) {
    out += fmt::format("  {:<9} {}\n", name, text);
  };
  line("model", fmt::format("{}: {} layers, {} of weights ({}), context {}", llm.names.front(),
                            llm.model.layers, size_text(s.weight_bytes), s.weights, llm.max_model_len));
  line("KV cache", fmt::format("{} of {}: {} blocks, {} tokens", size_text(s.kv_bytes), s.kv_dtype,
                               s.kv_blocks, s.kv_blocks * s.block_size));
  if (!s.memory.empty()) line("memory", s.memory);
  line("at most", fmt::format("{} sequences, {} tokens a step, {} waiting", config.gpu.max_num_seqs,
                              config.gpu.max_num_batched_tokens, max_queue(config)));
  if (!settings.empty()) line("settings", settings);
  out += fmt::format("Serving at {} (Ctrl-C stops). Try in another terminal:\n\n{}\n\n", address.url,
                     curl_line(address, llm, needs_key));
  return out;
}

LogFields banner_fields(const Config& config, const std::string& settings, const Llm& llm,
                        const server::Address& address) {
  const LoadSummary& s = llm.summary;
  LogFields fields;
  fields.add("version", version()).add("url", address.url).add("device", s.device);
  fields.add("model", llm.names.front()).add("weight_bytes", s.weight_bytes);
  fields.add("max_model_len", int64_t{llm.max_model_len}).add("kv_cache_bytes", s.kv_bytes);
  fields.add("kv_cache_dtype", s.kv_dtype)
      .add("kv_blocks", s.kv_blocks)
      .add("kv_tokens", s.kv_blocks * s.block_size);
  fields.add("max_num_seqs", int64_t{config.gpu.max_num_seqs});
  fields.add("max_num_batched_tokens", int64_t{config.gpu.max_num_batched_tokens});
  fields.add("max_queue", int64_t{max_queue(config)}).add("settings", settings);
  return fields;
}

}  // namespace deepinfer
