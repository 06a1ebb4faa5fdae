#include "server/metrics.h"

#include <fmt/format.h>

#include <array>

#include "deepinfer/version.h"
#include "engine/engine_metrics.h"
#include "server/metrics_text.h"

namespace deepinfer::server {
namespace {

// Known before they happen, so that a rate over them has a beginning.
constexpr std::array<std::string_view, 11> kReasons = {
    "queue_full",    "queue_timeout",   "loading",           "draining",          "stalled",    "overload",
    "out_of_memory", "request_timeout", "request_too_large", "headers_too_large", "device_lost"};

struct CounterFamily {
  const char* name;
  const char* help;
  const Counter* counter;
};

struct HistogramFamily {
  const char* name;
  const char* help;
  const Histogram* histogram;
};

const char* python_bool(bool value) {
  return value ? "True" : "False";  // as vLLM's label has it
}

void append_gauges(MetricsText& text, const Labels& labels, const EngineStats& stats) {
  text.family("num_requests_running", "gauge", "Sequences that are being computed.");
  text.sample(labels, stats.running);
  text.family("num_requests_waiting", "gauge", "Sequences that wait to be computed.");
  text.sample(labels, stats.waiting);
  const double used = static_cast<double>(stats.total_blocks - stats.free_blocks);
  text.family("kv_cache_usage_perc", "gauge", "Part of the KV cache that is in use, 0 to 1.");
  text.sample(labels, stats.total_blocks > 0 ? used / static_cast<double>(stats.total_blocks) : 0);
}

void append_settings(MetricsText& text, const Config& config, const EngineStats& stats) {
  const std::string block_size = std::to_string(config.gpu.block_size);
  const std::string blocks = std::to_string(stats.total_blocks);
  const std::string bytes = std::to_string(config.gpu.kv_cache_memory_bytes);
  const std::string utilization = fmt::format("{}", config.gpu.gpu_memory_utilization);
  text.family("cache_config_info", "gauge", "Settings of the KV cache, as labels.");
  text.sample({{"block_size", block_size},
               {"cache_dtype", config.gpu.kv_cache_dtype},
               {"enable_prefix_caching", python_bool(config.gpu.enable_prefix_caching)},
               {"engine", "0"},
               {"gpu_memory_utilization", utilization},
               {"kv_cache_memory_bytes", bytes},
               {"num_cpu_blocks", "0"},
               {"num_gpu_blocks", blocks}},
              1);
  text.family("lora_requests_info", "gauge",
              "LoRA adapters that run and wait, as labels; this server has none.");
  text.sample({{"max_lora", "0"}, {"running_lora_adapters", ""}, {"waiting_lora_adapters", ""}}, 0);
}

void append_counters(MetricsText& text, const Labels& labels, const EngineMetrics& m) {
  const CounterFamily families[] = {
      {"prompt_tokens_total", "Tokens of prompts, when their first token was generated.", &m.prompt_tokens},
      {"prompt_tokens_cached_total", "Those of them that the prefix cache had.", &m.prompt_tokens_cached},
      {"generation_tokens_total", "Tokens generated.", &m.generation_tokens},
      {"num_preemptions_total", "Sequences that gave their KV blocks back to be computed again.",
       &m.preemptions},
      {"prefix_cache_queries_total", "Tokens of prompts looked up in the prefix cache.",
       &m.prefix_cache_queries},
      {"prefix_cache_hits_total", "Tokens of prompts found in the prefix cache.", &m.prefix_cache_hits},
      {"spec_decode_num_drafts_total", "Drafts of speculative decoding.", &m.drafts},
      {"spec_decode_num_draft_tokens_total", "Tokens of these drafts.", &m.draft_tokens},
      {"spec_decode_num_accepted_tokens_total", "Tokens of these drafts that were accepted.",
       &m.accepted_draft_tokens},
  };
  for (const CounterFamily& family : families) {
    text.family(family.name, "counter", family.help);
    text.sample(labels, static_cast<double>(family.counter->value()));
  }
  text.family("request_success_total", "counter", "Sequences that ended, by how.");
  for (size_t i = 0; i < kEndingNames.size(); ++i) {
    Labels with = labels;
    with.insert(with.begin() + 1, {"finished_reason", kEndingNames[i]});
    text.sample(with, static_cast<double>(m.endings[i].value()));
  }
}

void append_histograms(MetricsText& text, const Labels& labels, const EngineMetrics& m) {
  const HistogramFamily families[] = {
      {"time_to_first_token_seconds", "From a request's arrival to its first token.", &m.time_to_first_token},
      {"inter_token_latency_seconds", "Between the tokens of a sequence.", &m.inter_token_latency},
      {"request_time_per_output_token_seconds", "Mean time of a sequence's tokens after the first.",
       &m.time_per_output_token},
      {"e2e_request_latency_seconds", "From a request's arrival to its end.", &m.e2e_latency},
      {"request_queue_time_seconds", "From a request's arrival to its first step.", &m.queue_time},
      {"request_inference_time_seconds", "From a sequence's first step to its last token.",
       &m.inference_time},
      {"request_prefill_time_seconds", "From a sequence's first step to its first token.", &m.prefill_time},
      {"request_decode_time_seconds", "From a sequence's first token to its last.", &m.decode_time},
      {"request_prompt_tokens", "Tokens of a sequence's prompt.", &m.request_prompt_tokens},
      {"request_generation_tokens", "Tokens that a sequence generated.", &m.request_generation_tokens},
      {"request_params_n", "Choices that a request asked for.", &m.params_n},
      {"request_params_max_tokens", "Most tokens that a sequence might generate.", &m.params_max_tokens},
      {"iteration_tokens_total", "Tokens that a step computed, of prompts and answers.", &m.iteration_tokens},
  };
  for (const HistogramFamily& family : families) {
    text.family(family.name, "histogram", family.help);
    text.histogram(labels, *family.histogram);
  }
}

void append_engine(MetricsText& text, const Config& config, const Llm& llm) {
  const EngineStats stats = llm.engine->stats();
  const Labels labels = {{"engine", "0"}, {"model_name", llm.names.front()}};
  const auto append = [&] {
    append_gauges(text, labels, stats);
    append_settings(text, config, stats);
    append_counters(text, labels, llm.engine->metrics());
    append_histograms(text, labels, llm.engine->metrics());
  };
  append();
  if (!config.server.vllm_metric_names) return;
  text.set_prefix("vllm:");
  append();
}

}  // namespace

HttpMetrics::HttpMetrics() {
  for (const std::string_view reason : kReasons) rejected_[std::string(reason)] = 0;
}

void HttpMetrics::answered(std::string_view handler, int status, std::string_view code) {
  // A probe that is told how things are was not refused.
  const bool probe = handler == "/health" || handler == "/health/ready";
  const std::string_view reason = probe ? std::string_view() : rejection(status, code);
  const std::lock_guard lock(mutex_);
  ++requests_[{std::string(handler), status}];
  if (!reason.empty()) ++rejected_[std::string(reason)];
}

HttpMetrics::Counts HttpMetrics::requests() const {
  const std::lock_guard lock(mutex_);
  return requests_;
}

std::map<std::string, uint64_t> HttpMetrics::rejected() const {
  const std::lock_guard lock(mutex_);
  return rejected_;
}

std::string_view rejection(int status, std::string_view code) {
  if (status == 408) return "request_timeout";
  if (status == 413) return "request_too_large";
  if (status == 431) return "headers_too_large";
  if (status != 429 && status != 503) return {};
  if (code == "unavailable") return "draining";
  for (const std::string_view reason : kReasons)
    if (reason == code) return reason;
  return status == 429 ? "queue_full" : "overload";  // overload: connections, bodies held at once
}

std::string metrics_text(const HttpMetrics& http, const Config& config, const Llm* llm) {
  MetricsText text;
  text.set_prefix("deepinfer:");
  text.family("build_info", "gauge", "The program's version, as a label.");
  text.sample({{"version", version()}}, 1);
  text.family("http_requests_total", "counter", "Replies of the server; 499: the client left before one.");
  for (const auto& [key, count] : http.requests())
    text.sample({{"handler", key.first}, {"status", std::to_string(key.second)}}, static_cast<double>(count));
  text.family("requests_rejected_total", "counter", "Requests refused for the server's limits or its state.");
  for (const auto& [reason, count] : http.rejected())
    text.sample({{"reason", reason}}, static_cast<double>(count));
  if (llm) append_engine(text, config, *llm);
  return text.take();
}

}  // namespace deepinfer::server
