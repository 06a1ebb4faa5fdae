// What surrounds the fast attention paths: the plan that the device makes, memory and choices of
// FastAttention with units that only write down how they were called.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "backend/cuda/error.h"
#include "backend/cuda/fast/attention_sample.h"
#include "backend/cuda/fast/fast_attention.h"
#include "backend/cuda/fast/plan.h"
#include "backend/cuda/fast/units.h"
#include "backend/cuda/parts.h"
#include "emulation/device_array.h"
#include "emulation/emulated_gpu.h"

namespace deepinfer::cuda {
namespace {

using emulation::DeviceArray;

struct Seen {
  std::vector<Fa2Call> fa2;
  std::vector<XqaCall> xqa;
  std::vector<std::vector<uint32_t>> lengths;  // kv_len of each XQA call
};
Seen& seen() {
  static Seen all;
  return all;
}

constexpr size_t kScratchOfSplit = 1000;

const Fa2Unit kFakeFa2 = {DType::kBF16, [] { return true; },
                          [](const Fa2Call& c) { seen().fa2.push_back(c); }};
const XqaUnit kFakeXqa = {
    128,
    4,
    DType::kBF16,
    DType::kBF16,
    [](XqaSetup& s) {
      s = {.smem = 1000, .blocks_per_sm = 2, .scratch_bytes = kScratchOfSplit, .empty_score = -5};
      return true;
    },
    [](const XqaCall& c) {
      seen().xqa.push_back(c);
      // All scratch and semaphores that the kernel may touch belong to it.
      const auto count = static_cast<size_t>(c.rows) * static_cast<size_t>(c.attention->kv_heads);
      if (c.splits > 1)
        DI_CUDA_CHECK(
            cudaMemsetAsync(c.scratch, 1, count * static_cast<size_t>(c.splits) * kScratchOfSplit, c.stream));
      std::vector<uint32_t> lengths(static_cast<size_t>(c.rows)), zeros(count);
      std::vector<float> sinks(static_cast<size_t>(c.attention->heads));
      DI_CUDA_CHECK(
          cudaMemcpyAsync(lengths.data(), c.kv_len, lengths.size() * 4, cudaMemcpyDeviceToHost, c.stream));
      DI_CUDA_CHECK(
          cudaMemcpyAsync(zeros.data(), c.semaphores, zeros.size() * 4, cudaMemcpyDeviceToHost, c.stream));
      DI_CUDA_CHECK(
          cudaMemcpyAsync(sinks.data(), c.sinks, sinks.size() * 4, cudaMemcpyDeviceToHost, c.stream));
      DI_CUDA_CHECK(cudaStreamSynchronize(c.stream));
      seen().lengths.push_back(lengths);
      EXPECT_THAT(zeros, testing::Each(0u));
      EXPECT_THAT(sinks, testing::Each(-5.0f));
    }};

std::unique_ptr<Gpu> open_gpu() {
  auto gpu = Gpu::open({.self_check = false});
  EXPECT_TRUE(gpu.ok()) << gpu.error().message;
  return std::move(gpu).value();
}

// Rows of these many tokens, the first of one each; contexts drawn.
struct PlanCase {
  std::vector<int> queries;
  int group, tile;
};

void expect_plan(const PlanCase& c, std::mt19937& random) {
  std::vector<int32_t> row_start = {0}, position;
  std::vector<uint32_t> expected_len;
  int decode_rows = 0;
  for (size_t b = 0; b < c.queries.size(); ++b) {
    if (c.queries[b] == 1 && decode_rows == static_cast<int>(b)) ++decode_rows;
    const bool padding = c.queries[b] == 1 && random() % 4 == 0;
    const int context = padding ? -1 : static_cast<int>(random() % 1000);
    for (int i = 0; i < c.queries[b]; ++i) position.push_back(context + i);
    expected_len.push_back(static_cast<uint32_t>(context + c.queries[b]));
    row_start.push_back(static_cast<int32_t>(position.size()));
  }
  const auto rows = static_cast<int32_t>(c.queries.size());
  const PlanSizes sizes{.rows = rows,
                        .tokens = static_cast<int32_t>(position.size()),
                        .decode_rows = decode_rows,
                        .group = c.group,
                        .tile = c.tile};
  const auto slots = static_cast<size_t>(plan_slots(sizes));
  const auto prefill = static_cast<size_t>(rows - decode_rows);
  DeviceArray<int32_t> starts(row_start), positions(position), page_start(prefill + 1), tile_row(slots + 1),
      tile_in_row(slots + 1);
  DeviceArray<uint32_t> kv_len(static_cast<size_t>(rows));
  DeviceArray<uint8_t> valid(std::vector<uint8_t>(slots + 1, 0x77));
  DeviceBatch batch{.row_start = starts.data(), .position = positions.data(), .max_blocks = 77};
  make_plan(sizes, batch,
            {kv_len.data(), page_start.data(), tile_row.data(), tile_in_row.data(),
             reinterpret_cast<bool*>(valid.data())},
            nullptr);

  EXPECT_EQ(kv_len.read(), expected_len);
  const auto pages = page_start.read(), in_row = tile_in_row.read(), of_row = tile_row.read();
  const auto valids = valid.read();
  for (size_t r = 0; r <= prefill && prefill > 0; ++r) EXPECT_EQ(pages[r], static_cast<int32_t>(r) * 77);
  // Every tile of every row once.
  std::vector<std::vector<int>> found(prefill);
  for (size_t i = 0; i < slots; ++i) {
    ASSERT_LE(valids[i], 1) << "slot " << i << " was not written";
    if (valids[i] == 1) found.at(static_cast<size_t>(of_row[i])).push_back(in_row[i]);
  }
  EXPECT_EQ(valids[slots], 0x77) << "written behind the last slot";
  for (size_t r = 0; r < prefill; ++r) {
    const int pairs = c.queries[static_cast<size_t>(decode_rows) + r] * c.group;
    std::vector<int> all(static_cast<size_t>((pairs + c.tile - 1) / c.tile));
    for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<int>(i);
    EXPECT_THAT(found[r], testing::UnorderedElementsAreArray(all)) << "row " << r;
  }
}

TEST(FastPlan, HasEveryTileOnceAndTheLengths) {
  std::mt19937 random(5);
  for (int i = 0; i < 60; ++i) {
    PlanCase c{.group = 1 + static_cast<int>(random() % 8), .tile = random() % 2 ? 64 : 128};
    const size_t decode = random() % 3 == 0 ? random() % 300 : random() % 4, prefill = random() % 6;
    c.queries.assign(decode, 1);
    for (size_t r = 0; r < prefill; ++r)
      c.queries.push_back(2 + static_cast<int>(random() % (random() % 3 == 0 ? 2000 : 40)));
    if (c.queries.empty()) continue;
    SCOPED_TRACE(testing::Message() << "case " << i << ", group " << c.group << ", tile " << c.tile);
    expect_plan(c, random);
  }
}

class FastAttentionTest : public testing::Test {
 protected:
  void SetUp() override {
    seen() = {};
    gpu_ = open_gpu();
    const auto ready = prepare_fast_attention(*gpu_);
    ASSERT_TRUE(ready.ok()) << ready.error().message;
    EXPECT_TRUE(ready->fa2);
    EXPECT_TRUE(ready->xqa);
    gpu_->fast.fa2 = gpu_->fast.xqa = true;
  }
  void TearDown() override {
    // Kernels in flight may read the samples.
    gpu_->synchronize();
    samples_.clear();
  }
  AttentionSample* sample(SampleShape shape = {}) {
    if (shape.rows.empty()) shape.rows = {{.context = 300}, {.padding = true}, {.context = 7, .tokens = 40}};
    auto made = AttentionSample::make(*gpu_, shape);
    EXPECT_TRUE(made.ok());
    samples_.push_back(std::move(made).value());
    return samples_.back().get();
  }
  std::unique_ptr<Gpu> gpu_;
  std::vector<std::unique_ptr<AttentionSample>> samples_;
};

TEST_F(FastAttentionTest, ServesDecodeAndPrefillRows) {
  auto* const s = sample();
  const FastServed served = attention_fast(*gpu_, s->attention());
  EXPECT_TRUE(served.decode);
  EXPECT_TRUE(served.prefill);
  ASSERT_EQ(seen().xqa.size(), 1u);
  EXPECT_EQ(seen().xqa[0].rows, 2);
  EXPECT_EQ(seen().lengths[0], (std::vector<uint32_t>{301, 0}));
  ASSERT_EQ(seen().fa2.size(), 1u);
  EXPECT_EQ(seen().fa2[0].tile, 128);
  EXPECT_EQ(seen().fa2[0].slots, 40 * 4 / 128 + 1);
}

TEST_F(FastAttentionTest, SplitsUntilTheCardIsFull) {
  const int blocks = 2 * gpu_->facts().multiprocessors;
  for (const int rows : {1, 2, 3, 12}) {
    const auto s =
        sample({.rows = std::vector<SampleRow>(static_cast<size_t>(rows), SampleRow{.context = 2000})});
    xqa_decode(*gpu_, s->attention());
    const XqaCall& call = seen().xqa.back();
    EXPECT_GE(call.splits, 1);
    EXPECT_LE(call.splits, 8);  // tiles of 256 in 2001 positions
    if (call.splits > 1) {
      EXPECT_LE(call.splits * rows * 2, blocks);
    }
  }
  auto* const shortest = sample({.rows = {{.context = 255}}});
  xqa_decode(*gpu_, shortest->attention());
  EXPECT_EQ(seen().xqa.back().splits, 1);
}

TEST_F(FastAttentionTest, OnePlanAStep) {
  auto* const s = sample();
  auto kernels = [&] {
    gpu_->synchronize();
    const int64_t before = emulation::machine_counts().kernels;
    attention_fast(*gpu_, s->attention());
    gpu_->synchronize();
    return emulation::machine_counts().kernels - before;
  };
  // Before the first step nothing says that the arrays are the same.
  EXPECT_GE(kernels(), 1);
  EXPECT_GE(kernels(), 1);
  ++gpu_->parts().steps;
  EXPECT_EQ(kernels(), 1);
  EXPECT_EQ(kernels(), 0);
  ++gpu_->parts().steps;
  EXPECT_EQ(kernels(), 1);
}

TEST_F(FastAttentionTest, RefusesWhatItDoesNotServe) {
  auto* const s = sample();
  const PagedAttention good = s->attention();
  ASSERT_TRUE(xqa_supports(*gpu_, good));
  ASSERT_TRUE(fa2_supports(*gpu_, good));
  auto refused_by_both = [&](auto change) {
    PagedAttention a = good;
    change(a);
    EXPECT_FALSE(xqa_supports(*gpu_, a));
    EXPECT_FALSE(fa2_supports(*gpu_, a));
  };
  refused_by_both([](PagedAttention& a) { a.soft_cap = 30; });
  refused_by_both([](PagedAttention& a) { a.dim_k = a.dim_v = 96; });
  refused_by_both([](PagedAttention& a) { a.dim_v = 64; });
  refused_by_both([](PagedAttention& a) { a.activation = a.kv_dtype = DType::kF16; });
  refused_by_both([](PagedAttention& a) { a.kv_dtype = DType::kF8E4M3; });
  refused_by_both([](PagedAttention& a) { a.rows = 1 << 20; });
  PagedAttention a = good;
  a.heads = 6;  // a group that no unit of XQA was built for
  EXPECT_FALSE(xqa_supports(*gpu_, a));
  EXPECT_TRUE(fa2_supports(*gpu_, a));
  a = good;
  a.block_size = 32;
  EXPECT_FALSE(xqa_supports(*gpu_, a));
  EXPECT_TRUE(fa2_supports(*gpu_, a));
  gpu_->fast = {};
  const FastServed served = attention_fast(*gpu_, good);
  EXPECT_FALSE(served.decode || served.prefill);
}

TEST(FastAttention, SupportsNothingBeforeItIsPrepared) {
  const auto gpu = open_gpu();
  PagedAttention a;
  EXPECT_FALSE(xqa_supports(*gpu, a));
  EXPECT_FALSE(fa2_supports(*gpu, a));
}

}  // namespace

// In place of those of units_none.cpp.
std::span<const Fa2Unit> fa2_units() {
  return {&kFakeFa2, 1};
}
std::span<const XqaUnit> xqa_units() {
  return {&kFakeXqa, 1};
}

}  // namespace deepinfer::cuda
