// Which thread writes an answer's JSON.
#include "server/answer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <set>
#include <thread>

#include "fake_llm.h"
#include "raw_client.h"

namespace deepinfer::server {
namespace {

namespace asio = boost::asio;
namespace json = boost::json;

class RecordingFormat final : public ReplyFormat {
 public:
  explicit RecordingFormat(std::unique_ptr<ReplyFormat> format) : format_(std::move(format)) {}

  std::string opening() override { return format_->opening(); }
  std::string update(const ChoiceUpdate& update, const PromptTokens& prompt) override {
    updates.push_back(std::this_thread::get_id());
    return format_->update(update, prompt);
  }
  std::string usage(const Usage& usage) override { return format_->usage(usage); }
  std::string whole(const std::vector<ChoiceUpdate>& choices, const std::vector<PromptTokens>& prompts,
                    const Usage& usage) override {
    wholes.push_back(std::this_thread::get_id());
    return format_->whole(choices, prompts, usage);
  }

  std::vector<std::thread::id> updates, wholes;

 private:
  std::unique_ptr<ReplyFormat> format_;
};

class AnswerTest : public testing::Test {
 protected:
  void SetUp() override {
    server_ = std::make_unique<HttpServer>(
        HttpLimits{}, [this](HttpExchange& exchange) { return handle(exchange); },
        [](int, std::string_view message) { return std::string(message); });
    auto port = server_->listen("127.0.0.1", 0);
    ASSERT_TRUE(port.ok()) << port.error().message;
    port_ = *port;
    server_->start(1);
  }
  void TearDown() override {
    server_->stop();
    llm_.reset();
  }

  asio::awaitable<void> handle(HttpExchange& exchange) {
    io_thread_ = std::this_thread::get_id();
    text_thread_ =
        co_await text_pool_.run_accepted<std::thread::id>([] { return std::this_thread::get_id(); });
    const AnswerContext context{*llm_, text_pool_, std::chrono::seconds(15), 30};
    co_await answer(exchange, context, prepared_, *format_);
  }

  // A prompt of so many tokens, echoed with `alternatives` for each of its and the answer's tokens.
  RawReply ask(size_t tokens, int alternatives, bool stream) {
    prepared_ = {};
    GenerationRequest& request = prepared_.request;
    request.stream = stream;
    request.echo = request.logprobs = true;
    request.sampling.logprobs = request.sampling.prompt_logprobs = alternatives;
    prepared_.prompts = {std::vector<int32_t>(tokens, 'p')};
    prepared_.echo = {std::string(tokens, 'p')};
    prepared_.max_tokens = 3;
    format_ = std::make_unique<RecordingFormat>(make_completion_format(
        reply_options(prepared_, kCompletion, {"id", 1, "m", "fp"}), *llm_->tokenizer));
    RawClient client(port_);
    client.send(get("/"));
    return client.read_reply();
  }

  std::unique_ptr<Llm> llm_ = make_fake_llm(Config(), {});
  TextPool text_pool_{1, 1};
  Prepared prepared_;
  std::unique_ptr<RecordingFormat> format_;
  std::unique_ptr<HttpServer> server_;
  std::thread::id io_thread_, text_thread_;
  uint16_t port_ = 0;
};

TEST_F(AnswerTest, LargeAnswersAreWrittenByTheTextWorkers) {
  const RawReply reply = ask(200, 20, false);
  EXPECT_EQ(json::parse(reply.body).at("choices").at(0).at("logprobs").at("tokens").as_array().size(), 203u);
  EXPECT_GE(reply.body.size(), kLargeReply);
  ASSERT_NE(io_thread_, text_thread_);
  EXPECT_EQ(format_->wholes, std::vector{text_thread_});
}

TEST_F(AnswerTest, SmallOnesAreWrittenAtOnce) {
  EXPECT_EQ(ask(10, 2, false).status, 200);
  EXPECT_EQ(format_->wholes, std::vector{io_thread_});
}

// The first event of a stream has the prompt's scores.
TEST_F(AnswerTest, LargeEventsAreWrittenByTheTextWorkers) {
  const RawReply reply = ask(200, 20, true);
  EXPECT_THAT(reply.body, testing::HasSubstr("[DONE]"));
  ASSERT_FALSE(format_->updates.empty());
  EXPECT_EQ(format_->updates.front(), text_thread_);
  EXPECT_THAT(ask(10, 2, true).body, testing::HasSubstr("[DONE]"));
  ASSERT_FALSE(format_->updates.empty());
  EXPECT_THAT(format_->updates, testing::Each(io_thread_));
}

TEST_F(AnswerTest, AboutBytesIsAboutRight) {
  for (const size_t tokens : {50, 100, 200})
    for (const int alternatives : {0, 5, 20}) {
      const RawReply reply = ask(tokens, alternatives, false);
      ChoiceUpdate choice{.text = "Hel"};
      const PromptTokens scored(tokens - 1, {'p', 1, -1, std::vector<TokenLogprob>(alternatives)});
      choice.tokens.assign(3, {'H', 0, -1, std::vector<TokenLogprob>(alternatives)});
      const size_t about = about_bytes(prepared_, {choice}, {scored}, true);
      EXPECT_GT(about, reply.body.size() / 4) << tokens << " " << alternatives;
      EXPECT_LT(about, reply.body.size() * 4) << tokens << " " << alternatives;
    }
}

// What is told of the prompt stands in a choice's first event alone.
TEST_F(AnswerTest, AboutBytesOfEvents) {
  prepared_.request.return_token_ids = true;
  prepared_.prompts = {std::vector<int32_t>(50000, 'p')};
  EXPECT_GE(about_bytes(prepared_, {{.first = true}}, {{}}, false), kLargeReply);
  EXPECT_LT(about_bytes(prepared_, {{.first = false}}, {{}}, false), 1000u);
  EXPECT_GE(about_bytes(prepared_, {{.first = false}}, {{}}, true), kLargeReply);
}

}  // namespace
}  // namespace deepinfer::server
