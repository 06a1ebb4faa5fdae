// How the program tells of work that goes on: the line a minute of a busy server, times.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

#include "deepinfer/engine.h"

namespace deepinfer {

// What it is made from, at one time.
struct StatsSample {
  std::chrono::steady_clock::time_point time;
  uint64_t prompt_tokens = 0, generation_tokens = 0;  // since the start
  uint64_t prefix_queries = 0, prefix_hits = 0;       // tokens, since the start
  uint64_t preemptions = 0;                           // since the start
  int running = 0, waiting = 0;
  double kv_usage = 0;  // 0 to 1
};

StatsSample sample_stats(const Engine& engine);

// Nothing when neither a token was computed since nor a sequence is there.
std::optional<std::string> stats_line(const StatsSample& before, const StatsSample& now);

// "42 s", "3 min 05 s", "2 h 10 min".
std::string duration(double seconds);

}  // namespace deepinfer
