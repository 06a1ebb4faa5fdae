#include "engine/llm.h"

#include <openssl/sha.h>

#include <algorithm>
#include <filesystem>
#include <span>

#include "base/check.h"
#include "base/log.h"
#include "base/paths.h"
#include "deepinfer/version.h"
#include "device/tuning.h"
#include "engine/find_device.h"
#include "engine/load.h"
#include "engine/profiling.h"
#include "model/checkpoint.h"
#include "model/quantization.h"

namespace deepinfer {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> served_names(const Config& config, const fs::path& path) {
  if (!config.model.served_model_name.empty()) return config.model.served_model_name;
  if (config.model.name.empty()) return {kDefaultModelName};
  const fs::path plain = path.has_filename() ? path : path.parent_path();
  return {plain.extension() == ".gguf" ? plain.stem().string() : plain.filename().string()};
}

// What this build cannot do yet is refused here, by name, before anything is read.
Result<void> check_settings(const Config& c) {
  if (!c.gpu.enable_chunked_prefill && c.model.max_model_len > c.gpu.max_num_batched_tokens)
    return make_error(ErrorCode::kConfig,
                      "gpu.max_num_batched_tokens: got {}, expected at least model.max_model_len ({}) when "
                      "gpu.enable_chunked_prefill is false",
                      c.gpu.max_num_batched_tokens, c.model.max_model_len);
  return {};
}

std::vector<int32_t> end_ids(const Checkpoint& c) {
  std::vector<int32_t> ids;
  if (c.tokenizer != nullptr) ids = c.tokenizer->end_ids();
  ids.insert(ids.end(), c.config.eos.begin(), c.config.eos.end());
  ids.insert(ids.end(), c.generation.eos.begin(), c.generation.eos.end());
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

}  // namespace

// The same build, weights and settings give the same answer for a seed; this names the three.
std::string fingerprint_of(const Checkpoint& checkpoint, const std::string& kernels) {
  std::string text =
      fmt::format("{} {} {} {}", version(), checkpoint.config.arch, kernels, weights_text(checkpoint));
  for (const auto& [name, t] : checkpoint.weights.tensors) {
    text += fmt::format("|{} {} ", name, info(t.dtype).name);
    if (t.random)
      text += fmt::format("{} {}", t.random->seed, t.random->exponent);
    else
      text.append(reinterpret_cast<const char*>(t.data), std::min<size_t>(t.bytes, 64));
  }
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), digest);
  std::string hex = "fp_";
  for (int i = 0; i < 6; ++i) hex += fmt::format("{:02x}", digest[i]);
  return hex;
}

EngineOptions engine_options(const Config& c, const Checkpoint& checkpoint) {
  return {.max_num_batched_tokens = c.gpu.max_num_batched_tokens,
          .speculation = {.num_tokens = c.speculative.num_speculative_tokens,
                          .lookup_min = c.speculative.prompt_lookup_min,
                          .lookup_max = c.speculative.prompt_lookup_max},
          .enable_chunked_prefill = c.gpu.enable_chunked_prefill,
          .enable_prefix_caching = c.gpu.enable_prefix_caching,
          .max_queue = c.server.max_queue != 0 ? c.server.max_queue : 4 * c.gpu.max_num_seqs,
          .queue_timeout = c.server.queue_timeout,
          .timeout = c.server.timeout,
          .end_ids = end_ids(checkpoint),
          .event_log = c.server.event_log};
}

namespace {

void set_template(Llm& llm, const std::string& source, const fs::path& path) {
  if (source.empty()) return;
  Result<ChatTemplate> parsed = ChatTemplate::parse(source);
  if (parsed) {
    llm.chat_template = std::make_unique<ChatTemplate>(std::move(*parsed));
  } else {
    llm.template_error = parsed.error().message;
    log::warn("{}: the chat template cannot be used, chat requests will be refused: {}", path.string(),
              llm.template_error);
  }
}

}  // namespace

Result<std::string> wanted_kv_dtype(const Config& config, const ModelConfig& model) {
  const std::string& setting = config.gpu.kv_cache_dtype;
  if (setting != "auto" || model.kv_cache.empty()) return setting;
  if (model.kv_cache == "fp8") return model.kv_cache;
  return make_error(
      ErrorCode::kConfig,
      "gpu.kv_cache_dtype: auto, but the checkpoint's kv_cache_scheme is {}, expected 8-bit floats "
      "with one scale a layer: choose a type by gpu.kv_cache_dtype, which then has no scales of "
      "the checkpoint",
      model.kv_cache);
}

Result<int> wanted_model_len(const Config& config, const ModelConfig& model) {
  const int64_t wanted = config.model.max_model_len;
  if (wanted > model.max_position)
    return make_error(
        ErrorCode::kConfig,
        "model.max_model_len: got {}, expected at most {}, the context that the model was made for", wanted,
        model.max_position);
  return wanted == 0 ? model.max_position : static_cast<int>(wanted);
}

Result<fs::path> locate_model(const Config& config) {
  if (!config.model.name.empty()) return fs::path(config.model.name);
  const fs::path path = cache_dir() / "models" / kDefaultModelFile;
  if (fs::exists(path)) return path;
  return make_error(ErrorCode::kModel,
                    "the default model is not there: expected {}\nFetch it (94 MB) with:\n  sh {}\n"
                    "or name another model: --model FILE.gguf or --model FOLDER",
                    path.string(), (share_dir() / "fetch_default_model.sh").string());
}

namespace {

Result<LoadedRunner> load_on_device(const Config& config, Checkpoint& checkpoint,
                                    std::unique_ptr<cuda::Gpu> gpu, const DeviceChoice& choice,
                                    Profiler* profiler) {
  DI_TRY(set_quantization(checkpoint, config.model.quantization, preferred_weights(config.gpu, choice.gpu)));
  const bool on_gpu = gpu != nullptr;
  if (on_gpu && config.gpu.pipeline_parallel_size != 1)
    return make_error(
        ErrorCode::kConfig,
        "gpu.pipeline_parallel_size: got {}, expected 1 on a GPU: this build has pipelines of CPUs "
        "alone (gpu.device cpu)",
        config.gpu.pipeline_parallel_size);
  const bool several = on_gpu && config.gpu.tensor_parallel_size > 1;
  DI_ASSIGN(LoadedRunner loaded, several ? load_on_gpus(config, checkpoint, std::move(gpu), choice, profiler)
                                 : on_gpu
                                     ? load_on_gpu(config, checkpoint, std::move(gpu), *choice.gpu, profiler)
                                     : load_on_cpu(config, checkpoint, profiler));
  loaded.on_gpu = on_gpu;
  if (!several) log_other_gpus(choice);
  return loaded;
}

Result<std::unique_ptr<Llm>> assemble(const Config& config, Checkpoint checkpoint,
                                      std::unique_ptr<cuda::Gpu> gpu, const DeviceChoice& choice) {
  auto llm = std::make_unique<Llm>();
  llm->names = served_names(config, checkpoint.path);
  llm->model = checkpoint.config;
  llm->generation = checkpoint.generation;
  set_template(*llm, checkpoint.chat_template, checkpoint.path);
  llm->profiler = make_profiler(config, gpu != nullptr);
  DI_ASSIGN(LoadedRunner loaded,
            load_on_device(config, checkpoint, std::move(gpu), choice, llm->profiler.get()));
  llm->on_gpu = loaded.on_gpu;
  llm->max_model_len = loaded.runner->info().max_model_len;
  llm->fingerprint = fingerprint_of(checkpoint, loaded.kernels);
  llm->summary = std::move(loaded.summary);
  llm->summary.weights = weights_text(checkpoint);
  llm->profiler->set_facts(profile_facts(config, llm->summary, llm->on_gpu));
  EngineOptions options = engine_options(config, checkpoint);
  options.profiler = llm->profiler.get();
  llm->engine = std::make_unique<Engine>(std::move(loaded.runner), std::move(options));
  if (config.server.enable_profiler) DI_TRY(llm->profiler->start());
  llm->tokenizer = std::move(checkpoint.tokenizer);
  return llm;
}

}  // namespace

Result<std::unique_ptr<Llm>> Llm::load(const Config& config) {
  DI_TRY(check_settings(config));
  DI_TRY(check_profile_folder(config));
  DeviceChoice choice;
  DI_ASSIGN(std::unique_ptr<cuda::Gpu> gpu, open_device(config, choice));
  DI_ASSIGN(const fs::path path, locate_model(config));
  DI_ASSIGN(Checkpoint checkpoint, open_checkpoint(path));
  return assemble(config, std::move(checkpoint), std::move(gpu), choice);
}

Result<std::unique_ptr<Llm>> Llm::load(const Config& config, Checkpoint checkpoint) {
  DI_TRY(check_settings(config));
  DI_TRY(check_profile_folder(config));
  DeviceChoice choice;
  DI_ASSIGN(std::unique_ptr<cuda::Gpu> gpu, open_device(config, choice));
  return assemble(config, std::move(checkpoint), std::move(gpu), choice);
}

Result<LoadedRunner> load_runner(const Config& config, Checkpoint& checkpoint) {
  DI_TRY(check_settings(config));
  DeviceChoice choice;
  DI_ASSIGN(std::unique_ptr<cuda::Gpu> gpu, open_device(config, choice));
  return load_on_device(config, checkpoint, std::move(gpu), choice, nullptr);
}

SamplingParams default_sampling(const Config& config, const GenerationDefaults& g) {
  SamplingParams p;
  const Config::Sampling& s = config.sampling;
  auto choose = [](auto& out, const auto& setting, const auto& model) {
    if (setting) {
      out = static_cast<std::remove_reference_t<decltype(out)>>(*setting);
    } else if (model) {
      out = static_cast<std::remove_reference_t<decltype(out)>>(*model);
    }
  };
  const std::optional<double> none;
  choose(p.temperature, s.temperature, g.temperature);
  choose(p.top_p, s.top_p, g.top_p);
  choose(p.top_k, s.top_k, g.top_k);
  choose(p.min_p, s.min_p, g.min_p);
  choose(p.repetition_penalty, s.repetition_penalty, g.repetition_penalty);
  choose(p.presence_penalty, s.presence_penalty, none);
  choose(p.frequency_penalty, s.frequency_penalty, none);
  return p;
}

}  // namespace deepinfer
