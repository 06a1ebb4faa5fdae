// The settings, by section, as a YAML file spells them. src/config/keys.cpp is the one table that gives each
// its type, range, default and text; where a value comes from: built-in < this device < YAML < environment <
// flag.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace deepinfer {

struct Config {
  struct Model {
    std::string name;  // a GGUF file, a Hugging Face folder; empty: the default model
    std::vector<std::string> served_model_name;  // empty: the file's stem or the folder's name
    std::string revision;
    std::string tokenizer;  // a path; empty: the model's own
    std::string tokenizer_mode = "auto";
    std::string chat_template;       // a file; empty: the model's own
    bool trust_remote_code = false;  // true is refused: nothing in a checkpoint is executed
    std::string dtype = "auto";      // auto, float32, float16, bfloat16
    int64_t max_model_len = 0;       // tokens; 0 = auto: the largest that the model and the memory allow
    std::string quantization;        // empty: from the checkpoint
  } model;

  struct Gpu {
    std::string device = "auto";  // auto, cpu, cuda, cuda:N
    double gpu_memory_utilization = 0.90;
    int64_t kv_cache_memory_bytes = 0;  // 0: derived
    int tensor_parallel_size = 1;
    int pipeline_parallel_size = 1;
    int max_num_seqs = 128;
    int max_num_batched_tokens = 2048;
    bool enable_chunked_prefill = true;
    bool enable_prefix_caching = true;
    int block_size = 16;
    std::string kv_cache_dtype = "auto";  // auto, float32, float16, bfloat16, fp8
    bool enforce_eager = false;
    bool nvidia_5090_optimizations = false;
    bool deterministic = false;
    bool disable_log_stats = false;
  } gpu;

  struct Cpu {
    int threads = 0;  // 0 = auto: min(affinity, cgroup quota, physical cores)
  } cpu;

  // Tokens guessed from the text before and verified together (prompt look-up): the same tokens sooner.
  struct Speculative {
    int num_speculative_tokens = 0;  // guessed at a time at most; 0: off, unless a request wants it
    int prompt_lookup_min = 2;       // tokens that an earlier place must share with the text's end
    int prompt_lookup_max = 8;       // more than these are not compared
  } speculative;

  // Processes that share every layer, on one machine or several: a rank each, of
  // gpu.tensor_parallel_size ranks.
  struct Cluster {
    int nnodes = 1;
    int node_rank = 0;                      // 0 serves, the others work for it
    std::string master_addr = "127.0.0.1";  // of rank 0, which listens there and nowhere else
    int master_port = 29500;
    std::string token_file;  // a secret that all ranks know
  } cluster;

  struct Server {
    std::string host = "127.0.0.1";
    int port = 8000;  // 0: any free port
    std::string uds;  // a Unix socket's path, instead of host and port; empty: none
    std::string log_level = "info";
    std::string log_format = "text";  // text, json
    bool log_requests = false;        // a line for each request: ids, counts, times; never its text
    bool log_prompts = false;         // its text too
    std::vector<std::string> api_key;
    std::string api_key_file;  // a key, or sha256:<hex> of one, a line; empty: none
    std::vector<std::string> open_routes = {"/health", "/health/ready", "/version", "/metrics"};
    std::string ssl_certfile, ssl_keyfile;  // PEM; both or none
    std::vector<std::string> allowed_origins;
    double timeout = 600;       // seconds in all; 0: none
    double queue_timeout = 60;  // seconds in the queue
    double drain_timeout = 30;
    double stall_timeout = 30;
    int max_queue = 0;  // waiting sequences; 0: 4 x max_num_seqs
    int max_connections = 4096;
    int max_header_bytes = 32 << 10;
    int64_t max_body_bytes = 32 << 20;
    double header_timeout = 10;  // seconds from a head's first byte to its last
    double body_timeout = 60;
    double idle_timeout = 75;   // between the requests of a connection
    double write_timeout = 60;  // a client that reads nothing for so long is gone
    bool trust_request_chat_template = false;
    bool vllm_metric_names = true;
    std::string event_log;             // a file that gets one JSON line per engine event; empty: none
    bool enable_profiler = false;      // records from the start, and writes a trace at the end
    std::string profile_dir;           // for traces; set: /start_profile and /stop_profile are there
    int64_t profile_events = 1000000;  // that a trace holds at most
  } server;

  // What a request that leaves a field out gets; unset: generation_config.json, else the built-in value.
  struct Sampling {
    std::optional<double> temperature;
    std::optional<double> top_p;
    std::optional<int> top_k;
    std::optional<double> min_p;
    std::optional<double> repetition_penalty;
    std::optional<double> presence_penalty;
    std::optional<double> frequency_penalty;
    std::optional<int> max_tokens;
  } sampling;
};

}  // namespace deepinfer
