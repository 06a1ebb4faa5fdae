// What fails alone, and that the engine lives on.
#include <gmock/gmock.h>

#include <new>

#include "engine_fixture.h"

namespace deepinfer::test {
namespace {

class EngineFaults : public EngineTest {
 protected:
  // The engine still answers as it should.
  void expect_alive() {
    Client client;
    EngineRequest r = request(7, 9, 3);
    submit(r, client);
    ASSERT_TRUE(client.wait_finished());
    EXPECT_EQ(client.seen().tokens, expected(r));
    expect_all_blocks_free();
    engine_->stop();
    EXPECT_THAT(runner_->faults(), ::testing::IsEmpty());
  }
};

TEST_F(EngineFaults, AThrowingCallbackCancelsItsRequestOnly) {
  start();
  Client other;
  EngineRequest r = request(4, 30);
  std::atomic<int> calls{0};
  std::atomic<bool> cancelled{false};
  gate_.set(false);
  ASSERT_TRUE(engine_
                  ->submit(request(4, 30, 5),
                           [&](const OutputEvent& e) {
                             ++calls;
                             if (e.finish == FinishReason::kCancelled) cancelled = true;
                             if (!e.tokens.empty()) throw std::runtime_error("a client's fault");
                           })
                  .ok());
  submit(r, other);
  gate_.set(true);
  ASSERT_TRUE(other.wait_finished());
  EXPECT_EQ(other.seen().tokens, expected(r));
  ASSERT_TRUE(wait_idle());
  EXPECT_TRUE(cancelled);
  EXPECT_EQ(calls, 3) << "scheduled, the first token, the end";
  expect_alive();
}

TEST_F(EngineFaults, AFailedStepEndsItsSequences) {
  for (int in_flight : {1, 3}) {
    ModelRunner::Info info = small_info();
    info.max_in_flight = in_flight;
    on_wait_ = [](uint64_t step) {
      if (step == 3) throw std::runtime_error("the device is on fire");
    };
    start(info);
    Client client;
    submit(request(4, 30), client);
    ASSERT_TRUE(client.wait_finished());
    EXPECT_EQ(client.seen().finish, FinishReason::kError);
    ASSERT_TRUE(client.seen().error.has_value());
    EXPECT_EQ(client.seen().error->code, ErrorCode::kInternal);
    EXPECT_THAT(client.seen().error->message, ::testing::Not(::testing::HasSubstr("fire")))
        << "details are for the log";
    EXPECT_EQ(client.seen().tokens.size(), 2u);
    expect_alive();
  }
}

TEST_F(EngineFaults, AFailedLaunchEndsItsSequences) {
  ModelRunner::Info info = small_info();
  info.max_in_flight = 2;
  auto runner = std::make_unique<FakeRunner>(FakeOptions{.info = info, .reject_drafts = false});
  runner_ = runner.get();
  info_ = info;
  runner_->on_launch = [](const Step& step) {
    if (step.id == 4) throw std::runtime_error("no launch");
  };
  engine_ = std::make_unique<Engine>(std::move(runner), options_, &clock_);
  Client client;
  EngineRequest r = request(4, 30);
  submit(r, client);
  ASSERT_TRUE(client.wait_finished());
  EXPECT_EQ(client.seen().error->code, ErrorCode::kInternal);
  EXPECT_EQ(client.seen().tokens.size(), 3u) << "the steps before were good";
  expect_alive();
}

TEST_F(EngineFaults, OutOfMemoryEndsTheNewestSequenceOnly) {
  ModelRunner::Info info = small_info();
  info.max_in_flight = 2;
  on_wait_ = [](uint64_t step) {
    if (step == 6) throw std::bad_alloc();
  };
  start(info);
  gate_.set(false);
  Client first, second;
  EngineRequest r = request(4, 30);
  submit(r, first);
  submit(request(4, 30, 9), second);
  gate_.set(true);
  ASSERT_TRUE(first.wait_finished());
  ASSERT_TRUE(second.wait_finished());
  ASSERT_TRUE(second.seen().error.has_value());
  EXPECT_EQ(second.seen().error->code, ErrorCode::kMemory);
  EXPECT_EQ(first.seen().tokens, expected(r)) << "nothing lost, nothing doubled";
  expect_alive();
}

TEST_F(EngineFaults, ALostDeviceEndsAllRequestsAndRefusesOthers) {
  for (const bool at_launch : {false, true}) {
    ModelRunner::Info info = small_info();
    info.max_in_flight = 2;
    bool lost = false;  // the engine's thread alone reads and writes it
    auto check = [&lost](uint64_t step) {
      lost = lost || step >= 5;
      if (lost) throw DeviceLost("illegal address");
    };
    auto runner = std::make_unique<FakeRunner>(FakeOptions{.info = info, .reject_drafts = false});
    if (at_launch) {
      runner->on_launch = [check](const Step& step) { check(step.id); };
    } else {
      runner->on_wait = check;
    }
    engine_ = std::make_unique<Engine>(std::move(runner), options_, &clock_);
    std::atomic<int> told{0};
    engine_->on_device_lost([&](const std::string& why) {
      EXPECT_THAT(why, ::testing::HasSubstr("illegal address"));
      ++told;
    });
    Client first, second;
    submit(request(4, 30), first);
    submit(request(4, 30, 9), second);
    for (Client* client : {&first, &second}) {
      ASSERT_TRUE(client->wait_finished());
      ASSERT_TRUE(client->seen().error.has_value());
      EXPECT_EQ(client->seen().error->code, ErrorCode::kMemory);
      EXPECT_EQ(client->seen().finishes, 1);
    }
    ASSERT_TRUE(wait_idle());
    for (int i = 0; i < 2000 && told == 0; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    const Result<uint64_t> refused = engine_->submit(request(4, 3), [](const OutputEvent&) {});
    ASSERT_FALSE(refused.ok());
    EXPECT_EQ(refused.error().code, ErrorCode::kMemory);
    EXPECT_EQ(told, 1);
    engine_->on_device_lost([&](const std::string&) { ++told; });
    EXPECT_EQ(told, 2) << "told at once when it has happened";
    EXPECT_TRUE(engine_->reset_prefix_cache());
    engine_->stop();
  }
}

// Gives one row too few: a broken invariant, not a fault of a step.
class WrongRunner final : public ModelRunner {
 public:
  explicit WrongRunner(ModelRunner::Info info) : fake_({.info = std::move(info), .reject_drafts = false}) {}
  const Info& info() const override { return fake_.info(); }
  void launch_forward(const Step& step) override { fake_.launch_forward(step); }
  void launch_sample(const Step& step) override { fake_.launch_sample(step); }
  StepOutput wait(uint64_t step_id) override {
    StepOutput output = fake_.wait(step_id);
    if (++waits_ == 3) output.accepted.clear();
    return output;
  }

 private:
  FakeRunner fake_;
  int waits_ = 0;
};

TEST_F(EngineFaults, ABrokenInvariantEndsAllAndTheEngineStartsAfresh) {
  info_ = small_info();
  info_.max_in_flight = 2;
  engine_ = std::make_unique<Engine>(std::make_unique<WrongRunner>(info_), options_, &clock_);
  Client client, queued;
  submit(request(4, 30), client);
  ASSERT_TRUE(client.wait_finished());
  EXPECT_EQ(client.seen().error->code, ErrorCode::kInternal);
  Client after;
  EngineRequest r = request(9, 9);
  submit(r, after);
  ASSERT_TRUE(after.wait_finished());
  EXPECT_EQ(after.seen().tokens, expected(r));
  expect_all_blocks_free();
}

TEST_F(EngineFaults, AnEventLogThatCannotBeWrittenIsNoFault) {
  options_.event_log = "/nonexistent/folder/events.jsonl";
  start();
  expect_alive();
}

}  // namespace
}  // namespace deepinfer::test
