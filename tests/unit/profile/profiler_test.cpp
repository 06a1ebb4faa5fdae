#include "profile/profiler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <latch>
#include <thread>

#include "trace_reader.h"

namespace deepinfer::test {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

class ProfilerTest : public testing::Test {
 protected:
  void SetUp() override {
    const testing::TestInfo* test = testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fs::temp_directory_path() / ("profile_" + std::to_string(getpid()) + test->name());
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  ProfileReport stop(Profiler& profiler) {
    Result<ProfileReport> report = profiler.stop(folder_ / "a.trace.json");
    EXPECT_TRUE(report.ok());
    EXPECT_EQ(report->problem, "");
    return std::move(*report);
  }

  fs::path folder_;
};

TEST_F(ProfilerTest, OffItRecordsNothing) {
  Profiler profiler({});
  EXPECT_FALSE(profiler.active());
  {
    const Span span(&profiler, Phase::kForward, 1);
  }
  {
    const Span span(nullptr, Phase::kForward, 1);
  }
  ASSERT_TRUE(profiler.start().ok());
  EXPECT_TRUE(profiler.active());
  const ProfileReport report = stop(profiler);
  EXPECT_FALSE(profiler.active());
  EXPECT_EQ(report.events, 0u);
  EXPECT_EQ(report.dropped, 0u);
  EXPECT_TRUE(read_trace(report.file).spans.empty());
}

TEST_F(ProfilerTest, SpansNestAndCarryTheirNumbers) {
  Profiler profiler({});
  ASSERT_TRUE(profiler.start().ok());
  for (int step = 0; step < 3; ++step) {
    const Span round(&profiler, Phase::kLoop);
    const int64_t launched = Profiler::now();
    {
      const Span forward(&profiler, Phase::kForward, step, 2, 17);
      for (int layer = 0; layer < 4; ++layer) {
        const Span attention(&profiler, Phase::kAttention, 17, 2);
      }
    }
    profiler.record(Phase::kStep, launched, Profiler::now(), {step, 2, 17});
    profiler.record(Phase::kCounters, launched, launched, {2, 5, 100 + step});
  }
  const ProfileReport report = stop(profiler);
  const Trace trace = read_trace(report.file);
  expect_nested(trace);
  EXPECT_EQ(report.events, 3u * (1 + 1 + 4 + 1 + 1));
  const auto forwards = trace.of("forward");
  ASSERT_EQ(forwards.size(), 3u);
  EXPECT_EQ(trace.thread_of(forwards[0]), "engine");
  EXPECT_EQ(forwards[2].args, (boost::json::object{{"step", 2}, {"rows", 2}, {"tokens", 17}}));
  EXPECT_EQ(trace.of("attention").size(), 12u);
  ASSERT_EQ(trace.of("step").size(), 3u);
  EXPECT_EQ(trace.thread_of(trace.of("step")[0]), "steps");
  ASSERT_EQ(trace.counters.size(), 6u);
  EXPECT_EQ(trace.counters[0].at("args"), (boost::json::value{{"running", 2}, {"waiting", 5}}));
  EXPECT_EQ(trace.counters[5].at("args"), (boost::json::value{{"free", 102}}));
  EXPECT_EQ(report.summary.steps, 3);
  EXPECT_EQ(report.summary.tokens, 51);
  EXPECT_EQ(report.summary.rows, 2);
  for (const TraceSpan& s : trace.spans) {
    EXPECT_GE(s.start, 0);
    EXPECT_LE(s.end, report.summary.seconds * 1e6 + 0.01);
  }
}

TEST_F(ProfilerTest, StepsThatOverlapStandInLanesOfTheirOwn) {
  Profiler profiler({});
  ASSERT_TRUE(profiler.start().ok());
  const int64_t start = Profiler::now();
  for (int64_t step = 0; step < 6; ++step)
    profiler.record(Phase::kStep, start + step * 1000, start + step * 1000 + 1900,
                    {static_cast<int>(step), 1, 1});
  const Trace trace = read_trace(stop(profiler).file);
  expect_nested(trace, 0);
  std::map<std::string, int> lanes;
  for (const TraceSpan& s : trace.spans) ++lanes[trace.thread_of(s)];
  EXPECT_EQ(lanes, (std::map<std::string, int>{{"steps", 3}, {"steps, overlapping 1", 3}}));
}

TEST_F(ProfilerTest, TheBoundHoldsAndTheTraceSaysWhatIsMissing) {
  Profiler profiler({.max_events = 1000});  // rounded up to pieces
  ASSERT_TRUE(profiler.start().ok());
  for (int i = 0; i < 5000; ++i) const Span span(&profiler, Phase::kSample, i);
  const ProfileReport report = stop(profiler);
  EXPECT_GE(report.events, 1000u);
  EXPECT_LE(report.events, 1024u);
  EXPECT_EQ(report.events + report.dropped, 5000u);
  const Trace trace = read_trace(report.file);
  EXPECT_EQ(trace.spans.size(), report.events);
  EXPECT_EQ(trace.spans.front().args.at("rows"), 0);  // the first ones stay
  ASSERT_EQ(trace.marks.size(), 1u);
  EXPECT_THAT(std::string(trace.marks[0].at("name").as_string()),
              HasSubstr("buffer full: " + std::to_string(report.dropped) + " events"));
  EXPECT_GE(trace.marks[0].at("ts").to_number<double>(), trace.spans.back().end - 0.01);
  EXPECT_EQ(trace.other.at("dropped_events").to_number<uint64_t>(), report.dropped);
  EXPECT_THAT(std::string(trace.other.at("dropped_note").as_string()), HasSubstr("server.profile_events"));
}

TEST_F(ProfilerTest, ThreadsHaveTracksOfTheirOwn) {
  constexpr int kEach = 20000;
  Profiler profiler({});
  ASSERT_TRUE(profiler.start().ok());
  std::latch together(3);
  const auto work = [&](Phase phase) {
    together.arrive_and_wait();
    for (int i = 0; i < kEach; ++i) const Span span(&profiler, phase, i);
  };
  std::thread engine(work, Phase::kForward), first(work, Phase::kTokenize), second(work, Phase::kTokenize);
  engine.join();
  first.join();
  second.join();
  const ProfileReport report = stop(profiler);
  EXPECT_EQ(report.events, 3u * kEach);
  const Trace trace = read_trace(report.file);
  expect_nested(trace);
  std::map<std::string, std::vector<int64_t>> seen;
  for (const TraceSpan& s : trace.spans)
    seen[trace.thread_of(s)].push_back(s.args.begin()->value().to_number<int64_t>());
  ASSERT_EQ(seen.size(), 3u);
  for (const char* name : {"engine", "text worker", "text worker 2"}) {
    ASSERT_EQ(seen[name].size(), static_cast<size_t>(kEach)) << name;
    for (int i = 0; i < kEach; ++i) ASSERT_EQ(seen[name][static_cast<size_t>(i)], i) << name;
  }
}

// Under ThreadSanitizer this is the proof that start and stop need no lock of the writers.
TEST_F(ProfilerTest, StartsAndStopsWhileOthersRecord) {
  Profiler profiler({.max_events = 2000});
  std::atomic<bool> end = false;
  std::vector<std::thread> threads;
  for (const Phase phase : {Phase::kForward, Phase::kDetokenize, Phase::kTokenize})
    threads.emplace_back([&, phase] {
      while (!end) const Span span(&profiler, phase, 1);
    });
  uint64_t events = 0;
  for (int round = 0; round < 10; ++round) {
    ASSERT_TRUE(profiler.start().ok());
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    const ProfileReport report = stop(profiler);
    const Trace trace = read_trace(report.file);
    EXPECT_EQ(trace.spans.size(), report.events);
    for (const TraceSpan& s : trace.spans) ASSERT_GE(s.start, 0) << "of an earlier recording";
    events += report.events;
  }
  end = true;
  for (std::thread& t : threads) t.join();
  EXPECT_GT(events, 0u);
}

TEST_F(ProfilerTest, ASpanThatBeganBeforeIsNotRecorded) {
  Profiler profiler({});
  {
    const Span early(&profiler, Phase::kForward);
    ASSERT_TRUE(profiler.start().ok());
  }
  profiler.record(Phase::kForward, Profiler::now() - 1'000'000'000, Profiler::now());
  EXPECT_EQ(stop(profiler).events, 0u);
}

TEST_F(ProfilerTest, TwoStartsAndAStopTooMany) {
  Profiler profiler({});
  EXPECT_EQ(profiler.stop(folder_ / "x").error().code, ErrorCode::kNotFound);
  ASSERT_TRUE(profiler.start().ok());
  EXPECT_EQ(profiler.start().error().code, ErrorCode::kUnavailable);
  stop(profiler);
  EXPECT_EQ(profiler.stop(folder_ / "x").error().code, ErrorCode::kNotFound);
  EXPECT_FALSE(fs::exists(folder_ / "x"));
  ASSERT_TRUE(profiler.start().ok());  // and again
  {
    const Span span(&profiler, Phase::kSample);
  }
  EXPECT_EQ(stop(profiler).events, 1u);
}

TEST_F(ProfilerTest, AFileThatCannotBeWrittenLeavesNothing) {
  Profiler profiler({});
  ASSERT_TRUE(profiler.start().ok());
  {
    const Span span(&profiler, Phase::kSample, 1);
  }
  std::ofstream(folder_ / "file") << "no folder";
  const Result<ProfileReport> report = profiler.stop(folder_ / "file" / "a.trace.json");
  ASSERT_TRUE(report.ok());
  EXPECT_TRUE(report->file.empty());
  EXPECT_THAT(report->problem, HasSubstr("a.trace.json"));
  EXPECT_FALSE(profiler.recording());

  ASSERT_TRUE(profiler.start().ok());
  fs::create_directories(folder_ / "taken" / "full");  // a folder that is not empty cannot be replaced
  const Result<ProfileReport> second = profiler.stop(folder_ / "taken");
  ASSERT_TRUE(second.ok());
  EXPECT_FALSE(second->problem.empty());
  std::vector<std::string> left;
  for (const auto& entry : fs::directory_iterator(folder_)) left.push_back(entry.path().filename());
  std::sort(left.begin(), left.end());
  EXPECT_THAT(left, ElementsAre("file", "taken"));
}

TEST_F(ProfilerTest, NamesOfFilesAreNew) {
  Profiler profiler({});
  const fs::path first = profiler.next_file(folder_), second = profiler.next_file(folder_);
  EXPECT_NE(first, second);
  EXPECT_THAT(first.filename().string(),
              testing::MatchesRegex("deepinfer-[0-9]+-[0-9]+-[0-9]+-1.trace.json"));
}

}  // namespace
}  // namespace deepinfer::test
