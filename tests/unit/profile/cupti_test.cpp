// CUPTI against a stand-in (tests/support/fake_cupti.cpp).
#include "profile/cupti.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <thread>

#include "profile/profiler.h"
#include "trace_reader.h"

namespace deepinfer::test {
namespace {

using testing::HasSubstr;

const std::vector<LibraryFolder> kFake = {{FAKE_CUPTI_DIR, "the test"}};

class CuptiTest : public testing::Test {
 protected:
  void SetUp() override { unsetenv("FAKE_CUPTI"); }
  void TearDown() override {
    unsetenv("FAKE_CUPTI");
    std::filesystem::remove(file_);
  }

  static void run_step(Profiler& profiler, int step) {
    const int64_t start = Profiler::now();
    {
      const Span round(&profiler, Phase::kLoop);
      const Span forward(&profiler, Phase::kForward, step, 1, 1);
      std::this_thread::sleep_for(std::chrono::milliseconds(4));
    }
    profiler.record(Phase::kStep, start, Profiler::now(), {step, 1, 1});
  }

  std::filesystem::path file_ =
      std::filesystem::temp_directory_path() / ("cupti_" + std::to_string(getpid()) + ".trace.json");
};

TEST_F(CuptiTest, KernelsBelongToTheStepThatLaunchedThem) {
  Profiler profiler({.gpu = true, .cupti_folders = kFake});
  profiler.set_facts({.device = "cuda:0", .gpu = true, .max_num_seqs = 8, .graphs = true});
  profiler.attach_gpu();
  EXPECT_FALSE(profiler.recording());
  ASSERT_TRUE(profiler.start().ok());
  for (int step = 10; step < 13; ++step) run_step(profiler, step);
  const Result<ProfileReport> report = profiler.stop(file_);
  ASSERT_TRUE(report.ok());
  ASSERT_EQ(report->problem, "");
  const Trace trace = read_trace(file_);
  expect_nested(trace);
  const auto attention = trace.of("deepinfer::cuda::decode_kernel");
  const auto forward = trace.of("forward");
  ASSERT_EQ(attention.size(), 3u);
  ASSERT_EQ(forward.size(), 3u);
  EXPECT_EQ(trace.of("copy to host").size(), 3u);
  EXPECT_TRUE(trace.of("never_measured").empty());
  for (size_t i = 0; i < 3; ++i) {
    // Its clock was brought to ours.
    EXPECT_GE(attention[i].start, forward[i].start - 1000);
    EXPECT_LE(attention[i].end, forward[i].end + 1000);
    EXPECT_EQ(attention[i].args.at("step").to_number<size_t>(), 10 + i);
    EXPECT_EQ(attention[i].track.first, 100);
    EXPECT_EQ(trace.thread_of(attention[i]), "stream 7, overlapping 1");  // the product before it still ran
  }
  // Of eight parts of a step: four of products, two more of attention alone, one of a copy, one of nothing.
  const ProfileSummary& s = report->summary;
  EXPECT_NEAR(s.percent("attention") / s.percent("matrix products"), 0.5, 0.01);
  EXPECT_NEAR(s.percent("copies") / s.percent("matrix products"), 0.25, 0.01);
}

TEST_F(CuptiTest, TheBoundHolds) {
  Result<std::unique_ptr<Cupti>> cupti = Cupti::open(kFake);
  ASSERT_TRUE(cupti.ok());
  ASSERT_TRUE((*cupti)->start(5).ok());
  for (uint64_t step = 0; step < 10; ++step) {
    (*cupti)->enter(step);
    (*cupti)->leave();
  }
  const DeviceTrace trace = (*cupti)->stop();
  EXPECT_EQ(trace.activities.size(), 5u);
  EXPECT_EQ(trace.dropped, 25u);
  EXPECT_EQ(trace.broken, 10u);
  EXPECT_EQ(trace.names.size(), 3u);
  EXPECT_TRUE((*cupti)->stop().activities.empty());
}

TEST_F(CuptiTest, OneRecordsAtATime) {
  Result<std::unique_ptr<Cupti>> first = Cupti::open(kFake), second = Cupti::open(kFake);
  ASSERT_TRUE((*first)->start(5).ok());
  const Result<void> refused = (*second)->start(5);
  ASSERT_FALSE(refused.ok());
  EXPECT_THAT(refused.error().message, HasSubstr("another model of this process"));
  first->reset();  // stops
  EXPECT_TRUE((*second)->start(5).ok());
}

TEST_F(CuptiTest, WithoutTheRightToProfileTheSummarySaysWhy) {
  setenv("FAKE_CUPTI", "refuse", 1);
  Profiler profiler({.gpu = true, .cupti_folders = kFake});
  profiler.set_facts({.device = "cuda:0", .gpu = true});
  ASSERT_TRUE(profiler.start().ok());
  run_step(profiler, 1);
  const Result<ProfileReport> report = profiler.stop(file_);
  ASSERT_TRUE(report.ok());
  EXPECT_THAT(report->summary.note, HasSubstr("CUPTI_ERROR_INSUFFICIENT_PRIVILEGES"));
  EXPECT_THAT(report->summary.note, HasSubstr("only administrators"));
  EXPECT_EQ(read_trace(file_).of("forward").size(), 1u);
}

TEST_F(CuptiTest, ALibraryThatLacksAFunctionIsRefusedByName) {
  const Result<std::unique_ptr<Cupti>> cupti = Cupti::open({{FAKE_CUPTI_OLD_DIR, "the test"}});
  if (cupti.ok()) {
    // Another one on the loader's path served.
    EXPECT_THAT((*cupti)->path(), testing::Not(HasSubstr(FAKE_CUPTI_OLD_DIR)));
    return;
  }
  EXPECT_THAT(cupti.error().message, HasSubstr("cuptiGetTimestamp"));
  EXPECT_THAT(cupti.error().message, HasSubstr("DEEPINFER_CUDA_LIB_DIR"));
}

}  // namespace
}  // namespace deepinfer::test
