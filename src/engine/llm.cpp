#include "engine/llm.h"

#include <openssl/sha.h>

#include <algorithm>
#include <filesystem>
#include <span>

#include "base/check.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/paths.h"
#include "deepinfer/version.h"
#include "engine/cpu_runner.h"
#include "model/checkpoint.h"
#include "model/model.h"

namespace deepinfer {
namespace {

namespace fs = std::filesystem;

constexpr const char* kDefaultModelFile = "SmolLM2-135M-Instruct.Q4_1.gguf";
constexpr const char* kDefaultModelName = "smollm2-135m-instruct";
constexpr double kMiB = 1024.0 * 1024.0;

Result<fs::path> locate_model(const Config& config) {
  if (!config.model.name.empty()) return fs::path(config.model.name);
  const fs::path path = cache_dir() / "models" / kDefaultModelFile;
  if (fs::exists(path)) return path;
  return make_error(ErrorCode::kModel,
                    "the default model is not there: expected {}\nFetch it (94 MB) with:\n  sh {}\n"
                    "or name another model: --model FILE.gguf or --model FOLDER",
                    path.string(), (share_dir() / "fetch_default_model.sh").string());
}

std::vector<std::string> served_names(const Config& config, const fs::path& path) {
  if (!config.model.served_model_name.empty()) return config.model.served_model_name;
  if (config.model.name.empty()) return {kDefaultModelName};
  const fs::path plain = path.has_filename() ? path : path.parent_path();
  return {plain.extension() == ".gguf" ? plain.stem().string() : plain.filename().string()};
}

// What this build cannot do yet is refused here, by name, before anything is read.
Result<void> check_settings(const Config& c) {
  if (c.gpu.device != "auto" && c.gpu.device != "cpu")
    return make_error(
        ErrorCode::kMemory,
        "gpu.device: got {}, but this build has no CUDA backend, expected auto or cpu: leave it out to "
        "serve on the CPU",
        c.gpu.device);
  if (c.gpu.tensor_parallel_size != 1 || c.gpu.pipeline_parallel_size != 1)
    return make_error(
        ErrorCode::kConfig,
        "gpu.tensor_parallel_size {}, gpu.pipeline_parallel_size {}: this build runs on one device, "
        "expected 1 and 1",
        c.gpu.tensor_parallel_size, c.gpu.pipeline_parallel_size);
  if (!c.model.quantization.empty())
    return make_error(
        ErrorCode::kConfig,
        "model.quantization: got {}, but this build reads only what the file itself holds (GGUF Q4_0, "
        "Q4_1, Q8_0; F32, F16, BF16): leave it out, or use a GGUF file of the wanted type",
        c.model.quantization);
  if (c.gpu.block_size != 16)
    return make_error(ErrorCode::kConfig, "gpu.block_size: got {}, expected 16 on the CPU", c.gpu.block_size);
  if (!c.gpu.enable_chunked_prefill && c.model.max_model_len > c.gpu.max_num_batched_tokens)
    return make_error(ErrorCode::kConfig,
                      "gpu.max_num_batched_tokens: got {}, expected at least model.max_model_len ({}) when "
                      "gpu.enable_chunked_prefill is false",
                      c.gpu.max_num_batched_tokens, c.model.max_model_len);
  return {};
}

// auto: F16 whatever the weights are (activations are F32, so the dtype of a checkpoint says nothing here);
// asking for a float32 model asks for a float32 cache too.
Result<DType> kv_dtype(const Config& c) {
  const std::string& name = c.gpu.kv_cache_dtype;
  if (name == "auto") return c.model.dtype == "float32" ? DType::kF32 : DType::kF16;
  if (name == "float32") return DType::kF32;
  if (name == "float16") return DType::kF16;
  if (name == "bfloat16") return DType::kBF16;
  return make_error(ErrorCode::kConfig,
                    "gpu.kv_cache_dtype: got {}, expected auto, float32, float16 or bfloat16 on the CPU",
                    name);
}

struct KvPlan {
  int64_t num_blocks = 0;
  int max_model_len = 0;
};

// The pool: min(0.4 x memory limit, max(512 MiB, one max_model_len)) unless kv_cache_memory_bytes says
// otherwise.
Result<KvPlan> plan_kv(const Config& c, const ModelConfig& m, int64_t block_bytes, int64_t memory_limit) {
  const int bs = c.gpu.block_size;
  const bool auto_len = c.model.max_model_len == 0;
  const auto wanted = static_cast<int>(auto_len ? m.max_position : c.model.max_model_len);
  if (!auto_len && wanted > m.max_position)
    return make_error(
        ErrorCode::kConfig,
        "model.max_model_len: got {}, expected at most {}, the context that the model was made for", wanted,
        m.max_position);
  const int64_t blocks_of_one = (wanted + bs - 1) / bs;
  const int64_t given = c.gpu.kv_cache_memory_bytes;
  const int64_t bytes = given != 0
                            ? given
                            : std::min<int64_t>(memory_limit * 2 / 5,
                                                std::max<int64_t>(512 << 20, blocks_of_one * block_bytes));
  if (given > memory_limit)
    return make_error(ErrorCode::kMemory,
                      "gpu.kv_cache_memory_bytes: got {} ({:.0f} MiB), but this machine's memory limit is {} "
                      "({:.0f} MiB): ask for less, or leave it out",
                      given, static_cast<double>(given) / kMiB, memory_limit,
                      static_cast<double>(memory_limit) / kMiB);
  const int64_t blocks = bytes / block_bytes;
  if (blocks < 1 || (!auto_len && blocks < blocks_of_one))
    return make_error(
        ErrorCode::kMemory,
        "KV cache: one sequence of model.max_model_len {} needs {} bytes, but the pool has {}: set "
        "model.max_model_len to {} or less, or gpu.kv_cache_memory_bytes to {} or more",
        wanted, blocks_of_one * block_bytes, bytes, blocks * bs, blocks_of_one * block_bytes);
  return KvPlan{blocks, static_cast<int>(std::min<int64_t>(wanted, blocks * bs))};
}

// The same build, weights and settings give the same answer for a seed; this names the three.
std::string fingerprint_of(const Checkpoint& checkpoint, DType kv) {
  std::string text = fmt::format("{} {} {}", version(), checkpoint.config.arch, info(kv).name);
  for (const auto& [name, t] : checkpoint.weights.tensors) {
    text += fmt::format("|{} {} ", name, info(t.dtype).name);
    text.append(reinterpret_cast<const char*>(t.data), std::min<size_t>(t.bytes, 64));
  }
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), digest);
  std::string hex = "fp_";
  for (int i = 0; i < 6; ++i) hex += fmt::format("{:02x}", digest[i]);
  return hex;
}

std::vector<int32_t> end_ids(const Checkpoint& c) {
  std::vector<int32_t> ids = c.tokenizer->end_ids();
  ids.insert(ids.end(), c.config.eos.begin(), c.config.eos.end());
  ids.insert(ids.end(), c.generation.eos.begin(), c.generation.eos.end());
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

EngineOptions engine_options(const Config& c, std::vector<int32_t> ends) {
  return {.max_num_batched_tokens = c.gpu.max_num_batched_tokens,
          .enable_chunked_prefill = c.gpu.enable_chunked_prefill,
          .enable_prefix_caching = c.gpu.enable_prefix_caching,
          .max_queue = c.server.max_queue != 0 ? c.server.max_queue : 4 * c.gpu.max_num_seqs,
          .queue_timeout = c.server.queue_timeout,
          .timeout = c.server.timeout,
          .end_ids = std::move(ends),
          .event_log = c.server.event_log};
}

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

Result<std::unique_ptr<Llm>> Llm::load(const Config& config) {
  DI_TRY(check_settings(config));
  DI_ASSIGN(const DType kv, kv_dtype(config));
  DI_ASSIGN(const fs::path path, locate_model(config));
  DI_ASSIGN(Checkpoint checkpoint, open_checkpoint(path));
  const MachineLimits limits = machine_limits();
  if (checkpoint.weight_bytes > limits.memory_bytes)
    return make_error(
        ErrorCode::kMemory,
        "{}: the weights are {:.0f} MiB, but this machine's memory limit is {:.0f} MiB: choose a "
        "smaller or more strongly quantized model",
        path.string(), static_cast<double>(checkpoint.weight_bytes) / kMiB,
        static_cast<double>(limits.memory_bytes) / kMiB);

  auto pool = std::make_unique<ThreadPool>(config.cpu.threads != 0 ? config.cpu.threads : limits.threads);
  Context context{.pool = pool.get()};
  DI_ASSIGN(std::unique_ptr<Model> model, make_model(checkpoint.config, checkpoint.weights, context));
  checkpoint.weights.release_pages();  // packed copies serve from here on

  const auto block_bytes =
      static_cast<int64_t>(KvCache::block_bytes(model->kv_groups(kv), config.gpu.block_size));
  DI_ASSIGN(const KvPlan plan, plan_kv(config, checkpoint.config, block_bytes, limits.memory_bytes));

  auto llm = std::make_unique<Llm>();
  llm->names = served_names(config, path);
  llm->model = checkpoint.config;
  llm->generation = checkpoint.generation;
  llm->max_model_len = plan.max_model_len;
  llm->fingerprint = fingerprint_of(checkpoint, kv);
  set_template(*llm, checkpoint.chat_template, path);
  log::info(
      "{}: {} layers, context {}, weights {:.0f} MiB on disk; KV cache {} blocks of {} tokens, at most "
      "{:.0f} MiB",
      llm->names[0], llm->model.layers, plan.max_model_len,
      static_cast<double>(checkpoint.weight_bytes) / kMiB, plan.num_blocks, config.gpu.block_size,
      static_cast<double>(plan.num_blocks * block_bytes) / kMiB);
  log::info("CPU: {} threads; at most {} sequences and {} tokens a step", pool->size(),
            config.gpu.max_num_seqs, config.gpu.max_num_batched_tokens);

  DI_ASSIGN(std::unique_ptr<CpuRunner> runner,
            CpuRunner::create(std::move(pool), std::move(model),
                              {.max_num_seqs = config.gpu.max_num_seqs,
                               .max_num_batched_tokens = config.gpu.max_num_batched_tokens,
                               .max_model_len = plan.max_model_len,
                               .num_blocks = plan.num_blocks,
                               .kv_dtype = kv}));
  llm->engine = std::make_unique<Engine>(std::move(runner), engine_options(config, end_ids(checkpoint)));
  llm->tokenizer = std::move(checkpoint.tokenizer);
  return llm;
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
