#include "doctor/model.h"

#include <fmt/format.h>

#include <algorithm>
#include <system_error>
#include <utility>

#include "base/paths.h"
#include "engine/llm.h"
#include "hub/cache.h"
#include "hub/model_ref.h"
#include "model/quantization.h"

namespace deepinfer::doctor {

namespace fs = std::filesystem;

namespace {

constexpr const char* kTopic = "Model";
constexpr int64_t kCache = int64_t{512} << 20;  // what a CPU's KV cache has at least, see engine/load_cpu.cpp
constexpr int64_t kWorkspace = int64_t{200} << 20;  // buffers, threads, program

ModelFacts facts(Finding finding) {
  return {.finding = std::move(finding)};
}

ModelFacts open(const Config& config, const fs::path& path) {
  Result<Checkpoint> checkpoint = open_checkpoint(path);
  if (!checkpoint) return facts(problem(kTopic, checkpoint.error().message));
  const int64_t on_disk = checkpoint->weight_bytes;
  const Result<void> quantized = set_quantization(*checkpoint, config.model.quantization);
  if (!quantized) return facts(problem(kTopic, quantized.error().message));
  ModelFacts out;
  out.path = path;
  out.file_bytes = on_disk;
  out.weight_bytes = loaded_bytes(checkpoint->weights);
  const std::string text =
      fmt::format("{}: {} layers, weights of {} ({})", path.string(), checkpoint->config.layers,
                  size_text(out.weight_bytes), weights_text(*checkpoint));
  out.finding =
      checkpoint->chat_template.empty() && config.model.chat_template.empty()
          ? warning(kTopic, text + "; it has no chat template, so /v1/chat/completions refuses requests",
                    "--chat-template FILE, or a model made for chats (its name often ends in Instruct)")
          : ok(kTopic, text);
  return out;
}

ModelFacts of_hub(const Config& config, const hub::ModelRef& ref, const hub::Settings& hub) {
  const auto there = hub::Cache(hub.cache).find(ref, config.model.revision);
  if (!there) return facts(problem(kTopic, there.error().message));
  if (*there) return open(config, (*there)->path);
  if (hub.offline)
    return facts(problem(
        kTopic,
        fmt::format("{} is not in the cache {}, and HF_HUB_OFFLINE is set", ref.text(), hub.cache.string()),
        "unset HF_HUB_OFFLINE; deepinfer pull " + ref.text()));
  return facts(warning(
      kTopic, fmt::format("{} is not on this machine: serve fetches it before it answers", ref.text()),
      "deepinfer pull " + ref.text()));
}

}  // namespace

ModelFacts check_model(const Config& config, const hub::Settings& hub) {
  const std::string& name = config.model.name;
  std::error_code ignored;
  if (name.empty() || name == kDefaultModelName) {
    Config plain = config;
    plain.model.name.clear();
    const Result<fs::path> path = locate_model(plain);
    if (path) return open(config, *path);
    return facts(warning(kTopic, "no model is named, and the default one is not on this machine",
                         fmt::format("sh {}", (share_dir() / "fetch_default_model.sh").string())));
  }
  if (fs::exists(name, ignored)) return open(config, name);
  const Result<hub::ModelRef> ref = hub::parse_model_ref(name);
  if (ref) return of_hub(config, *ref, hub);
  return facts(problem(
      kTopic,
      fmt::format("{}: no such file or folder, and no name of a model on a hub; expected a GGUF file, "
                  "a Hugging Face folder with config.json, ORG/NAME or ORG/NAME:FILE",
                  name),
      "deepinfer list"));
}

int64_t memory_needed(const Config& config, int64_t weight_bytes) {
  const int64_t cache = config.gpu.kv_cache_memory_bytes != 0 ? config.gpu.kv_cache_memory_bytes : kCache;
  return weight_bytes + cache + kWorkspace;
}

}  // namespace deepinfer::doctor
