// What the server does when clients leave, queues fill, engines stall and time runs out.
#include <gmock/gmock.h>

#include <atomic>
#include <fstream>

#include "api_fixture.h"

namespace deepinfer::server {
namespace {

namespace json = boost::json;
using std::chrono::milliseconds;
using testing::HasSubstr;
using testing::Not;

TEST_F(ApiTest, DisconnectFreesEverythingAtOnce) {
  config_.server.event_log = testing::TempDir() + "api_test_events.jsonl";
  std::remove(config_.server.event_log.c_str());
  start({.says = std::string(10000, 'x'), .step_time = std::chrono::milliseconds(2), .max_model_len = 512});
  for (const char* more : {R"("stream":true,"n":2)", R"("n":2)"}) {
    RawClient client(port_);
    client.send(chat(more));
    expect_running(2);
    client.close();
    expect_free();
  }
  std::string counts;
  for (int i = 0; i < 500 && counts.find("status=\"499\"") == std::string::npos; ++i) {
    std::this_thread::sleep_for(milliseconds(10));
    counts = ask(get("/metrics")).body;
  }
  EXPECT_THAT(counts, HasSubstr(R"({handler="/v1/chat/completions",status="499"})"));
  EXPECT_THAT(counts, Not(HasSubstr(R"(status="500")")));
  TearDown();
  std::ifstream log(config_.server.event_log);
  std::string line;
  int cancels = 0, steps_since_cancel = -1, released = 0;
  while (std::getline(log, line)) {
    const json::value v = json::parse(line);
    const std::string event = v.at("event").as_string().c_str();
    if (event == "cancel") ++cancels, steps_since_cancel = 0;
    if (event == "step" && steps_since_cancel >= 0) ++steps_since_cancel;
    if (event == "release" && steps_since_cancel >= 0) {
      ++released;
      EXPECT_LE(steps_since_cancel, 1) << line;
      if (released % 2 == 0) steps_since_cancel = -1;
    }
  }
  EXPECT_EQ(cancels, 2);
  EXPECT_EQ(released, 4);
}

// The first request stands at the gate, whether or not it still counts as queued; of two more, one fits.
TEST_F(ApiTest, QueueFullIs429AndOthersGoOn) {
  start({.max_num_seqs = 1, .max_queue = 3});
  gate_.close();
  RawClient first(port_);
  first.send(chat());
  gate_.wait_for_step();
  std::atomic<int> refused = 0, served = 0;
  std::vector<std::thread> clients;
  const auto expect_health = [&] {  // a full queue is no illness
    EXPECT_EQ(ask(get("/health")).status, 200);
    EXPECT_EQ(ask(get("/health/ready")).status, 200);
  };
  for (int i = 0; i < 2; ++i)
    clients.emplace_back([&] {
      const RawReply reply = ask(chat(R"("n":2)"));
      if (reply.status == 429) {
        EXPECT_TRUE(reply.fields.contains("retry-after"));
        EXPECT_THAT(reply.body, HasSubstr("queue_full"));
        ++refused;
      }
      if (reply.status == 200) ++served;
    });
  for (int i = 0; i < 1000 && refused == 0; ++i) std::this_thread::sleep_for(milliseconds(10));
  EXPECT_EQ(refused, 1);
  expect_health();
  gate_.open();
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(served, 1);
  EXPECT_EQ(first.read_reply().status, 200);
}

TEST_F(ApiTest, TimeoutsAre503BeforeTheStreamAndAnEventInIt) {
  config_.server.queue_timeout = 0.2;
  config_.server.timeout = 1.0;
  start({.says = std::string(100000, 'x'),
         .step_time = std::chrono::milliseconds(10),
         .max_model_len = 4096,
         .num_blocks = 1024,
         .max_num_seqs = 1});
  RawClient first(port_);
  first.send(chat(R"("stream":true)"));
  expect_running(1);
  const RawReply queued = ask(chat(R"("stream":true)"));
  EXPECT_EQ(queued.status, 503);
  EXPECT_THAT(queued.body, HasSubstr("queue_timeout"));
  const auto all = events(first.read_reply().body);
  EXPECT_EQ(all.back(), "[DONE]");
  EXPECT_EQ(json::parse(all.at(all.size() - 2)).at("error").at("code"), "timeout");
}

TEST_F(ApiTest, TimeoutsOfWholeAnswersAre503And504) {
  config_.server.queue_timeout = 0.2;
  config_.server.timeout = 0.8;
  start({.says = std::string(100000, 'x'),
         .step_time = milliseconds(10),
         .max_model_len = 4096,
         .num_blocks = 1024,
         .max_num_seqs = 1});
  RawClient first(port_);
  first.send(chat());
  expect_running(1);
  const RawReply queued = ask(chat());
  EXPECT_EQ(queued.status, 503);
  EXPECT_EQ(json::parse(queued.body).at("error").at("code"), "queue_timeout");
  EXPECT_TRUE(queued.fields.contains("retry-after"));
  const RawReply reply = first.read_reply();
  EXPECT_EQ(reply.status, 504);
  EXPECT_EQ(json::parse(reply.body).at("error").at("code"), "timeout");
  expect_free();
}

TEST_F(ApiTest, ResetsThatWaitForTheEngineDelayNobody) {
  start();
  EXPECT_EQ(ask(post("/reset_prefix_cache?reset_running_requests=False", "")).status, 200);
  EXPECT_EQ(ask(post("/reset_prefix_cache?reset_running_requests=True", "")).status, 400);
  gate_.close();
  RawClient running(port_);
  running.send(chat());
  gate_.wait_for_step();
  std::vector<std::unique_ptr<RawClient>> resets;
  for (int i = 0; i < 12; ++i) {
    resets.push_back(std::make_unique<RawClient>(port_));
    resets.back()->send(post("/reset_prefix_cache", ""));
  }
  std::this_thread::sleep_for(milliseconds(100));
  EXPECT_EQ(ask(post("/tokenize", R"({"prompt":"a"})")).status, 200);
  gate_.open();
  EXPECT_EQ(running.read_reply().status, 200);
  int refused = 0;
  for (const auto& reset : resets) refused += reset->read_reply().status == 429;
  EXPECT_GT(refused, 0);  // four may wait
}

// The runner hangs in its step: nothing moves the heartbeat, and no deadline of the engine's passes.
TEST_F(ApiTest, StalledEngineIsUnhealthyAndFailsWhatItHolds) {
  config_.server.stall_timeout = 0.6;
  start({.says = std::string(230, 'x'), .step_time = milliseconds(5), .max_num_seqs = 2});
  std::this_thread::sleep_for(milliseconds(800));
  EXPECT_EQ(ask(get("/health")).status, 200);  // idle is healthy, however long
  RawClient whole(port_), stream(port_), waiting(port_), waiting_stream(port_);
  whole.send(chat());
  stream.send(chat(R"("stream":true)"));
  stream.read_until("\"content\":\"x");
  expect_running(2);
  gate_.close();
  gate_.wait_for_step();
  waiting.send(chat());
  waiting_stream.send(chat(R"("stream":true)"));
  EXPECT_EQ(ask(get("/health")).status, 200);
  for (RawClient* client : {&whole, &waiting, &waiting_stream}) {
    const RawReply reply = client->read_reply();
    EXPECT_EQ(reply.status, 503);
    EXPECT_EQ(json::parse(reply.body).at("error").at("code"), "stalled");
    EXPECT_TRUE(reply.fields.contains("retry-after"));
  }
  const std::string told = stream.read_until("[DONE]\n\n");
  EXPECT_THAT(told, HasSubstr(R"("code":"stalled")"));
  for (const std::string& request : {get("/health"), get("/health/ready"), chat(), chat(R"("stream":true)"),
                                     post("/tokenize", R"({"prompt":"a"})")}) {
    const RawReply reply = ask(request);
    EXPECT_EQ(reply.status, 503) << request;
    EXPECT_THAT(reply.body, HasSubstr("\"stalled\""));
    EXPECT_TRUE(reply.fields.contains("retry-after"));
  }
  EXPECT_EQ(ask(get("/version")).status, 200);
  gate_.open();  // news for those that are gone
  expect_free();
  EXPECT_EQ(ask(get("/health")).status, 200);
  EXPECT_EQ(ask(get("/health/ready")).status, 200);
  whole.send(chat());  // on the same connection
  EXPECT_EQ(whole.read_reply().status, 200);
}

// An engine that is slow, but moves, is none that has stalled: a request may wait in the queue for long.
TEST_F(ApiTest, WaitingForLongIsNoStall) {
  config_.server.stall_timeout = 0.5;
  ping_ = milliseconds(100);
  start({.says = std::string(60, 'x'), .step_time = milliseconds(20), .max_num_seqs = 1});
  RawClient first(port_), second(port_);
  first.send(chat());
  expect_running(1);
  second.send(chat(R"("stream":true)"));
  EXPECT_EQ(first.read_reply().status, 200);
  EXPECT_EQ(events(second.read_reply().body).back(), "[DONE]");
}

TEST_F(ApiTest, LostDeviceIsUnhealthy) {
  start();
  server_->lose_device();
  for (const std::string& request : {get("/health"), get("/health/ready"), chat()}) {
    const RawReply reply = ask(request);
    EXPECT_EQ(reply.status, 503) << request;
    EXPECT_THAT(reply.body, HasSubstr("device_lost"));
  }
}

// Proxies cut connections on which nothing comes.
TEST_F(ApiTest, StreamWithoutNewsPings) {
  ping_ = milliseconds(50);
  start({.step_time = milliseconds(30)});
  RawClient client(port_);
  client.send(chat(R"("stream":true)"));
  client.read_until("\"content\"");
  gate_.close();
  const std::string quiet = client.read_until(": ping\n\n") + client.read_until(": ping\n\n");
  EXPECT_THAT(quiet, testing::EndsWith(": ping\n\n"));
  gate_.open();
  const std::string rest = client.read_until("[DONE]\n\n");
  EXPECT_THAT(rest, HasSubstr("finish_reason\":\"stop"));
}

// What a fault of ours says may name paths and addresses.
TEST_F(ApiTest, FaultOfAStepFailsItsRequestAloneInFixedWords) {
  start({.step_time = milliseconds(10), .fails_at = 45});  // a prompt has 19 tokens around its text
  const std::string longer(18, 'y');                       // fails after some tokens
  for (int i = 0; i < 2; ++i) {
    const RawReply whole = ask(chat("", longer));
    EXPECT_EQ(whole.status, 500);
    EXPECT_EQ(json::parse(whole.body).at("error").at("type"), "server_error");
    const RawReply stream = ask(chat(R"("stream":true)", longer));
    EXPECT_EQ(stream.status, 200);
    EXPECT_EQ(events(stream.body).back(), "[DONE]");
    EXPECT_THAT(stream.body, HasSubstr("\"error\""));
    for (const RawReply* reply : {&whole, &stream})
      EXPECT_THAT(reply->body,
                  testing::AllOf(Not(HasSubstr("secret")), Not(HasSubstr("0x")), Not(HasSubstr("gguf"))));
    EXPECT_EQ(ask(chat()).status, 200);
  }
  expect_free();
}

TEST_F(ApiTest, DrainLetsRunningOnesFinishAndRefusesNewOnes) {
  start();
  gate_.close();
  RawClient running(port_);
  running.send(chat());
  gate_.wait_for_step();
  std::thread drainer([this] { EXPECT_TRUE(server_->drain(milliseconds(20000))); });
  while (ask(get("/health/ready")).status != 503) std::this_thread::sleep_for(milliseconds(5));
  EXPECT_EQ(ask(get("/health")).status, 200);
  const RawReply refused = ask(chat());
  EXPECT_EQ(refused.status, 503);
  EXPECT_EQ(refused.fields.at("connection"), "close");
  gate_.open();
  const RawReply reply = running.read_reply();
  EXPECT_EQ(reply.status, 200);
  EXPECT_EQ(reply.fields.at("connection"), "close");
  drainer.join();
}

TEST_F(ApiTest, DrainExpiresAndStopEndsWhatStillRuns) {
  start({.says = std::string(10000, 'x'), .step_time = std::chrono::milliseconds(5)});
  RawClient running(port_);
  running.send(chat(R"("stream":true,"ignore_eos":true)"));
  expect_running(1);
  EXPECT_FALSE(server_->drain(milliseconds(50)));
  server_->stop();
  EXPECT_THAT(running.read_until(std::string_view("\0never", 6)), Not(HasSubstr("[DONE]")));
  expect_free();
}

TEST_F(ApiTest, ManyClientsAtOnceEachGetTheirOwn) {
  start({.says = "the same for all, at some length, so that streams overlap",
         .max_num_seqs = 8,
         .max_queue = 512});
  std::vector<std::thread> clients;
  std::atomic<int> good = 0;
  for (int c = 0; c < 12; ++c)
    clients.emplace_back([&, c] {
      RawClient client(port_);
      for (int i = 0; i < 10; ++i) {
        if ((c + i) % 5 == 4) {  // leaves in the middle
          RawClient leaver(port_);
          leaver.send(chat(R"("stream":true)"));
          leaver.read_until("data: ");
          leaver.reset();
        }
        const bool stream = (c + i) % 2;
        client.send(chat(stream ? R"("stream":true)" : ""));
        const RawReply reply = client.read_reply();
        good += reply.status == 200 && (stream ? events(reply.body).back() == "[DONE]"
                                               : reply.body.find("streams overlap") != std::string::npos);
      }
    });
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(good, 120);
  expect_free();
}

// While a prompt of a megabyte is read, a stream beside it goes on: its pauses stay short.
TEST_F(ApiTest, LargePromptFreezesNobody) {
  start({.says = std::string(2000, 'x'),
         .step_time = milliseconds(1),
         .max_model_len = 4096,
         .num_blocks = 1024});
  RawClient streaming(port_);
  streaming.send(chat(R"("stream":true)"));
  streaming.read_until("data: ");
  std::atomic<bool> done = false;
  std::thread large([&] {
    const RawReply reply = ask(chat("", std::string(1 << 20, 'y')));
    EXPECT_EQ(reply.status, 400);
    EXPECT_THAT(reply.body, HasSubstr("context_length_exceeded"));
    done = true;
  });
  int events_meanwhile = 0;
  while (!done && !streaming.read_until("data: ").empty()) ++events_meanwhile;
  large.join();
  EXPECT_GT(events_meanwhile, 2);
}

}  // namespace
}  // namespace deepinfer::server
