// The host's memory: what becomes KV cache, and that every value a message names would fit.
#include "engine/host_memory_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <limits>
#include <optional>
#include <random>

namespace deepinfer {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr int64_t kMiB = 1 << 20;

HostMemory machine() {
  return {.limit = 8192 * kMiB,
          .weights = 1000 * kMiB,
          .weight_bits = 16,
          .block_bytes = kMiB,
          .int8_block_bytes = kMiB / 2 + 1024,
          .max_model_len = 8192};
}

std::optional<int64_t> number_after(const std::string& text, const std::string& words) {
  const size_t at = text.find(words);
  if (at == std::string::npos) return {};
  return std::strtoll(text.c_str() + at + words.size(), nullptr, 10);
}

TEST(HostMemoryPlan, TheUsualCache) {
  const auto plan = plan_host_cache(machine());
  ASSERT_TRUE(plan.ok()) << plan.error().message;
  EXPECT_EQ(plan->num_blocks, 512);
  EXPECT_EQ(plan->max_model_len, 8192);
}

TEST(HostMemoryPlan, NoMoreThanTheWeightsLeave) {
  HostMemory m = machine();
  m.weights = 8000 * kMiB;
  EXPECT_EQ(plan_host_cache(m)->num_blocks, 192);
  EXPECT_EQ(plan_host_cache(m)->max_model_len, 192 * 16);
}

TEST(HostMemoryPlan, GivenBytes) {
  HostMemory m = machine();
  m.given = 7192 * kMiB;
  EXPECT_EQ(plan_host_cache(m)->num_blocks, 7192);
  m.given += 1;
  const std::string text = plan_host_cache(m).error().message;
  EXPECT_THAT(text, HasSubstr("the weights leave 7192 MiB of the 8192 MiB"));
  m.given = *number_after(text, "set it to ");
  EXPECT_TRUE(plan_host_cache(m).ok());
}

TEST(HostMemoryPlan, WeightsThatDoNotFit) {
  HostMemory m = machine();
  m.weights = 9000 * kMiB;
  std::string text = check_host_weights(m, "m.gguf").error().message;
  EXPECT_THAT(text, HasSubstr("m.gguf: the weights take 9000 MiB, but this process may use 8192 MiB"));
  EXPECT_THAT(text, HasSubstr("model.quantization fp8 makes about 4500 MiB"));
  m.weights = 20000 * kMiB;
  text = check_host_weights(m, "m.gguf").error().message;
  EXPECT_THAT(text, HasSubstr("model.quantization int4 makes about 5156 MiB"));
  m.weight_bits = 32;
  EXPECT_THAT(check_host_weights(m, "m").error().message, HasSubstr("fp8 makes about 5000 MiB"));
  m.weight_bits = 0;
  EXPECT_THAT(check_host_weights(m, "m").error().message, HasSubstr("a machine with more memory"));
  EXPECT_EQ(check_host_weights(m, "m").error().code, ErrorCode::kMemory);
  EXPECT_TRUE(check_host_weights(machine(), "m").ok());
}

TEST(HostMemoryPlan, NothingIsPromisedThatDoesNotHelp) {
  HostMemory m = machine();
  m.auto_max_model_len = false;
  m.max_model_len = 1 << 20;  // 64 GiB of cache
  const std::string text = plan_host_cache(m).error().message;
  EXPECT_THAT(text, HasSubstr("model.max_model_len 52416 or less"));
  EXPECT_THAT(text, Not(HasSubstr("gpu.kv_cache_memory_bytes")));
  EXPECT_THAT(text, Not(HasSubstr("int8")));
  m.max_model_len = std::numeric_limits<int>::max();
  m.block_bytes = int64_t{1} << 50;
  EXPECT_THAT(plan_host_cache(m).error().message, HasSubstr("a machine with more memory"));
}

TEST(HostMemoryPlan, EveryRemedyWorks) {
  std::mt19937_64 random(23);
  const auto below = [&](int64_t n) { return static_cast<int64_t>(random() % static_cast<uint64_t>(n)); };
  int shorter = 0, larger = 0, smaller = 0, quantized = 0;
  for (int i = 0; i < 20'000; ++i) {
    HostMemory m{.limit = (64 + below(16384)) * kMiB,
                 .weight_bits = below(3) == 0 ? 0 : 16,
                 .block_bytes = 1 + below(4 * kMiB),
                 .max_model_len = static_cast<int>(1 + below(200'000)),
                 .auto_max_model_len = false};
    m.weights = below(m.limit + 1);
    m.int8_block_bytes = below(2) == 0 ? 0 : m.block_bytes / 2 + 1;
    if (below(2) == 0) m.given = 1 + below(m.limit);
    const auto plan = plan_host_cache(m);
    if (plan) {
      EXPECT_LE(plan->num_blocks * m.block_bytes + m.weights, m.limit);
      EXPECT_EQ(plan->max_model_len, m.max_model_len);
      continue;
    }
    const std::string& text = plan.error().message;
    const auto works = [&](HostMemory changed) {
      EXPECT_TRUE(plan_host_cache(changed).ok()) << text << " seed 23";
    };
    if (const auto tokens = number_after(text, "shorter context: model.max_model_len ")) {
      HostMemory changed = m;
      changed.max_model_len = static_cast<int>(*tokens);
      works(changed);
      ++shorter;
    }
    if (const auto bytes = number_after(text, "larger cache: gpu.kv_cache_memory_bytes ")) {
      HostMemory changed = m;
      changed.given = *bytes;
      works(changed);
      ++larger;
    }
    if (text.find("gpu.kv_cache_dtype int8") != std::string::npos) {
      HostMemory changed = m;
      changed.block_bytes = m.int8_block_bytes;
      works(changed);
      ++smaller;
    }
    if (const auto weights = number_after(text, " makes about ")) {
      HostMemory changed = m;
      changed.weights = *weights * kMiB;
      changed.given = 0;
      EXPECT_LE(changed.weights, m.limit) << text;
      ++quantized;
    }
  }
  EXPECT_GT(std::min({shorter, larger, smaller, quantized}), 50)
      << shorter << " " << larger << " " << smaller << " " << quantized;
}

}  // namespace
}  // namespace deepinfer
