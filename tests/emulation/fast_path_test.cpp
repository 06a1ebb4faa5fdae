// What surrounds the fast paths: the plan that the device makes, memory and choices of FastAttention with
// units that only write down how they were called, and the self-check with paths that are right and wrong.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <random>
#include <set>

#include "backend/cuda/cublaslt.h"
#include "backend/cuda/error.h"
#include "backend/cuda/fast/attention_sample.h"
#include "backend/cuda/fast/fast_attention.h"
#include "backend/cuda/fast/plan.h"
#include "backend/cuda/fast/units.h"
#include "backend/cuda/parts.h"
#include "backend/cuda/self_check.h"
#include "backend/cuda/self_check_cases.h"
#include "backend/cuda_error.h"
#include "emulation/device_array.h"
#include "emulation/emulated_gpu.h"

namespace deepinfer::cuda {
namespace {

using emulation::DeviceArray;
using testing::HasSubstr;
using testing::IsEmpty;

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

std::unique_ptr<Gpu> open_gpu(bool deterministic = false) {
  auto gpu = Gpu::open({.deterministic = deterministic, .self_check = false});
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

// --- the self-check ---

class SelfCheck : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::path(testing::TempDir()) /
              ("self_check_" + std::string(testing::UnitTest::GetInstance()->current_test_info()->name()));
    std::filesystem::remove_all(folder_);
    gpu_ = open_gpu();
    gpu_->fast = {.fa2 = true, .xqa = true, .cublaslt = true};
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  // Paths that write on the device what their name says: `plain` and this times `factor`.
  PathCheck path(std::string key, bool FastPaths::* flag, float factor) {
    return {key, key, flag, [this, factor](Gpu&) -> Result<std::vector<Comparison>> {
              ++runs_;
              std::vector<float> plain = {1, -2, 3, 0.5f, 4, 1}, fast = plain;
              for (float& x : fast) x *= factor;
              return std::vector<Comparison>{{"six values", plain, fast, 3, 0.01}};
            }};
  }
  std::filesystem::path file() const {
    for (const auto& e : std::filesystem::directory_iterator(folder_)) return e.path();
    return {};
  }
  std::string text() const {
    std::ifstream in(file());
    return {std::istreambuf_iterator<char>(in), {}};
  }
  void write(const std::string& content) const { std::ofstream(file()) << content; }
  void turn_on() { gpu_->fast = {.fa2 = true, .xqa = true, .cublaslt = true}; }

  std::filesystem::path folder_;
  std::unique_ptr<Gpu> gpu_;
  int runs_ = 0;
};

TEST_F(SelfCheck, SwitchesOffWhatDisagreesAndRemembers) {
  const std::vector<PathCheck> checks = {path("good", &FastPaths::fa2, 1.005f),
                                         path("bad", &FastPaths::xqa, 1.02f)};
  for (int start = 0; start < 3; ++start) {
    turn_on();
    self_check(*gpu_, checks, folder_);
    EXPECT_TRUE(gpu_->fast.fa2);
    EXPECT_FALSE(gpu_->fast.xqa);
    EXPECT_TRUE(gpu_->fast.cublaslt);
    EXPECT_EQ(runs_, 2) << "start " << start;
  }
  EXPECT_THAT(text(), HasSubstr("\"good\":\"right\""));
  EXPECT_THAT(text(), HasSubstr("disagreed with the plain kernel: six values: row 0 is off by"));
}

TEST_F(SelfCheck, PathsThatAreOffAreNotRun) {
  gpu_->fast.xqa = false;
  self_check(*gpu_, {path("bad", &FastPaths::xqa, 2)}, folder_);
  EXPECT_EQ(runs_, 0);
}

TEST_F(SelfCheck, FailuresSwitchOff) {
  const PathCheck refused{"refused", "refused", &FastPaths::fa2, [](Gpu&) -> Result<std::vector<Comparison>> {
                            throw CudaError("invalid argument", 1, false);
                          }};
  const PathCheck no_memory{
      "no_memory", "no_memory", &FastPaths::xqa,
      [](Gpu&) -> Result<std::vector<Comparison>> { return Error{ErrorCode::kMemory, "no memory", {}}; }};
  self_check(*gpu_, {refused, no_memory, path("good", &FastPaths::cublaslt, 1)}, folder_);
  // Want of memory says nothing about the path: the next start tries again.
  EXPECT_THAT(text(), testing::Not(HasSubstr("no_memory")));
  EXPECT_FALSE(gpu_->fast.fa2);
  EXPECT_FALSE(gpu_->fast.xqa);
  EXPECT_TRUE(gpu_->fast.cublaslt);
  EXPECT_THAT(text(), HasSubstr("failed: invalid argument"));
}

// What broke the context cannot be gone on with; the next start leaves it off.
TEST_F(SelfCheck, ABrokenContextEndsTheStartAndIsRemembered) {
  const PathCheck broken{"broken", "broken", &FastPaths::xqa,
                         [this](Gpu&) -> Result<std::vector<Comparison>> {
                           ++runs_;
                           throw CudaError("illegal address", 700, true);
                         }};
  EXPECT_THROW(self_check(*gpu_, {broken}, folder_), CudaError);
  self_check(*gpu_, {broken}, folder_);
  EXPECT_FALSE(gpu_->fast.xqa);
  EXPECT_EQ(runs_, 1);
}

TEST_F(SelfCheck, NotANumberIsWrong) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(difference({"x", {1, 2}, {1, 2}, 2, 0}), IsEmpty());
  EXPECT_THAT(difference({"x", {1, 2}, {1, nan}, 2, 0.1}), HasSubstr("row 0"));
  EXPECT_THAT(difference({"x", {0, 0, 1, 1}, {0, 0, 1, 1.2f}, 2, 0.1}), HasSubstr("row 1"));
  EXPECT_THAT(difference({"x", {0, 0}, {0, 1e-6f}, 2, 0.1}), HasSubstr("row 0"));
  EXPECT_THAT(difference({"x", {1, 2}, {1}, 1, 0.1}), HasSubstr("1 values, expected 2"));
}

TEST_F(SelfCheck, BrokenFilesAreMadeAnew) {
  const std::vector<PathCheck> checks = {path("good", &FastPaths::fa2, 1)};
  self_check(*gpu_, checks, folder_);
  ASSERT_EQ(runs_, 1);
  const std::string right = text();
  int expected = 1;
  for (const std::string& content :
       {std::string("{"), std::string(), std::string("[1]"), std::string(1 << 20, 'x'),
        std::string(R"({"build":1,"paths":7})"), right.substr(0, right.size() / 2)}) {
    write(content);
    self_check(*gpu_, checks, folder_);
    EXPECT_EQ(runs_, ++expected);
    EXPECT_EQ(text(), right);
  }
  // Of another build.
  std::string other = right;
  other.replace(other.find("\"build\":\"") + 9, 1, "9");
  write(other);
  self_check(*gpu_, checks, folder_);
  EXPECT_EQ(runs_, ++expected);
}

TEST_F(SelfCheck, AFolderThatCannotBeWrittenFailsNothing) {
  std::ofstream(folder_) << "a file where the folder should be";
  for (int start = 1; start <= 2; ++start) {
    self_check(*gpu_, {path("good", &FastPaths::fa2, 1)}, folder_ / "below");
    EXPECT_TRUE(gpu_->fast.fa2);
    EXPECT_EQ(runs_, start);
  }
}

TEST_F(SelfCheck, ACheckThatDidNotEndIsNotBegunAgain) {
  const std::vector<PathCheck> checks = {path("good", &FastPaths::fa2, 1)};
  self_check(*gpu_, checks, folder_);
  std::string unfinished = text();
  const std::string right = "\"right\"";
  // No process has this id: the kernel's limit is 2^22.
  unfinished.replace(unfinished.find(right), right.size(), "\"running, process 2147483646\"");
  write(unfinished);
  self_check(*gpu_, checks, folder_);
  EXPECT_FALSE(gpu_->fast.fa2);
  EXPECT_EQ(runs_, 1);
  // One that runs now, in another process: checked here as well.
  turn_on();
  unfinished.replace(unfinished.find("2147483646"), 10, "1");
  write(unfinished);
  self_check(*gpu_, checks, folder_);
  EXPECT_TRUE(gpu_->fast.fa2);
  EXPECT_EQ(runs_, 2);
}

// The real cases of what is compiled here; cuBLASLt is the emulation's.
TEST_F(SelfCheck, TheRealPathsAreRight) {
  open_cublaslt(*gpu_);
  ASSERT_TRUE(gpu_->fast.cublaslt);
  gpu_->fast.pdl = true;
  struct {
    Result<std::vector<Comparison>> (*run)(Gpu&);
    size_t cases;
  } paths[] = {{check_skinny, 5}, {check_cublaslt, 2}, {check_pdl, 1}};
  for (const auto& path : paths) {
    const auto cases = path.run(*gpu_);
    ASSERT_TRUE(cases.ok()) << cases.error().message;
    EXPECT_EQ(cases->size(), path.cases);
    for (const Comparison& c : *cases) EXPECT_EQ(difference(c), "") << c.shape;
  }
  EXPECT_GT(emulation::machine_counts().early_starts, 0);
}

// The samples that fast kernels are compared on: a kernel that looks where it should not finds NaN.
TEST_F(SelfCheck, ThePlainKernelReadsOnlyWhatBelongsToTheRows) {
  for (const int window : {0, 20})
    for (const DType cache : {DType::kBF16, DType::kF8E4M3}) {
      const auto made = AttentionSample::make(
          *gpu_,
          {.heads = 3,
           .kv_heads = 1,
           .dim = 64,
           .window = window,
           .kv_dtype = cache,
           .rows = {{.context = 70}, {.padding = true}, {.context = 31}, {.context = 40, .tokens = 19}}});
      ASSERT_TRUE(made.ok());
      AttentionSample& sample = **made;
      const PagedAttention& a = sample.attention();
      auto scratch = gpu_->allocate(attention_scratch_bytes(*gpu_, a) + 1);
      ASSERT_TRUE(scratch.ok());
      attention_plain(*gpu_, a, scratch->data());
      const auto out = sample.read_out(*gpu_, 0, sample.tokens());
      ASSERT_TRUE(out.ok());
      const size_t row = 3 * 64;
      for (size_t i = 0; i < out->size(); ++i) {
        ASSERT_TRUE(std::isfinite((*out)[i])) << "token " << i / row << ", window " << window;
        if (i / row == 1) {
          ASSERT_EQ((*out)[i], 0) << "padding";
        }
      }
    }
}

TEST_F(SelfCheck, EveryPathHasAKeyAndAFlagOfItsOwn) {
  std::set<std::string> keys;
  for (const PathCheck& check : path_checks()) {
    EXPECT_TRUE(keys.insert(check.key).second) << check.key;
    FastPaths one;
    one.skinny = false;
    one.*check.flag = true;
    EXPECT_EQ(one.fa2 + one.xqa + one.cublaslt + one.skinny + one.pdl, 1);
  }
  EXPECT_EQ(keys.size(), 5u);
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
