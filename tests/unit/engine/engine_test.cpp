// The engine's thread: events, cancellation, limits, timeouts, drain and stop.
#include <gmock/gmock.h>

#include <ctime>
#include <filesystem>
#include <fstream>

#include "engine_fixture.h"

namespace deepinfer::test {
namespace {

using ::testing::HasSubstr;

TEST_F(EngineTest, AnswersARequest) {
  start();
  Client client;
  EngineRequest r = request(10, 12);
  submit(r, client);
  ASSERT_TRUE(client.wait_finished());
  EXPECT_TRUE(client.seen().scheduled);
  EXPECT_EQ(client.seen().tokens, expected(r));
  EXPECT_EQ(client.seen().finish, FinishReason::kLength);
  expect_all_blocks_free();
  EXPECT_EQ(engine_->stats().generated_tokens, 12u);
  EXPECT_EQ(engine_->stats().prompt_tokens, 10u);
}

TEST_F(EngineTest, RequestsShareTheirSampling) {
  start();
  EngineRequest first = request(10, 12);
  first.sampling.min_tokens = 4;
  const auto shared = engine_->prepare(first.sampling);
  ASSERT_TRUE(shared.ok()) << shared.error().message;
  EngineRequest second = request(20, 7);
  second.sampling = first.sampling;
  second.sampling.max_tokens = 7;
  std::vector<Client> clients(2);
  for (int i = 0; i < 2; ++i) {
    EngineRequest r = i == 0 ? first : second;
    r.sampling = {.max_tokens = r.sampling.max_tokens};
    r.shared = *shared;
    submit(r, clients[static_cast<size_t>(i)]);
  }
  for (Client& client : clients) ASSERT_TRUE(client.wait_finished());
  EXPECT_EQ(clients[0].seen().tokens, expected(first));
  EXPECT_EQ(clients[1].seen().tokens, expected(second));
  second.shared = *shared;
  second.sampling.max_tokens = 3;
  const auto refused = engine_->submit(second, [](const OutputEvent&) {});
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().param, "min_tokens");
  first.sampling.top_p = 2;
  ASSERT_FALSE(engine_->prepare(first.sampling).ok());
}

TEST_F(EngineTest, ManyThreadsSubmitAndCancel) {
  ModelRunner::Info info = small_info();
  info.max_in_flight = 2;
  info.num_blocks = 24;  // preemptions
  start(info);
  std::atomic<int> wrong{0}, cancelled{0};
  auto work = [&](int t) {
    for (int i = 0; i < 15; ++i) {
      Client client;
      EngineRequest r = request(3 + (t * 7 + i) % 30, 1 + (i * 5) % 20, t % 2);
      r.sampling.n = 1 + i % 3;
      uint64_t id = submit(r, client);
      if (i % 4 == 3) engine_->cancel(id);
      if (!client.wait_finished(r.sampling.n)) ++wrong;
      (void)engine_->stats();
      for (int c = 0; c < r.sampling.n; ++c) {
        Seen s = client.seen(c);
        if (s.finish == FinishReason::kCancelled) {
          ++cancelled;
        } else if (s.tokens != expected(r, c) || s.finishes != 1) {
          ++wrong;
        }
      }
    }
  };
  std::vector<std::thread> threads;
  for (int t = 0; t < 6; ++t) threads.emplace_back(work, t);
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(wrong, 0);
  expect_all_blocks_free();
  engine_->stop();
  EXPECT_THAT(runner_->faults(), ::testing::IsEmpty());
}

TEST_F(EngineTest, ChoicesAndStopTokensAreTold) {
  info_ = small_info();
  EngineRequest r = request(9, 20);
  std::vector<int32_t> free_run = expected(r);
  options_.end_ids = {free_run[3]};
  start();
  r.sampling.n = 3;
  Client client;
  submit(r, client);
  ASSERT_TRUE(client.wait_finished(3));
  for (int c = 0; c < 3; ++c) EXPECT_EQ(client.seen(c).tokens, expected(r, c));
  EXPECT_EQ(client.seen(0).finish, FinishReason::kStop);
  EXPECT_EQ(client.seen(0).stop_token, free_run[3]);
  EXPECT_EQ(client.seen(0).tokens.back(), free_run[3]);
  EXPECT_EQ(client.seen(1).cached, 8);
}

TEST_F(EngineTest, RefusesPromptsThatCannotBeServed) {
  ModelRunner::Info info = small_info();
  info.num_blocks = 20;  // 80 tokens
  start(info);
  struct {
    std::vector<int32_t> prompt;
    ErrorCode code;
    const char* text;
  } cases[] = {
      {{}, ErrorCode::kInvalidArgument, "prompt: got no tokens, expected at least one"},
      {{1, 50}, ErrorCode::kInvalidArgument, "prompt: got token 50, expected 0 to 49"},
      {{-1}, ErrorCode::kInvalidArgument, "prompt: got token -1, expected 0 to 49"},
      {iota_prompt(200), ErrorCode::kContextLength, "prompt: got 200 tokens, expected at most 199"},
      {iota_prompt(80), ErrorCode::kMemory, "the KV cache has 20 blocks of 4 tokens"},
  };
  for (auto& c : cases) {
    Result<uint64_t> result = engine_->submit({.prompt = c.prompt}, nullptr);
    ASSERT_FALSE(result.ok()) << c.text;
    EXPECT_EQ(result.error().code, c.code);
    EXPECT_EQ(result.error().param, "prompt");
    EXPECT_THAT(result.error().message, HasSubstr(c.text));
  }
  EngineRequest hot = request(4, 4);
  hot.sampling.temperature = -1;
  Result<uint64_t> result = engine_->submit(hot, nullptr);
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().param, "temperature");
  EXPECT_TRUE(engine_->idle());
}

TEST_F(EngineTest, AFullQueueIsRefusedWithItsNumbers) {
  options_.max_queue = 5;
  ModelRunner::Info info = small_info();
  info.num_slots = 1;
  start(info);
  gate_.set(false);
  Client running, waiting, refused;
  submit(request(4, 4), running);
  ASSERT_TRUE(running.wait_until([](auto& seen) { return seen[0].scheduled; }));
  while (engine_->stats().waiting > 0) std::this_thread::yield();
  gate_.wait_for_arrival();
  EngineRequest r = request(4, 4, 9);
  r.sampling.n = 4;
  submit(r, waiting);
  Client last;
  submit(request(4, 4, 20), last);  // the running one does not count
  r.sampling.n = 2;
  Result<uint64_t> result = engine_->submit(r, refused.callback());
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().code, ErrorCode::kQueueFull);
  EXPECT_THAT(result.error().message,
              HasSubstr("5 sequences wait and 2 more were asked for, the limit is 5"));
  gate_.set(true);
  ASSERT_TRUE(waiting.wait_finished(4));
  ASSERT_TRUE(last.wait_finished());
  expect_all_blocks_free();
  submit(r, refused);  // now there is room
  ASSERT_TRUE(refused.wait_finished(2));
}

TEST_F(EngineTest, CancelFreesByTheEndOfTheStep) {
  auto path = std::filesystem::path(::testing::TempDir()) / "deepinfer_engine_cancel.jsonl";
  std::filesystem::remove(path);
  options_.event_log = path.string();
  start();
  gate_.set(false);
  Client client, other;
  submit(request(10, 100), other);
  uint64_t id = submit(request(20, 100, 5), client);
  gate_.wait_for_arrival();
  engine_->cancel(id);
  gate_.set(true);
  ASSERT_TRUE(client.wait_finished());
  EXPECT_EQ(client.seen().finish, FinishReason::kCancelled);
  ASSERT_TRUE(other.wait_finished());
  expect_all_blocks_free();
  engine_->stop();
  // Between cancel and release there is no step.
  std::ifstream file(path);
  std::vector<std::string> events;
  for (std::string line; std::getline(file, line);) {
    EXPECT_EQ(line.front(), '{');
    EXPECT_EQ(line.back(), '}');
    size_t at = line.find("\"event\":\"") + 9;
    events.push_back(line.substr(at, line.find('"', at) - at));
  }
  auto cancel = std::find(events.begin(), events.end(), "cancel");
  ASSERT_NE(cancel, events.end());
  ASSERT_GE(events.end() - cancel, 3);
  EXPECT_EQ(cancel[1], "finish");
  EXPECT_EQ(cancel[2], "release");
  for (const char* name : {"add", "schedule", "step"}) EXPECT_THAT(events, ::testing::Contains(name));
  std::filesystem::remove(path);
}

TEST_F(EngineTest, OneChoiceCanBeCancelledAlone) {
  start();
  gate_.set(false);
  Client client;
  EngineRequest r = request(4, 50);
  r.sampling.n = 2;
  uint64_t id = submit(r, client);
  gate_.wait_for_arrival();
  engine_->cancel(id, 1);
  engine_->cancel(id, 7);          // no such choice
  engine_->cancel(id, 1'000'000);  // nor this
  engine_->cancel(id + 99);
  gate_.set(true);
  ASSERT_TRUE(client.wait_finished(2));
  EXPECT_EQ(client.seen(0).tokens, expected(r));
  EXPECT_EQ(client.seen(1).finish, FinishReason::kCancelled);
  expect_all_blocks_free();
}

TEST_F(EngineTest, WaitingTooLongInTheQueueIsAnError) {
  ModelRunner::Info info = small_info();
  info.num_slots = 1;
  options_.queue_timeout = 60;
  start(info);
  gate_.set(false);
  Client running, waiting;
  submit(request(4, 30), running);
  gate_.wait_for_arrival();
  submit(request(4, 30, 9), waiting);
  clock_.advance(61);
  gate_.set(true);
  ASSERT_TRUE(waiting.wait_finished());
  EXPECT_EQ(waiting.seen().finish, FinishReason::kError);
  ASSERT_TRUE(waiting.seen().error.has_value());
  EXPECT_EQ(waiting.seen().error->code, ErrorCode::kQueueTimeout);
  ASSERT_TRUE(running.wait_finished());
  EXPECT_EQ(running.seen().finish, FinishReason::kLength) << "what runs does not wait in the queue";
}

TEST_F(EngineTest, TakingTooLongInAllIsAnError) {
  options_.timeout = 600;
  start();
  gate_.set(false);
  Client slow;
  submit(request(4, 30), slow);
  gate_.wait_for_arrival();
  clock_.advance(601);
  gate_.set(true);
  ASSERT_TRUE(slow.wait_finished());
  ASSERT_TRUE(slow.seen().error.has_value());
  EXPECT_EQ(slow.seen().error->code, ErrorCode::kTimeout);
  EXPECT_EQ(slow.seen().tokens.size(), 1u) << "what was computed before is told";
  expect_all_blocks_free();
}

TEST_F(EngineTest, HeartbeatTellsAStallFromIdle) {
  start();
  clock_.advance(100);
  EXPECT_EQ(engine_->stats().seconds_since_heartbeat, 0) << "idle is healthy";
  gate_.set(false);
  Client client;
  submit(request(4, 3), client);
  gate_.wait_for_arrival();
  EXPECT_EQ(engine_->stats().seconds_since_heartbeat, 0);
  clock_.advance(40);
  EXPECT_GE(engine_->stats().seconds_since_heartbeat, 40);
  gate_.set(true);
  ASSERT_TRUE(client.wait_finished());
  expect_all_blocks_free();
}

TEST_F(EngineTest, DrainRefusesTheNewAndEndsTheOld) {
  start();
  gate_.set(false);
  Client old;
  EngineRequest r = request(4, 20);
  submit(r, old);
  gate_.wait_for_arrival();
  engine_->drain();
  Result<uint64_t> refused = engine_->submit(request(4, 4), nullptr);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::kUnavailable);
  EXPECT_FALSE(engine_->idle());
  gate_.set(true);
  ASSERT_TRUE(old.wait_finished());
  EXPECT_EQ(old.seen().tokens, expected(r));
  EXPECT_TRUE(wait_idle());
}

TEST_F(EngineTest, StopEndsWhatRuns) {
  ModelRunner::Info info = small_info();
  info.num_slots = 1;
  info.max_in_flight = 2;
  start(info);
  gate_.set(false);
  Client running, waiting;
  submit(request(4, 100), running);
  submit(request(4, 100), waiting);
  gate_.wait_for_arrival();
  std::thread opener([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    gate_.set(true);
  });
  engine_->stop();
  opener.join();
  EXPECT_EQ(running.seen().finish, FinishReason::kCancelled);
  EXPECT_EQ(waiting.seen().finish, FinishReason::kCancelled);
  EXPECT_EQ(running.seen().finishes, 1);
  EXPECT_TRUE(engine_->idle());
  EXPECT_EQ(engine_->stats().free_blocks, info.num_blocks);
  EXPECT_FALSE(engine_->submit(request(4, 4), nullptr).ok());
  EXPECT_FALSE(engine_->reset_prefix_cache());
  engine_->stop();
}

TEST_F(EngineTest, ResetForgetsPrefixes) {
  start();
  auto cached = [&] {
    Client client;
    submit(request(12, 2), client);
    EXPECT_TRUE(client.wait_finished());
    EXPECT_TRUE(wait_idle());
    return client.seen().cached;
  };
  EXPECT_EQ(cached(), 0);
  EXPECT_EQ(cached(), 8);
  EXPECT_TRUE(engine_->reset_prefix_cache());
  EXPECT_EQ(cached(), 0);
  const int64_t kept = engine_->stats().cached_blocks;
  EXPECT_GT(kept, 0);
  const std::optional<EmptiedCache> emptied = engine_->empty_cache();
  ASSERT_TRUE(emptied);
  EXPECT_EQ(emptied->blocks, kept);
  EXPECT_EQ(emptied->bytes, 4096);
  EXPECT_EQ(engine_->stats().cached_blocks, 0);
  EXPECT_EQ(cached(), 0);
  gate_.set(false);
  Client client;
  submit(request(4, 2), client);
  EXPECT_FALSE(engine_->reset_prefix_cache()) << "while something runs";
  EXPECT_FALSE(engine_->empty_cache());
  gate_.set(true);
  ASSERT_TRUE(client.wait_finished());
}

TEST_F(EngineTest, CallbacksMaySubmitCancelAndStop) {
  start();
  Client second;
  std::atomic<uint64_t> id{0};
  auto result = engine_->submit(request(4, 10), [&](const OutputEvent& e) {
    if (e.finish == FinishReason::kLength) {
      id = *engine_->submit(request(4, 100), second.callback());
      engine_->cancel(id);
    }
  });
  ASSERT_TRUE(result.ok());
  ASSERT_TRUE(second.wait_finished());
  EXPECT_EQ(second.seen().finish, FinishReason::kCancelled);
  ASSERT_TRUE(engine_->submit(request(4, 10), [&](const OutputEvent&) { engine_->stop(); }).ok());
  EXPECT_TRUE(wait_idle());
}

TEST_F(EngineTest, AnIdleEngineCostsNothing) {
  start();
  Client client;
  submit(request(4, 4), client);
  ASSERT_TRUE(client.wait_finished());
  expect_all_blocks_free();
  timespec before{}, after{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
  double used = static_cast<double>(after.tv_sec - before.tv_sec) +
                1e-9 * static_cast<double>(after.tv_nsec - before.tv_nsec);
  EXPECT_LT(used, 0.03) << "a thread that spins would use 0.3 s";
}

}  // namespace
}  // namespace deepinfer::test
