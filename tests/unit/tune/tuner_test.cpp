// The whole of it, with a small random model on the CPU.
#include "tune/tuner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <fstream>

#include "base/log.h"
#include "model/random_checkpoint.h"
#include "tune/load_run.h"

namespace deepinfer::tune {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class Tuner : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    set_log_level("error");
    folder_ = fs::path(testing::TempDir()) / "tuner_test_model";
    fs::remove_all(folder_);
    const Result<Checkpoint> c = random_checkpoint("tiny", 1);
    ASSERT_TRUE(c.ok());
    ASSERT_TRUE(save_checkpoint(*c, folder_).ok());
  }
  static void TearDownTestSuite() { fs::remove_all(folder_); }

  static Config config() {
    Config c;
    c.model.name = folder_.string();
    c.gpu.device = "cpu";
    c.gpu.max_num_seqs = 16;
    c.gpu.max_num_batched_tokens = 512;
    return c;
  }
  static TuneHooks quiet() {
    return {.interrupted = [] { return false; }};
  }
  static fs::path folder_;
};
fs::path Tuner::folder_;

TEST_F(Tuner, FindsSettingsWithinItsTime) {
  for (const char* workload : {"chat", "batch", "long-context"}) {
    SCOPED_TRACE(workload);
    const auto start = std::chrono::steady_clock::now();
    int told = 0;
    TuneHooks hooks = quiet();
    hooks.on_trial = [&](const std::vector<Axis>& axes, const Trial& t, bool, double) {
      EXPECT_EQ(axes.size(), t.point.size());
      ++told;
    };
    const TuneOptions options{.workload = workload, .concurrency = 2, .slo = {.ttft = 100}, .minutes = 0.15};
    const Result<TuneResult> r = tune(config(), options, hooks);
    ASSERT_TRUE(r.ok()) << r.error().message;
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    EXPECT_LT(taken.count(), 0.15 * 60 + 3) << "loading and the last run's end come on top";
    EXPECT_TRUE(r->outcome.trials[*r->outcome.best].usable());
    EXPECT_TRUE(r->outcome.slo_met);
    EXPECT_GE(told, 2);
    for (const Trial& t : r->outcome.trials) {
      if (!t.usable()) continue;
      EXPECT_EQ(t.mean().requests, r->requests) << "all runs do the same work";
    }
  }
}

TEST_F(Tuner, ABadWorkloadOrBudgetIsAnError) {
  const Result<TuneResult> unknown = tune(config(), {.workload = "tea"}, quiet());
  ASSERT_FALSE(unknown.ok());
  EXPECT_EQ(unknown.error().code, ErrorCode::kConfig);
  EXPECT_THAT(unknown.error().message, HasSubstr("tea"));
  const Result<TuneResult> short_of_time =
      tune(config(), {.workload = "batch", .concurrency = 500, .minutes = 0.002}, quiet());
  ASSERT_FALSE(short_of_time.ok());
  EXPECT_THAT(short_of_time.error().message, HasSubstr("--minutes"));
}

TEST_F(Tuner, InterruptedBeforeAnythingWasMeasured) {
  const Result<TuneResult> r = tune(config(), {.minutes = 1}, {.interrupted = [] { return true; }});
  ASSERT_FALSE(r.ok());
  EXPECT_EQ(r.error().code, ErrorCode::kCancelled);
}

TEST_F(Tuner, InterruptedItGivesTheBestSoFar) {
  int trials = 0;
  TuneHooks hooks{.interrupted = [&] { return trials >= 2; }};
  hooks.on_trial = [&](const std::vector<Axis>&, const Trial&, bool, double) { ++trials; };
  const Result<TuneResult> r = tune(config(), {.concurrency = 2, .minutes = 0.3}, hooks);
  ASSERT_TRUE(r.ok()) << r.error().message;
  EXPECT_EQ(r->outcome.end, End::kInterrupted);
  EXPECT_EQ(r->outcome.trials.size(), 2u);
}

TEST_F(Tuner, AModelThatIsNotThereIsAnError) {
  Config c = config();
  c.model.name = "/nowhere";
  const Result<TuneResult> r = tune(c, {}, quiet());
  ASSERT_FALSE(r.ok());
  EXPECT_EQ(r.error().code, ErrorCode::kNotFound);
}

TEST(TuneSlo, IsReadOrRefused) {
  const Result<Slo> both = parse_slo("ttft=0.5,itl=0.05");
  ASSERT_TRUE(both.ok());
  EXPECT_DOUBLE_EQ(both->ttft, 0.5);
  EXPECT_DOUBLE_EQ(both->itl, 0.05);
  EXPECT_DOUBLE_EQ(parse_slo("itl=1e-2")->itl, 0.01);
  for (const char* text : {"", "ttft", "ttft=", "ttft=x", "ttft=0.5s", "ttft=-1", "ttft=0", "ttft=inf",
                           "ttft=nan", "tpot=1", "ttft=1,", ",ttft=1", "ttft=1,ttft=2", "ttft=1;itl=2"}) {
    const Result<Slo> r = parse_slo(text);
    ASSERT_FALSE(r.ok()) << text;
    EXPECT_EQ(r.error().code, ErrorCode::kConfig);
    EXPECT_THAT(r.error().message, HasSubstr("ttft=0.5,itl=0.05"));
  }
}

TEST(TuneAxes, BeginAtTheSettings) {
  Config c;
  c.gpu.max_num_seqs = 100;
  c.gpu.max_num_batched_tokens = 3000;
  c.gpu.gpu_memory_utilization = 0.93;
  for (const bool gpu : {false, true})
    for (const Axis& axis : axes_for(c, {.gpu = gpu}, 32)) {
      SCOPED_TRACE(axis.key);
      ASSERT_LT(axis.start, axis.values.size());
      if (axis.key == "gpu.max_num_seqs") {
        EXPECT_EQ(axis.values, (std::vector<std::string>{"2", "4", "8", "16", "32", "100"}))
            << "32 requests at a time";
      }
      if (axis.key == "gpu.max_num_batched_tokens") {
        EXPECT_EQ(axis.values[axis.start], "3000");
      }
      if (axis.key == "gpu.gpu_memory_utilization") {
        EXPECT_EQ(axis.values[axis.start], "0.93");
      }
      EXPECT_EQ(axis.key == "gpu.enforce_eager" || axis.key == "gpu.gpu_memory_utilization",
                gpu && axis.key != "gpu.max_num_seqs" && axis.key != "gpu.max_num_batched_tokens");
    }
}

TEST(TuneAxes, SplitsGoNoFurtherThanTheDevices) {
  Config c;
  const auto ranks = [&](int devices) {
    for (const Axis& axis : axes_for(c, {.gpu = true, .devices = devices}, 32))
      if (axis.key == "gpu.tensor_parallel_size") return axis.values;
    return std::vector<std::string>();
  };
  EXPECT_EQ(ranks(1), std::vector<std::string>());
  EXPECT_EQ(ranks(3), (std::vector<std::string>{"1", "2"}));
  EXPECT_EQ(ranks(8), (std::vector<std::string>{"1", "2", "4", "8"}));
  c.gpu.tensor_parallel_size = 3;
  EXPECT_EQ(ranks(4), (std::vector<std::string>{"1", "2", "3", "4"})) << "what was set is tried";
}

// Ranks that the model cannot be dealt to are no fault of the search.
TEST_F(Tuner, TriesRanksOfThreads) {
  Config c = config();
  c.cpu.threads = 2;
  c.gpu.max_num_seqs = 2;
  TuneHooks hooks = quiet();
  std::vector<std::string> notes;
  bool shared = false;
  hooks.note = [&](const std::string& line) { notes.push_back(line); };
  hooks.on_trial = [&](const std::vector<Axis>& axes, const Trial& t, bool, double) {
    for (size_t a = 0; a < axes.size(); ++a)
      if (axes[a].key == "gpu.tensor_parallel_size" && axes[a].values[t.point[a]] == "2") {
        shared = true;
        EXPECT_TRUE(t.runs.front().failure.empty()) << t.runs.front().failure;
      }
  };
  const TuneOptions options{.workload = "batch", .concurrency = 2, .minutes = 0.3};
  const Result<TuneResult> r = tune(c, options, hooks);
  ASSERT_TRUE(r.ok()) << r.error().message;
  EXPECT_TRUE(shared);
  EXPECT_THAT(notes, testing::Contains(HasSubstr("predicted: TP 2: ")));
}

TEST(TunePercentiles, OfAList) {
  EXPECT_DOUBLE_EQ(percentiles({}).p99, 0);
  EXPECT_DOUBLE_EQ(percentiles({3}).p50, 3);
  std::vector<double> values;
  for (int i = 100; i >= 0; --i) values.push_back(i);
  EXPECT_DOUBLE_EQ(percentiles(values).p50, 50);
  EXPECT_DOUBLE_EQ(percentiles(values).p99, 99);
}

}  // namespace
}  // namespace deepinfer::tune
