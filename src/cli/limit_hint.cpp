#include "cli/limit_hint.h"

#include <fmt/format.h>

#include <algorithm>

namespace deepinfer {
namespace {

constexpr double kFullCache = 0.9;   // of the KV cache: the next sequence may find no room
constexpr double kSpareCache = 0.7;  // below it more sequences have room

}  // namespace

LimitHint::LimitHint(const Config& config, bool on_gpu, const LoadSummary& summary)
    : settings_(config.gpu), on_gpu_(on_gpu), summary_(summary) {}

std::optional<std::string> LimitHint::once(const std::string& reason, std::string text) {
  if (!told_.insert(reason).second) return {};
  return text;
}

std::string LimitHint::more_cache() const {
  const bool eight_bits = summary_.kv_dtype == "F8_E4M3" || summary_.kv_dtype == "I8";
  std::string out =
      on_gpu_ && settings_.kv_cache_memory_bytes == 0
          ? fmt::format("a larger gpu.gpu_memory_utilization (now {:.2f})", settings_.gpu_memory_utilization)
          : fmt::format("a larger gpu.kv_cache_memory_bytes (now {})", summary_.kv_bytes);
  if (!eight_bits) out += fmt::format(", gpu.kv_cache_dtype {}", on_gpu_ ? "fp8" : "int8");
  return out + ", a shorter model.max_model_len or weights of fewer bits (model.quantization)";
}

std::optional<std::string> LimitHint::tell(const StatsSample& before, const StatsSample& now) {
  // One look may hit a moment; two of them say that requests wait.
  if (before.waiting == 0 || now.waiting == 0) return {};
  if (now.kv_usage >= kFullCache || now.preemptions > before.preemptions)
    return once(
        "cache",
        fmt::format(
            "{} requests wait because the KV cache is full ({:.0f}% of {} tokens, {} preemptions in this "
            "time). What gives more room: {}",
            now.waiting, 100 * now.kv_usage, summary_.kv_blocks * summary_.block_size,
            now.preemptions - before.preemptions, more_cache()));
  if (now.running < settings_.max_num_seqs) return {};
  if (now.kv_usage >= kSpareCache)
    return once(
        "both",
        fmt::format("{} requests wait: gpu.max_num_seqs {} are running, and the KV cache is {:.0f}% full. "
                    "More of them at a time need both a larger gpu.max_num_seqs and more room: {}",
                    now.waiting, settings_.max_num_seqs, 100 * now.kv_usage, more_cache()));
  const double room = kFullCache / std::max(now.kv_usage, 0.01);
  const int more = static_cast<int>(settings_.max_num_seqs * std::min(room, 4.0));
  return once(
      "sequences",
      fmt::format("{} requests wait because gpu.max_num_seqs {} are running, while the KV cache is only "
                  "{:.0f}% full: "
                  "gpu.max_num_seqs {} would use it (more tokens a second, each stream a little slower){}",
                  now.waiting, settings_.max_num_seqs, 100 * now.kv_usage, more,
                  on_gpu_ && settings_.enforce_eager
                      ? "; and gpu.enforce_eager is on, without which each step is shorter"
                      : ""));
}

}  // namespace deepinfer
