#include "engine/memory_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <optional>
#include <random>

namespace deepinfer {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr size_t kMiB = 1 << 20;
constexpr size_t kGiB = 1 << 30;

// Llama-3.1-8B in bfloat16 on a card of 24 GiB that nobody else uses.
MeasuredMemory on_24_gib() {
  MeasuredMemory m{.total = 24 * kGiB,
                   .others = 300 * kMiB,
                   .weights = 15 * kGiB,
                   .fixed = kGiB,
                   .step = 200 * kMiB,
                   .graphs = 50 * kMiB,
                   .later_graphs = 150 * kMiB,
                   .mapped = 512 * kMiB,
                   .block_bytes = 2 * kMiB,
                   .granularity = 2 * kMiB,
                   .block_size = 16,
                   .max_blocks = 1 << 20,
                   .max_num_seqs = 256,
                   .max_num_batched_tokens = 2048,
                   .max_model_len = 131072};
  m.free = m.total - m.others - m.weights - m.fixed - m.step - m.graphs - m.mapped;
  return m;
}

MemoryRequest request() {
  return {.utilization = 0.92,
          .headroom = 512 * kMiB,
          .fp8_kv_possible = true,
          .quantization_possible = true,
          .gpu = "GPU 0 (NVIDIA GeForce RTX 4090)"};
}

std::string error_of(const Result<CachePlan>& plan) {
  EXPECT_FALSE(plan.ok());
  if (plan) return "";
  EXPECT_EQ(plan.error().code, ErrorCode::kMemory);
  return plan.error().message;
}

// The number that follows `key` in a message.
std::optional<double> number_after(const std::string& text, const std::string& key) {
  const size_t at = text.find(key + " ");
  if (at == std::string::npos) return std::nullopt;
  return std::strtod(text.c_str() + at + key.size() + 1, nullptr);
}

TEST(MemoryPlan, TheCacheGetsWhatTheUtilizationLeaves) {
  const MeasuredMemory m = on_24_gib();
  const auto plan = plan_cache(m, request());
  ASSERT_TRUE(plan.ok()) << plan.error().message;
  const size_t left =
      requested_bytes(m.total, 0.92) - m.weights - m.fixed - m.step - m.graphs - m.later_graphs;
  EXPECT_EQ(plan->num_blocks, static_cast<int64_t>(left / m.block_bytes));
  EXPECT_EQ(plan->max_model_len, plan->num_blocks * 16);  // auto: shorter than the model's 131072
}

TEST(MemoryPlan, NeverMoreThanIsFree) {
  MeasuredMemory m = on_24_gib();
  m.free -= 3 * kGiB;  // somebody took it meanwhile
  const auto plan = plan_cache(m, request());
  ASSERT_TRUE(plan.ok()) << plan.error().message;
  // Less two units of the mapping: the history of tokens is rounded up for itself.
  EXPECT_EQ(plan->num_blocks,
            static_cast<int64_t>((m.free + m.mapped - m.later_graphs - 516 * kMiB) / m.block_bytes));
}

TEST(MemoryPlan, NeverMoreThanTheAddresses) {
  MeasuredMemory m = on_24_gib();
  m.max_blocks = 100;
  const auto plan = plan_cache(m, request());
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->num_blocks, 100);
}

TEST(MemoryPlan, MappedInWholeUnits) {
  MeasuredMemory m = on_24_gib();
  m.block_bytes = 3 * kMiB / 2;
  m.granularity = 64 * kMiB;
  MemoryRequest r = request();
  r.kv_cache_memory_bytes = static_cast<int64_t>(200 * kMiB);  // 192 MiB in whole units
  const auto plan = plan_cache(m, r);
  ASSERT_TRUE(plan.ok()) << plan.error().message;
  EXPECT_EQ(plan->num_blocks, 128);
}

TEST(MemoryPlan, GivenBytesReplaceTheUtilization) {
  MemoryRequest r = request();
  r.utilization = 0.1;
  r.kv_cache_memory_bytes = static_cast<int64_t>(kGiB);
  const auto plan = plan_cache(on_24_gib(), r);
  ASSERT_TRUE(plan.ok()) << plan.error().message;
  EXPECT_EQ(plan->num_blocks, 512);
  r.kv_cache_memory_bytes = static_cast<int64_t>(20 * kGiB);
  const std::string text = error_of(plan_cache(on_24_gib(), r));
  EXPECT_THAT(text, HasSubstr("gpu.kv_cache_memory_bytes asks for 20.00 GiB"));
  EXPECT_THAT(text, HasSubstr("weights 15.00 GiB"));
}

TEST(MemoryPlan, AContextThatDoesNotFit) {
  MemoryRequest r = request();
  r.auto_max_model_len = false;
  MeasuredMemory m = on_24_gib();
  const std::string text = error_of(plan_cache(m, r));
  for (const char* part : {"GPU 0 (NVIDIA GeForce RTX 4090): the model does not fit", "weights 15.00 GiB",
                           "buffers 1.00 GiB", "CUDA graphs 0.20 GiB", "0.92 of 24.00 GiB",
                           "23.71 GiB free before loading", "one sequence of 131072 tokens needs 16.00 GiB",
                           "model.max_model_len 46592 or less", "model.quantization int4"})
    EXPECT_THAT(text, HasSubstr(part));
  EXPECT_THAT(text, Not(HasSubstr("gpu_memory_utilization")));  // all of the card would not be enough
  m.max_model_len = 50000;                                      // 6.1 GiB: the whole card has them
  const std::string near = error_of(plan_cache(m, r));
  EXPECT_THAT(near, HasSubstr("gpu.gpu_memory_utilization 0.94 (now 0.92"));
  EXPECT_THAT(near, HasSubstr("gpu.max_num_seqs"));
  EXPECT_THAT(near, HasSubstr("kv_cache_dtype fp8 needs 3.05 GiB instead of 6.10 GiB"));
}

TEST(MemoryPlan, NothingIsPromisedThatDoesNotHelp) {
  MeasuredMemory m = on_24_gib();
  m.weights = 23 * kGiB;
  m.free = 10 * kMiB;
  m.mapped = 2 * kMiB;
  MemoryRequest r = request();
  r.quantization_possible = false;
  const std::string text = error_of(plan_cache(m, r));
  EXPECT_THAT(text, HasSubstr("one sequence of 512 tokens"));
  EXPECT_THAT(text, HasSubstr("a GPU with more memory"));
  EXPECT_THAT(text, Not(HasSubstr("max_model_len")));
}

// Whatever the numbers: a value that an error names makes the plan succeed.
TEST(MemoryPlan, EveryRemedyWorks) {
  const unsigned seed = 20260801;
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  const auto below = [&](size_t n) { return static_cast<size_t>(random() % n); };
  int failed = 0, lengths = 0, shares = 0, bytes = 0, steps = 0;
  for (int round = 0; round < 20000; ++round) {
    MeasuredMemory m{.total = (4 + below(100)) * kGiB};
    m.others = below(2 * kGiB);
    m.weights = below(m.total);
    m.fixed = below(4 * kGiB);
    m.step = below(kGiB);
    m.graphs = below(kGiB / 4);
    m.later_graphs = below(kGiB / 4);
    m.mapped = below(kGiB / 4);
    const size_t taken = m.others + m.weights + m.fixed + m.step + m.graphs + m.mapped;
    if (taken >= m.total) continue;
    m.free = m.total - taken;
    m.block_bytes = 1 + below(8 * kMiB);
    m.granularity = 2 * kMiB;
    m.max_blocks = 1 << 30;
    m.max_num_seqs = 256;
    m.max_num_batched_tokens = 8192;
    m.max_model_len = 1 + static_cast<int>(below(200000));
    MemoryRequest r = request();
    r.utilization = static_cast<double>(1 + below(100)) / 100;
    r.auto_max_model_len = below(2) == 0;
    if (below(4) == 0) r.kv_cache_memory_bytes = static_cast<int64_t>(1 + below(8 * kGiB));
    const auto plan = plan_cache(m, r);
    if (plan) {
      const size_t cache = static_cast<size_t>(plan->num_blocks) * m.block_bytes;
      EXPECT_LE(cache + m.later_graphs, m.free + m.mapped);
      EXPECT_TRUE(r.auto_max_model_len || plan->max_model_len == m.max_model_len);
      continue;
    }
    ++failed;
    const std::string& text = plan.error().message;
    if (const auto length = number_after(text, "model.max_model_len")) {
      MeasuredMemory shorter = m;
      shorter.max_model_len = static_cast<int>(*length);
      EXPECT_TRUE(plan_cache(shorter, r).ok()) << text;
      ++lengths;
    }
    if (const auto share = number_after(text, "gpu.gpu_memory_utilization")) {
      MemoryRequest larger = r;
      larger.utilization = *share;
      EXPECT_TRUE(plan_cache(m, larger).ok()) << text;
      EXPECT_GT(*share, r.utilization);
      ++shares;
    }
    if (const auto more = number_after(text, "cache: gpu.kv_cache_memory_bytes")) {
      MemoryRequest given = r;
      given.kv_cache_memory_bytes = static_cast<int64_t>(*more);
      EXPECT_TRUE(plan_cache(m, given).ok()) << text;
      ++bytes;
    }
    if (const auto seqs = number_after(text, "gpu.max_num_seqs")) {
      const double part = *seqs / m.max_num_seqs;
      MeasuredMemory smaller = m;
      for (size_t* size : {&smaller.fixed, &smaller.step, &smaller.graphs, &smaller.later_graphs})
        *size = static_cast<size_t>(part * static_cast<double>(*size));
      smaller.free =
          m.total - m.others - m.weights - smaller.fixed - smaller.step - smaller.graphs - m.mapped;
      EXPECT_TRUE(plan_cache(smaller, r).ok()) << text << part;
      ++steps;
    }
  }
  EXPECT_GT(failed, 100);
  for (const int count : {lengths, shares, bytes, steps}) EXPECT_GT(count, 10);
}

TEST(SmallerSteps, NamesLess) {
  MemoryRequest r = request();
  r.holders = "python3 (pid 1) 2.0 GiB";
  const Error error = with_smaller_steps({ErrorCode::kMemory, "GPU 0: no", {}}, 512, 8192, r);
  EXPECT_EQ(error.code, ErrorCode::kMemory);
  for (const char* part : {"GPU 0: no. What takes less:", "gpu.max_num_batched_tokens 2048",
                           "gpu.max_num_seqs 128", "python3 (pid 1)", "quantization"})
    EXPECT_THAT(error.message, HasSubstr(part));
  r = {};
  EXPECT_THAT(with_smaller_steps({ErrorCode::kMemory, "no", {}}, 4, 100, r).message,
              HasSubstr("a GPU with more memory"));
}

TEST(CheckFreeMemory, NamesBothNumbersAndWhoHoldsTheRest) {
  MemoryRequest r = request();
  r.holders = "python3 (pid 4242) 9.0 GiB";
  EXPECT_TRUE(check_free_memory(23 * kGiB, 24 * kGiB, r).ok());
  const auto refused = check_free_memory(15 * kGiB, 24 * kGiB, r);
  ASSERT_FALSE(refused.ok());
  for (const char* part : {"gpu.gpu_memory_utilization 0.92 asks for 22.08 GiB of 24.00 GiB",
                           "only 15.00 GiB", "python3 (pid 4242) 9.0 GiB", "gpu.gpu_memory_utilization 0.62"})
    EXPECT_THAT(refused.error().message, HasSubstr(part));
  r.utilization = 0.62;
  EXPECT_TRUE(check_free_memory(15 * kGiB, 24 * kGiB, r).ok());
  r.utilization = 0.92;
  r.kv_cache_memory_bytes = 1 << 30;
  EXPECT_TRUE(check_free_memory(15 * kGiB, 24 * kGiB, r).ok());
  r.kv_cache_memory_bytes = 0;
  r.holders = "";
  EXPECT_THAT(check_free_memory(0, 24 * kGiB, r).error().message, HasSubstr("nvidia-smi"));
}

TEST(CheckWeights, SaysWhatWouldFit) {
  MemoryRequest r = request();
  EXPECT_TRUE(check_weights(15 * kGiB, 23 * kGiB, 24 * kGiB, r).ok());
  auto refused = check_weights(26 * kGiB, 23 * kGiB, 24 * kGiB, r);
  ASSERT_FALSE(refused.ok());
  EXPECT_THAT(refused.error().message, HasSubstr("weights need 26.00 GiB"));
  EXPECT_THAT(refused.error().message, HasSubstr("fp8 makes about 13.00 GiB"));
  refused = check_weights(140 * kGiB, 23 * kGiB, 24 * kGiB, r);
  ASSERT_FALSE(refused.ok());
  EXPECT_THAT(refused.error().message, HasSubstr("a model with less than"));
  r.utilization = 0.5;
  refused = check_weights(15 * kGiB, 23 * kGiB, 24 * kGiB, r);
  ASSERT_FALSE(refused.ok());
  EXPECT_THAT(refused.error().message, HasSubstr("gpu.gpu_memory_utilization 0.69 (now 0.50)"));
}

}  // namespace
}  // namespace deepinfer
