#include "cli/stats_line.h"

#include <fmt/format.h>

#include "engine/engine_metrics.h"

namespace deepinfer {

StatsSample sample_stats(const Engine& engine) {
  const EngineMetrics& metrics = engine.metrics();
  const EngineStats stats = engine.stats();
  const auto used = static_cast<double>(stats.total_blocks - stats.free_blocks);
  return {.time = std::chrono::steady_clock::now(),
          .prompt_tokens = metrics.prompt_tokens.value(),
          .generation_tokens = metrics.generation_tokens.value(),
          .prefix_queries = metrics.prefix_cache_queries.value(),
          .prefix_hits = metrics.prefix_cache_hits.value(),
          .preemptions = metrics.preemptions.value(),
          .running = stats.running,
          .waiting = stats.waiting,
          .kv_usage = stats.total_blocks > 0 ? used / static_cast<double>(stats.total_blocks) : 0};
}

std::optional<std::string> stats_line(const StatsSample& before, const StatsSample& now) {
  const uint64_t prompts = now.prompt_tokens - before.prompt_tokens;
  const uint64_t generated = now.generation_tokens - before.generation_tokens;
  if (prompts == 0 && generated == 0 && now.running == 0 && now.waiting == 0) return {};
  const double seconds = std::chrono::duration<double>(now.time - before.time).count();
  const auto rate = [&](uint64_t tokens) { return seconds > 0 ? static_cast<double>(tokens) / seconds : 0; };
  const uint64_t queries = now.prefix_queries - before.prefix_queries;
  const double hits =
      queries > 0 ? static_cast<double>(now.prefix_hits - before.prefix_hits) / static_cast<double>(queries)
                  : 0;
  return fmt::format(
      "running {}, waiting {}; prompts {:.1f} tokens/s, generated {:.1f} tokens/s; KV cache {:.1f}%, prefix "
      "hits "
      "{:.1f}%",
      now.running, now.waiting, rate(prompts), rate(generated), 100 * now.kv_usage, 100 * hits);
}

std::string duration(double seconds) {
  const auto s = static_cast<int64_t>(seconds + 0.5);
  if (s < 60) return fmt::format("{} s", s);
  if (s < 3600) return fmt::format("{} min {:02} s", s / 60, s % 60);
  return fmt::format("{} h {:02} min", s / 3600, s / 60 % 60);
}

}  // namespace deepinfer
