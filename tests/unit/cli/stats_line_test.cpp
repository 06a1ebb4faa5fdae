// When a busy server tells a line, and what it says.
#include "cli/stats_line.h"

#include <gtest/gtest.h>

#include "cli/serve_banner.h"

namespace deepinfer {
namespace {

StatsSample at(int seconds) {
  return {.time = std::chrono::steady_clock::time_point(std::chrono::seconds(seconds))};
}

TEST(Duration, InTheUnitsThatPeopleRead) {
  EXPECT_EQ(duration(0.4), "0 s");
  EXPECT_EQ(duration(59.6), "1 min 00 s");
  EXPECT_EQ(duration(185), "3 min 05 s");
  EXPECT_EQ(duration(7800), "2 h 10 min");
}

TEST(StatsLine, ABusyMinute) {
  StatsSample now = at(60);
  now.prompt_tokens = 600;
  now.generation_tokens = 1230;
  now.prefix_queries = 800;
  now.prefix_hits = 200;
  now.running = 3;
  now.waiting = 1;
  now.kv_usage = 0.125;
  EXPECT_EQ(stats_line(at(0), now),
            "running 3, waiting 1; prompts 10.0 tokens/s, generated 20.5 tokens/s; KV cache 12.5%, prefix "
            "hits 25.0%");
}

TEST(StatsLine, AnIdleMinuteTellsNothing) {
  StatsSample before = at(0), now = at(60);
  before.prompt_tokens = now.prompt_tokens = 600;
  before.generation_tokens = now.generation_tokens = 1230;
  EXPECT_EQ(stats_line(before, now), std::nullopt);
  now.running = 1;  // a step that takes longer than a minute
  EXPECT_NE(stats_line(before, now), std::nullopt);
  now.running = 0;
  now.waiting = 1;
  EXPECT_NE(stats_line(before, now), std::nullopt);
}

TEST(StatsLine, OnlyWhatHappenedSinceIsCounted) {
  StatsSample before = at(60), now = at(120);
  before.prefix_queries = before.prefix_hits = 1000;
  now.prefix_queries = 1100;
  now.prefix_hits = 1050;
  now.generation_tokens = 60;
  EXPECT_EQ(
      stats_line(before, now),
      "running 0, waiting 0; prompts 0.0 tokens/s, generated 1.0 tokens/s; KV cache 0.0%, prefix hits 50.0%");
}

TEST(Banner, TellsSettingsThatAreNotBuiltInAndNoSecret) {
  auto loaded = load_config({.flags = {{"max-num-seqs", "8"}, {"api-key", "very-secret"}}});
  ASSERT_TRUE(loaded.ok()) << loaded.error().message;
  const std::string settings = chosen_settings(*loaded);
  EXPECT_EQ(settings,
            "gpu.max_num_seqs 8 (--max-num-seqs), gpu.max_num_batched_tokens 512 (this device (CPU)), "
            "server.api_key (hidden) (--api-key)");
}

TEST(Banner, IsShort) {
  Llm llm;
  llm.names = {"it's \"smol\""};
  llm.max_model_len = 2048;
  llm.model.layers = 30;
  llm.summary = {.device = "CPU: 2 threads, avx512 kernels",
                 .weights = "Q4_1",
                 .weight_bytes = 96 << 20,
                 .kv_bytes = 512 << 20,
                 .kv_blocks = 1456,
                 .block_size = 16,
                 .kv_dtype = "F16"};
  const std::string text =
      banner({}, "server.port 0 (--port)", llm, {"http://127.0.0.1:1", "http://127.0.0.1:1"});
  EXPECT_LE(std::count(text.begin(), text.end(), '\n'), 10);
  EXPECT_NE(text.find("512 MiB of F16: 1456 blocks, 23296 tokens"), std::string::npos) << text;
  EXPECT_NE(text.find("128 sequences, 2048 tokens a step, 512 waiting"), std::string::npos) << text;
  EXPECT_NE(text.find("settings  server.port 0 (--port)"), std::string::npos) << text;
  EXPECT_NE(text.find("\ncurl http://127.0.0.1:1/v1/completions"), std::string::npos) << text;
}

}  // namespace
}  // namespace deepinfer
