// When a busy server says what its limit is, and which one.
#include "cli/limit_hint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace deepinfer {
namespace {

using testing::HasSubstr;
using testing::Not;

class LimitHintTest : public testing::Test {
 protected:
  std::string tell(double kv_usage, int running, int waiting, uint64_t preemptions = 0) {
    StatsSample before{.waiting = waiting},
        now{.preemptions = preemptions, .running = running, .waiting = waiting, .kv_usage = kv_usage};
    return hint_.tell(before, now).value_or("");
  }
  static LoadSummary summary() {
    return {.kv_bytes = 512 << 20, .kv_blocks = 1456, .block_size = 16, .kv_dtype = "F16"};
  }
  static Config config() {
    Config config;
    config.gpu.max_num_seqs = 8;
    return config;
  }

  LimitHint hint_{config(), false, summary()};
};

TEST_F(LimitHintTest, TheNumberOfSequences) {
  const std::string text = tell(0.3, 8, 5);
  EXPECT_THAT(text, HasSubstr("5 requests wait because gpu.max_num_seqs 8 are running"));
  EXPECT_THAT(text, HasSubstr("30% full: gpu.max_num_seqs 24 would use it"));
  EXPECT_EQ(tell(0.3, 8, 7), "");   // once
  EXPECT_NE(tell(0.95, 8, 7), "");  // but for another reason
}

TEST_F(LimitHintTest, TheCache) {
  const std::string text = tell(0.97, 5, 3);
  EXPECT_THAT(text, HasSubstr("the KV cache is full (97% of 23296 tokens, 0 preemptions"));
  EXPECT_THAT(text, HasSubstr("a larger gpu.kv_cache_memory_bytes (now 536870912), gpu.kv_cache_dtype int8"));
}

TEST_F(LimitHintTest, Preemptions) {
  EXPECT_THAT(tell(0.8, 8, 3, 4), HasSubstr("4 preemptions"));
}

TEST_F(LimitHintTest, BothAtATime) {
  EXPECT_THAT(tell(0.8, 8, 3), HasSubstr("need both a larger gpu.max_num_seqs and more room"));
}

TEST_F(LimitHintTest, SilentWithoutAQueue) {
  EXPECT_EQ(tell(0.97, 8, 0), "");
  EXPECT_EQ(tell(0.3, 7, 5), "");  // prompts are being read: they will run
  StatsSample before{.waiting = 0}, now{.running = 8, .waiting = 4, .kv_usage = 0.99};
  EXPECT_EQ(hint_.tell(before, now), std::nullopt);  // since a moment only
}

TEST_F(LimitHintTest, OnAGpu) {
  Config settings = config();
  settings.gpu.enforce_eager = true;
  LoadSummary eight = summary();
  eight.kv_dtype = "F8_E4M3";
  LimitHint hint(settings, true, eight);
  const StatsSample before{.waiting = 1}, full{.running = 8, .waiting = 1, .kv_usage = 0.95},
      slots{.running = 8, .waiting = 1, .kv_usage = 0.001};
  const std::string text = hint.tell(before, full).value_or("");
  EXPECT_THAT(text, HasSubstr("a larger gpu.gpu_memory_utilization (now 0.90), a shorter"));
  EXPECT_THAT(text, Not(HasSubstr("kv_cache_dtype")));
  const std::string more = hint.tell(before, slots).value_or("");
  EXPECT_THAT(more, HasSubstr("gpu.max_num_seqs 32 would use it"));
  EXPECT_THAT(more, HasSubstr("gpu.enforce_eager is on"));
}

}  // namespace
}  // namespace deepinfer
