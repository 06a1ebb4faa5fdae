#include "config/keys.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <limits>

#include "config/value.h"

namespace deepinfer {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kMaxInt = std::numeric_limits<int32_t>::max();
constexpr double kMaxBytes = 1LL << 50;

template <auto Section, auto Member>
Field field() {
  return Field(+[](Config& c) -> auto& { return c.*Section.*Member; });
}
template <auto Member>
Field model() {
  return field<&Config::model, Member>();
}
template <auto Member>
Field gpu() {
  return field<&Config::gpu, Member>();
}
template <auto Member>
Field server() {
  return field<&Config::server, Member>();
}
template <auto Member>
Field sampling() {
  return field<&Config::sampling, Member>();
}

bool is_cuda_device(std::string_view s) {
  return s.starts_with("cuda:") && s.size() > 5 && s.size() <= 8 &&
         std::all_of(s.begin() + 5, s.end(), [](char c) { return c >= '0' && c <= '9'; });
}

std::vector<Key> model_keys() {
  using M = Config::Model;
  return {
      {.section = "model",
       .name = "name",
       .field = model<&M::name>(),
       .unset = "the default model, SmolLM2-135M-Instruct",
       .text = "The model: a GGUF file, a Hugging Face folder, or ORG/NAME[:FILE] of the hub."},
      {.section = "model",
       .name = "served_model_name",
       .field = model<&M::served_model_name>(),
       .unset = "the file's stem or the folder's name",
       .text = "The name or names that requests use; answers carry the first."},
      {.section = "model",
       .name = "revision",
       .field = model<&M::revision>(),
       .unset = "main",
       .text = "Branch, tag or commit of a model named by its hub id."},
      {.section = "model",
       .name = "tokenizer",
       .field = model<&M::tokenizer>(),
       .unset = "the model's own",
       .text = "A folder with tokenizer.json to use instead of the model's tokenizer."},
      {.section = "model",
       .name = "tokenizer_mode",
       .field = model<&M::tokenizer_mode>(),
       .allowed = {"auto", "fast", "slow"},
       .text = "Kept for old configurations: there is one implementation, all values mean it."},
      {.section = "model",
       .name = "chat_template",
       .field = model<&M::chat_template>(),
       .unset = "the model's own",
       .text = "A file with a Jinja chat template to use instead of the model's."},
      {.section = "model",
       .name = "trust_remote_code",
       .field = model<&M::trust_remote_code>(),
       .text = "Only false: nothing in a checkpoint is ever executed."},
      {.section = "model",
       .name = "dtype",
       .field = model<&M::dtype>(),
       .allowed = {"auto", "float32", "float16", "bfloat16"},
       .alias = {{"float", "float32"},
                 {"fp32", "float32"},
                 {"half", "float16"},
                 {"fp16", "float16"},
                 {"bf16", "bfloat16"}},
       .text = "Type of the unquantized weights; auto keeps the checkpoint's."},
      {.section = "model",
       .name = "max_model_len",
       .field = model<&M::max_model_len>(),
       .min = 16,
       .max = 1 << 24,
       .allow_auto = true,
       .text = "Longest sequence in tokens, prompt and answer; auto: what the model and the memory allow."},
      {.section = "model",
       .name = "quantization",
       .field = model<&M::quantization>(),
       .allowed = {"none", "awq", "gptq", "fp8", "int4"},
       .unset = "as the checkpoint says",
       .text = "fp8 and int4 quantize while loading; awq and gptq demand such a checkpoint; none: nothing is "
               "quantized while loading."},
  };
}

std::vector<Key> gpu_keys() {
  using G = Config::Gpu;
  return {
      {.section = "gpu",
       .name = "device",
       .field = gpu<&G::device>(),
       .allowed = {"auto", "cpu", "cuda"},
       .accepts = is_cuda_device,
       .also = "cuda:N",
       .text = "What to run on; auto: a GPU when there is one, else the CPU."},
      {.section = "gpu",
       .name = "gpu_memory_utilization",
       .field = gpu<&G::gpu_memory_utilization>(),
       .min = 0,
       .max = 1,
       .above_min = true,
       .text = "Fraction of a GPU's memory that this process may use."},
      {.section = "gpu",
       .name = "kv_cache_memory_bytes",
       .field = gpu<&G::kv_cache_memory_bytes>(),
       .min = 0,
       .max = kMaxBytes,
       .text = "Bytes of the KV cache; 0: derived from the memory."},
      {.section = "gpu",
       .name = "tensor_parallel_size",
       .field = gpu<&G::tensor_parallel_size>(),
       .min = 1,
       .max = 64,
       .text = "GPUs that share every layer, from the chosen one on; on the CPU: groups of threads."},
      {.section = "gpu",
       .name = "pipeline_parallel_size",
       .field = gpu<&G::pipeline_parallel_size>(),
       .min = 1,
       .max = 64,
       .text = "Stages that hold some of the layers each; on the CPU: groups of threads."},
      {.section = "gpu",
       .name = "max_num_seqs",
       .field = gpu<&G::max_num_seqs>(),
       .min = 1,
       .max = 65536,
       .text = "Sequences that run at the same time (on the CPU too)."},
      {.section = "gpu",
       .name = "max_num_batched_tokens",
       .field = gpu<&G::max_num_batched_tokens>(),
       .min = 1,
       .max = 1 << 20,
       .text = "Tokens of one step, prefill and decode together."},
      {.section = "gpu",
       .name = "enable_chunked_prefill",
       .field = gpu<&G::enable_chunked_prefill>(),
       .text = "Cut long prompts into chunks that share steps with running sequences."},
      {.section = "gpu",
       .name = "enable_prefix_caching",
       .field = gpu<&G::enable_prefix_caching>(),
       .text = "Keep the KV blocks of finished prompts for later ones that begin the same."},
      {.section = "gpu",
       .name = "block_size",
       .field = gpu<&G::block_size>(),
       .min = 1,
       .max = 256,
       .text = "Tokens of a KV block."},
      {.section = "gpu",
       .name = "kv_cache_dtype",
       .field = gpu<&G::kv_cache_dtype>(),
       .allowed = {"auto", "float32", "float16", "bfloat16", "fp8", "int8"},
       .alias = {{"fp8_e4m3", "fp8"}, {"half", "float16"}, {"fp16", "float16"}, {"bf16", "bfloat16"}},
       .text = "Type of the KV cache; auto: as the checkpoint says, else the model's. int8: on the CPU."},
      {.section = "gpu",
       .name = "enforce_eager",
       .field = gpu<&G::enforce_eager>(),
       .text = "No CUDA graphs: a faster start, slower decoding."},
      {.section = "gpu",
       .name = "nvidia_5090_optimizations",
       .field = gpu<&G::nvidia_5090_optimizations>(),
       .text = "The settings that suit an RTX 5090; without effect on other devices."},
      {.section = "gpu",
       .name = "deterministic",
       .field = gpu<&G::deterministic>(),
       .text = "The same logits whatever else runs, at a cost in speed; the CPU always does this."},
      {.section = "gpu",
       .name = "disable_log_stats",
       .field = gpu<&G::disable_log_stats>(),
       .text = "Do not log throughput and cache use at intervals."},
      {.section = "cpu",
       .name = "threads",
       .field = field<&Config::cpu, &Config::Cpu::threads>(),
       .min = 1,
       .max = 1024,
       .allow_auto = true,
       .text = "Threads of the CPU backend; auto: the least of affinity, cgroup quota and physical cores."},
  };
}

std::vector<Key> speculative_keys() {
  using S = Config::Speculative;
  return {
      {.section = "speculative",
       .name = "num_speculative_tokens",
       .field = field<&Config::speculative, &S::num_speculative_tokens>(),
       .min = 0,
       .max = 32,
       .text = "Tokens guessed at a time at most, by what followed earlier in the same text, and verified "
               "together: the same tokens, sooner where text repeats. 0: off, unless a request wants it."},
      {.section = "speculative",
       .name = "prompt_lookup_min",
       .field = field<&Config::speculative, &S::prompt_lookup_min>(),
       .min = 1,
       .max = 64,
       .text = "Tokens that an earlier place must share with the text's end to be believed."},
      {.section = "speculative",
       .name = "prompt_lookup_max",
       .field = field<&Config::speculative, &S::prompt_lookup_max>(),
       .min = 1,
       .max = 64,
       .text = "More than these are not compared; the last place that shares so many is taken at once."},
  };
}

std::vector<Key> cluster_keys() {
  using C = Config::Cluster;
  return {
      {.section = "cluster",
       .name = "nnodes",
       .field = field<&Config::cluster, &C::nnodes>(),
       .min = 1,
       .max = 64,
       .text = "Processes that share a model, on one machine or several: `gpu.tensor_parallel_size` times "
               "`gpu.pipeline_parallel_size`."},
      {.section = "cluster",
       .name = "node_rank",
       .field = field<&Config::cluster, &C::node_rank>(),
       .min = 0,
       .max = 63,
       .text = "Which of them this one is; rank 0 serves, the others work for it."},
      {.section = "cluster",
       .name = "master_addr",
       .field = field<&Config::cluster, &C::master_addr>(),
       .text = "The address of rank 0, which listens there for the other ranks."},
      {.section = "cluster",
       .name = "master_port",
       .field = field<&Config::cluster, &C::master_port>(),
       .min = 1,
       .max = 65535,
       .text = "The port of rank 0 for the other ranks."},
      {.section = "cluster",
       .name = "token_file",
       .field = field<&Config::cluster, &C::token_file>(),
       .unset = "none",
       .text = "A file with a secret of at least 16 characters, the same for all ranks: who does not know it "
               "is turned away."},
  };
}

std::vector<Key> server_keys() {
  using S = Config::Server;
  return {
      {.section = "server", .name = "host", .field = server<&S::host>(), .text = "Address to listen on."},
      {.section = "server",
       .name = "port",
       .field = server<&S::port>(),
       .min = 0,
       .max = 65535,
       .text = "Port to listen on; 0: any free one, printed at start."},
      {.section = "server",
       .name = "uds",
       .field = server<&S::uds>(),
       .unset = "none",
       .text = "A Unix socket to listen on instead of host and port."},
      {.section = "server",
       .name = "log_level",
       .field = server<&S::log_level>(),
       .allowed = {"trace", "debug", "info", "warning", "error"},
       .alias = {{"warn", "warning"}},
       .text = "The least important messages that are still logged."},
      {.section = "server",
       .name = "log_format",
       .field = server<&S::log_format>(),
       .allowed = {"text", "json"},
       .text = "How lines of the log look: text, or one JSON object a line."},
      {.section = "server",
       .name = "log_requests",
       .field = server<&S::log_requests>(),
       .text = "Log a line for each request when it ends: ids, counts and times, never its text."},
      {.section = "server",
       .name = "log_prompts",
       .field = server<&S::log_prompts>(),
       .text = "With log_requests: the text of prompts and answers too."},
      {.section = "server",
       .name = "api_key",
       .field = server<&S::api_key>(),
       .unset = "no key is asked for",
       .secret = true,
       .text = "Keys of which a request must carry one."},
      {.section = "server",
       .name = "api_key_file",
       .field = server<&S::api_key_file>(),
       .unset = "none",
       .text = "A file with a key, or sha256:<64 hex digits> of one, a line; # begins a comment."},
      {.section = "server",
       .name = "open_routes",
       .field = server<&S::open_routes>(),
       .text = "Routes that need no key."},
      {.section = "server",
       .name = "ssl_certfile",
       .field = server<&S::ssl_certfile>(),
       .unset = "plain HTTP",
       .text = "The certificate chain (PEM) for HTTPS; needs ssl_keyfile."},
      {.section = "server",
       .name = "ssl_keyfile",
       .field = server<&S::ssl_keyfile>(),
       .unset = "none",
       .text = "The private key (PEM) of ssl_certfile."},
      {.section = "server",
       .name = "allowed_origins",
       .field = server<&S::allowed_origins>(),
       .unset = "none",
       .text = "Origins whose pages may call the server (CORS); * allows all."},
      {.section = "server",
       .name = "timeout",
       .field = server<&S::timeout>(),
       .min = 0,
       .max = kInf,
       .text = "Seconds that a request may take in all; 0: no limit."},
      {.section = "server",
       .name = "queue_timeout",
       .field = server<&S::queue_timeout>(),
       .min = 0,
       .max = kInf,
       .text = "Seconds that a request may wait before it runs; 0: no limit."},
      {.section = "server",
       .name = "drain_timeout",
       .field = server<&S::drain_timeout>(),
       .min = 0,
       .max = kInf,
       .text = "Seconds that running requests have to finish after SIGTERM."},
      {.section = "server",
       .name = "stall_timeout",
       .field = server<&S::stall_timeout>(),
       .min = 0,
       .max = kInf,
       .above_min = true,
       .text = "Seconds without a step of a busy engine after which /health says 503 and its requests fail."},
      {.section = "server",
       .name = "max_queue",
       .field = server<&S::max_queue>(),
       .min = 0,
       .max = kMaxInt,
       .text = "Waiting sequences before new requests get 429; 0: 4 x max_num_seqs."},
      {.section = "server",
       .name = "max_connections",
       .field = server<&S::max_connections>(),
       .min = 1,
       .max = kMaxInt,
       .text = "Connections at once; further ones get 503."},
      {.section = "server",
       .name = "max_header_bytes",
       .field = server<&S::max_header_bytes>(),
       .min = 1024,
       .max = 1 << 20,
       .text = "Largest head of a request; larger ones get 431."},
      {.section = "server",
       .name = "max_body_bytes",
       .field = server<&S::max_body_bytes>(),
       .min = 1024,
       .max = 1 << 30,
       .text = "Largest body of a request; larger ones get 413."},
      {.section = "server",
       .name = "header_timeout",
       .field = server<&S::header_timeout>(),
       .min = 0,
       .max = kInf,
       .above_min = true,
       .text = "Seconds that a request's head may take to arrive."},
      {.section = "server",
       .name = "body_timeout",
       .field = server<&S::body_timeout>(),
       .min = 0,
       .max = kInf,
       .above_min = true,
       .text = "Seconds that a request's body may take to arrive."},
      {.section = "server",
       .name = "idle_timeout",
       .field = server<&S::idle_timeout>(),
       .min = 0,
       .max = kInf,
       .above_min = true,
       .text = "Seconds that a connection may be idle between requests."},
      {.section = "server",
       .name = "write_timeout",
       .field = server<&S::write_timeout>(),
       .min = 0,
       .max = kInf,
       .above_min = true,
       .text = "Seconds after which a client that reads nothing is gone."},
      {.section = "server",
       .name = "trust_request_chat_template",
       .field = server<&S::trust_request_chat_template>(),
       .text = "Let a request bring its own chat_template."},
      {.section = "server",
       .name = "vllm_metric_names",
       .field = server<&S::vllm_metric_names>(),
       .text = "Give each metric under vLLM's name besides, for existing dashboards."},
      {.section = "server",
       .name = "event_log",
       .field = server<&S::event_log>(),
       .unset = "none",
       .text = "A file that gets one JSON line per event of the engine."},
      {.section = "server",
       .name = "enable_profiler",
       .field = server<&S::enable_profiler>(),
       .variable = "ENABLE_PROFILER",
       .text = "Record a profile from the start and write it at the end; also ENABLE_PROFILER=1."},
      {.section = "server",
       .name = "profile_dir",
       .field = server<&S::profile_dir>(),
       .unset = "the current folder, and only with enable_profiler",
       .text = "A folder for profiles; set, /start_profile and /stop_profile are there."},
      {.section = "server",
       .name = "profile_events",
       .field = server<&S::profile_events>(),
       .min = 1000,
       .max = 100000000,
       .text = "Spans that a profile holds at most, 32 bytes each; later ones are counted."},
  };
}

std::vector<Key> sampling_keys() {
  using S = Config::Sampling;
  static constexpr std::string_view kUnset = "the model's generation_config.json, else the API's default";
  return {
      {.section = "sampling",
       .name = "temperature",
       .field = sampling<&S::temperature>(),
       .min = 0,
       .max = kInf,
       .unset = kUnset,
       .text = "Of requests that leave it out: 0 takes the most likely token."},
      {.section = "sampling",
       .name = "top_p",
       .field = sampling<&S::top_p>(),
       .min = 0,
       .max = 1,
       .above_min = true,
       .unset = kUnset,
       .text = "The most likely tokens whose probabilities reach this sum."},
      {.section = "sampling",
       .name = "top_k",
       .field = sampling<&S::top_k>(),
       .min = -1,
       .max = kMaxInt,
       .unset = kUnset,
       .text = "The most likely so many tokens; -1 or 0: all."},
      {.section = "sampling",
       .name = "min_p",
       .field = sampling<&S::min_p>(),
       .min = 0,
       .max = 1,
       .unset = kUnset,
       .text = "Tokens at least this likely, relative to the most likely one."},
      {.section = "sampling",
       .name = "repetition_penalty",
       .field = sampling<&S::repetition_penalty>(),
       .min = 0,
       .max = 2,
       .above_min = true,
       .unset = kUnset,
       .text = "Above 1: tokens of the prompt and the answer become less likely."},
      {.section = "sampling",
       .name = "presence_penalty",
       .field = sampling<&S::presence_penalty>(),
       .min = -2,
       .max = 2,
       .unset = kUnset,
       .text = "Taken from the logits of tokens that the answer already has."},
      {.section = "sampling",
       .name = "frequency_penalty",
       .field = sampling<&S::frequency_penalty>(),
       .min = -2,
       .max = 2,
       .unset = kUnset,
       .text = "The same, times how often it has them."},
      {.section = "sampling",
       .name = "max_tokens",
       .field = sampling<&S::max_tokens>(),
       .min = 1,
       .max = kMaxInt,
       .unset = "chat: the rest of the context; completions: 16",
       .text = "Longest answer, in tokens."},
  };
}

std::string upper(std::string_view s) {
  std::string out(s);
  for (char& c : out)
    if (c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
  return out;
}

// The name that flag and short variable share.
std::string_view short_name(const Key& key) {
  return key.section == "model" && key.name == "name" ? key.section : key.name;
}

std::string range_text(const Key& key, bool integer) {
  const char* kind = integer ? "an integer" : "a number";
  if (key.max == kInf || (integer && key.max == kMaxInt))
    return fmt::format("{} {} {}", kind, key.above_min ? "above" : "from", key.min) +
           (key.above_min ? "" : " up");
  return fmt::format("{} {} {} to {}", kind, key.above_min ? "above" : "from", key.min,
                     static_cast<int64_t>(key.max));
}

}  // namespace

std::string Key::path() const {
  return fmt::format("{}.{}", section, name);
}

std::string Key::flag() const {
  std::string out = "--" + std::string(short_name(*this));
  std::replace(out.begin(), out.end(), '_', '-');
  return out;
}

std::string Key::environment() const {
  return fmt::format("DEEPINFER_{}__{}", upper(section), upper(name));
}

std::string Key::short_environment() const {
  return "DEEPINFER_" + upper(short_name(*this));
}

std::string Key::expected() const {
  std::string out;
  if (is_bool()) {
    out = "true or false";
  } else if (is_list()) {
    out = "a text or a list of texts";
  } else if (std::holds_alternative<FieldOf<std::string>>(field)) {
    if (allowed.empty()) return "a text";
    out = fmt::format("{}", fmt::join(allowed, ", "));
    if (!also.empty()) out += fmt::format(", {}", also);
  } else {
    const bool real = std::holds_alternative<FieldOf<double>>(field) ||
                      std::holds_alternative<FieldOf<std::optional<double>>>(field);
    out = range_text(*this, !real);
  }
  if (allow_auto) out += " or auto";
  return out;
}

std::string Key::default_text() const {
  Config builtin;
  return value_text(*this, builtin);
}

const std::vector<Key>& keys() {
  static const std::vector<Key> table = [] {
    std::vector<Key> all = model_keys();
    for (auto part : {gpu_keys(), speculative_keys(), cluster_keys(), server_keys(), sampling_keys()})
      all.insert(all.end(), part.begin(), part.end());
    return all;
  }();
  return table;
}

const std::vector<std::string_view>& sections() {
  static const std::vector<std::string_view> table = {"model",   "gpu",    "cpu",     "speculative",
                                                      "cluster", "server", "sampling"};
  return table;
}

const Key* find_key(std::string_view name) {
  for (const Key& key : keys())
    if (name == key.path() || name == key.name || name == std::string_view(key.flag()).substr(2)) return &key;
  return nullptr;
}

}  // namespace deepinfer
