// The whole server over loopback with a model that says what the test wants.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <boost/json.hpp>
#include <fstream>
#include <thread>

#include "fake_llm.h"
#include "raw_client.h"
#include "server/server.h"

namespace deepinfer::server {
namespace {

namespace json = boost::json;
using std::chrono::milliseconds;
using testing::HasSubstr;
using testing::Not;

class ApiTest : public testing::Test {
 protected:
  void TearDown() override {
    gate_.open();
    if (server_) server_->stop();
    llm_.reset();
    server_.reset();
  }

  void start_loading() {
    config_.server.port = 0;
    server_ = std::make_unique<Server>(config_, ping_);
    auto address = server_->start();
    ASSERT_TRUE(address.ok()) << address.error().message;
    port_ = static_cast<uint16_t>(std::stoi(address->url.substr(address->url.rfind(':') + 1)));
  }

  void start(FakeModel model = {}) {
    start_loading();
    llm_ = make_fake_llm(config_, std::move(model), &gate_);
    server_->set_model(*llm_);
  }

  RawReply ask(std::string_view bytes) {
    RawClient client(port_);
    client.send(bytes);
    return client.read_reply();
  }
  json::value ask_json(std::string_view bytes, int status = 200) {
    const RawReply reply = ask(bytes);
    EXPECT_EQ(reply.status, status) << reply.body;
    return json::parse(reply.body);
  }
  // The data of each event; comments are left out.
  static std::vector<std::string> events(const std::string& body) {
    std::vector<std::string> out;
    for (size_t at = 0, end; (end = body.find("\n\n", at)) != std::string::npos; at = end + 2)
      if (body.compare(at, 6, "data: ") == 0) out.push_back(body.substr(at + 6, end - at - 6));
    return out;
  }
  static std::string chat(std::string_view more = "", std::string_view content = "hi") {
    return post("/v1/chat/completions",
                fmt::format(R"({{"messages":[{{"role":"user","content":"{}"}}]{}{}}})", content,
                            more.empty() ? "" : ",", more));
  }
  static std::string complete(std::string_view fields) {
    return post("/v1/completions", fmt::format("{{{}}}", fields));
  }
  void expect_free() {
    for (int i = 0; i < 500 && llm_->engine->stats().free_blocks != llm_->engine->stats().total_blocks; ++i)
      std::this_thread::sleep_for(milliseconds(10));
    EXPECT_EQ(llm_->engine->stats().free_blocks, llm_->engine->stats().total_blocks);
  }
  void expect_running(int wanted) {
    for (int i = 0; i < 500 && llm_->engine->stats().running != wanted; ++i)
      std::this_thread::sleep_for(milliseconds(10));
    EXPECT_EQ(llm_->engine->stats().running, wanted);
  }

  Config config_;
  milliseconds ping_{15000};
  Gate gate_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<Llm> llm_;
  uint16_t port_ = 0;
};

TEST_F(ApiTest, ChatAnswersWhole) {
  start();
  const json::value v = ask_json(chat());
  EXPECT_EQ(v.at("object"), "chat.completion");
  EXPECT_EQ(v.at("model"), "fake");
  EXPECT_EQ(v.at("system_fingerprint"), "fp_fake");
  const json::value& choice = v.at("choices").at(0);
  EXPECT_EQ(choice.at("message").at("content"), "Hello there.");
  EXPECT_EQ(choice.at("message").at("role"), "assistant");
  EXPECT_EQ(choice.at("finish_reason"), "stop");
  EXPECT_EQ(v.at("usage").at("completion_tokens"), 13);  // the end of sequence counts
  // <|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n
  EXPECT_EQ(v.at("usage").at("prompt_tokens"), 21);
  expect_free();
}

TEST_F(ApiTest, ChatStreams) {
  start();
  const RawReply reply = ask(chat(R"("stream":true,"stream_options":{"include_usage":true},"max_tokens":5)"));
  EXPECT_EQ(reply.status, 200);
  EXPECT_EQ(reply.fields.at("content-type"), "text/event-stream");
  EXPECT_EQ(reply.fields.at("cache-control"), "no-cache");
  EXPECT_EQ(reply.fields.at("x-accel-buffering"), "no");
  const auto all = events(reply.body);
  ASSERT_EQ(all.size(), 9u);  // role, five pieces, finish, usage, [DONE]
  EXPECT_EQ(all.back(), "[DONE]");
  std::string text;
  const json::value first = json::parse(all[0]);
  EXPECT_EQ(first.at("choices").at(0).at("delta").at("role"), "assistant");
  for (size_t i = 0; i + 1 < all.size(); ++i) {
    const json::value v = json::parse(all[i]);
    EXPECT_EQ(v.at("id"), first.at("id"));
    EXPECT_EQ(v.at("created"), first.at("created"));
    EXPECT_EQ(v.at("object"), "chat.completion.chunk");
    if (i + 2 == all.size()) {
      EXPECT_TRUE(v.at("choices").as_array().empty());
      EXPECT_EQ(v.at("usage").at("completion_tokens"), 5);
      continue;
    }
    EXPECT_TRUE(v.at("usage").is_null());
    const json::object& delta = v.at("choices").at(0).at("delta").as_object();
    if (i > 0) {
      EXPECT_FALSE(delta.contains("role"));
    }
    if (const json::value* piece = delta.if_contains("content")) text += piece->as_string().c_str();
    EXPECT_EQ(v.at("choices").at(0).at("finish_reason"),
              i + 3 == all.size() ? json::value("length") : nullptr);
  }
  EXPECT_EQ(text, "Hello");
}

TEST_F(ApiTest, StopStringEndsOneChoiceAndIsNeverSent) {
  start({.says = "one STOP two"});
  const json::value v = ask_json(chat(R"("stop":["STOP"],"n":3)"));
  ASSERT_EQ(v.at("choices").as_array().size(), 3u);
  for (const json::value& choice : v.at("choices").as_array()) {
    EXPECT_EQ(choice.at("message").at("content"), "one ");
    EXPECT_EQ(choice.at("finish_reason"), "stop");
  }
  EXPECT_EQ(v.at("usage").at("completion_tokens"), 24);
  const RawReply stream = ask(chat(R"("stop":"STOP","stream":true)"));
  EXPECT_THAT(stream.body, Not(HasSubstr("\"content\":\"S")));
  EXPECT_THAT(stream.body, HasSubstr(R"("stop_reason":"STOP")"));
  EXPECT_EQ(ask_json(chat(R"("stop":"STOP","include_stop_str_in_output":true)"))
                .at("choices")
                .at(0)
                .at("message")
                .at("content"),
            "one STOP");
  expect_free();
}

TEST_F(ApiTest, OnlyCompleteUtf8IsSent) {
  start({.says = "a\xF0\x9F\x98\x80\xC3"});
  const json::value v = ask_json(chat());
  EXPECT_EQ(v.at("choices").at(0).at("message").at("content"), "a\xF0\x9F\x98\x80\xEF\xBF\xBD");
  std::string text;
  for (const std::string& event : events(ask(chat(R"("stream":true)")).body)) {
    if (event == "[DONE]") continue;
    const json::value chunk = json::parse(event);
    if (const json::value* piece = chunk.at("choices").at(0).at("delta").as_object().if_contains("content"))
      text += piece->as_string().c_str();
  }
  EXPECT_EQ(text, "a\xF0\x9F\x98\x80\xEF\xBF\xBD");
}

TEST_F(ApiTest, ChatLogprobs) {
  start({.says = "h\xC3\xA9"});
  const json::value v = ask_json(chat(R"("logprobs":true,"top_logprobs":2)"));
  const json::array& content = v.at("choices").at(0).at("logprobs").at("content").as_array();
  ASSERT_EQ(content.size(), 3u);
  EXPECT_EQ(content[0].at("token"), "h");
  EXPECT_EQ(content[0].at("bytes"), json::array{json::value(104)});
  EXPECT_EQ(content[1].at("bytes"), json::array{json::value(195)});
  EXPECT_EQ(content[1].at("token"), "\xEF\xBF\xBD");
  EXPECT_EQ(content[0].at("top_logprobs").at(1).at("logprob"), -9999.0);
  EXPECT_TRUE(v.at("choices").at(0).at("logprobs").at("refusal").is_null());
  EXPECT_TRUE(ask_json(chat(R"("logprobs":true)"))
                  .at("choices")
                  .at(0)
                  .at("logprobs")
                  .at("content")
                  .at(0)
                  .at("top_logprobs")
                  .as_array()
                  .empty());
  EXPECT_TRUE(ask_json(chat()).at("choices").at(0).at("logprobs").is_null());
}

TEST_F(ApiTest, CompletionLogprobsAndOffsets) {
  start({.says = "\xC3\xA9xy"});
  const json::value v = ask_json(complete(R"("prompt":"p","logprobs":2)"));
  const json::value& logprobs = v.at("choices").at(0).at("logprobs");
  EXPECT_EQ(logprobs.at("tokens"), json::array({"bytes:\\xc3", "bytes:\\xa9", "x", "y", "<|im_end|>"}));
  EXPECT_EQ(logprobs.at("text_offset"), json::array({0, 1, 1, 2, 3}));
  EXPECT_EQ(logprobs.at("token_logprobs").as_array().size(), 5u);
  EXPECT_EQ(logprobs.at("top_logprobs").at(2).as_object().size(), 2u);
}

TEST_F(ApiTest, CompletionFormsEchoAndN) {
  start({.says = "abc"});
  EXPECT_EQ(ask_json(complete(R"("prompt":"p","echo":true)")).at("choices").at(0).at("text"), "pabc");
  EXPECT_EQ(
      ask_json(complete(R"("prompt":[112,113],"echo":true,"max_tokens":1)")).at("choices").at(0).at("text"),
      "pqa");
  const json::value v = ask_json(complete(R"("prompt":["p","q"],"n":2,"echo":true,"max_tokens":2)"));
  ASSERT_EQ(v.at("choices").as_array().size(), 4u);
  const char* kExpected[] = {"pab", "pab", "qab", "qab"};
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(v.at("choices").at(i).at("index"), i);
    EXPECT_EQ(v.at("choices").at(i).at("text"), kExpected[i]);
    EXPECT_EQ(v.at("choices").at(i).at("finish_reason"), "length");
  }
  EXPECT_EQ(v.at("usage").at("prompt_tokens"), 2);
  EXPECT_EQ(v.at("usage").at("completion_tokens"), 8);
  const json::value nothing = ask_json(complete(R"("prompt":"p","echo":true,"max_tokens":0)"));
  EXPECT_EQ(nothing.at("choices").at(0).at("text"), "p");
  EXPECT_EQ(nothing.at("choices").at(0).at("finish_reason"), "length");
  const auto streamed =
      events(ask(complete(R"("prompt":["p","q"],"echo":true,"stream":true,"max_tokens":1)")).body);
  EXPECT_EQ(streamed.back(), "[DONE]");
  EXPECT_EQ(json::parse(streamed[0]).at("choices").at(0).at("text"), "p");
  EXPECT_EQ(json::parse(streamed[1]).at("choices").at(0).at("text"), "a");
}

TEST_F(ApiTest, CompletionsDefaultToSixteenTokens) {
  start({.says = std::string(100, 'x')});
  EXPECT_EQ(ask_json(complete(R"("prompt":"p")")).at("usage").at("completion_tokens"), 16);
  EXPECT_EQ(ask_json(chat()).at("usage").at("completion_tokens"), 101);
}

TEST_F(ApiTest, UserTextNeverBecomesASpecialToken) {
  start();
  const json::value plain = ask_json(chat("", "<|im_end|>"));
  EXPECT_EQ(plain.at("usage").at("prompt_tokens"), 21 - 2 + 10);
  EXPECT_EQ(ask_json(complete(R"("prompt":"<|im_end|>")")).at("usage").at("prompt_tokens"), 1);
}

TEST_F(ApiTest, ContextLimit) {
  start({.says = std::string(1000, 'x'), .max_model_len = 64});
  const json::value v = ask_json(chat());
  EXPECT_EQ(v.at("choices").at(0).at("finish_reason"), "length");
  EXPECT_EQ(v.at("usage").at("total_tokens"), 64);
  EXPECT_EQ(ask_json(chat(R"("max_tokens":1000)")).at("usage").at("total_tokens"), 64);
  for (const char* stream : {R"("stream":true)", ""}) {
    const json::value error = ask_json(chat(stream, std::string(100, 'y')), 400).at("error");
    EXPECT_EQ(error.at("code"), "context_length_exceeded");
    EXPECT_EQ(error.at("param"), "messages");
    EXPECT_THAT(error.at("message").as_string().c_str(), testing::AllOf(HasSubstr("119"), HasSubstr("64")));
  }
}

TEST_F(ApiTest, ErrorsAreObjectsAndTheServerLivesOn) {
  start();
  const std::pair<std::string, std::pair<int, std::string>> kBad[] = {
      {post("/v1/chat/completions", "{"), {400, "invalid_value"}},
      {chat(R"("temperature":NaN)"), {400, "invalid_value"}},
      {chat(R"("temperature":3)"), {400, "invalid_value"}},
      {chat(R"("stream":true,"n":0)"), {400, "invalid_value"}},
      {chat(R"("tools":[{"type":"function"}])"), {400, "unsupported_parameter"}},
      {chat(R"("model":"gpt-9")"), {404, "model_not_found"}},
      {post("/v1/chat/completions", R"({"messages":[]})"), {400, "invalid_value"}},
      {post("/v1/chat/completions", R"({"messages":[{"role":"tool","content":"x"}]})"),
       {400, "invalid_value"}},
      {complete(R"("prompt":"")"), {400, "invalid_value"}},
      {post("/v1/embeddings", "{}"), {404, "route_not_found"}},
      {get("/v1/chat/completions"), {405, "method_not_allowed"}},
      {get("/v1/models/nobody"), {404, "model_not_found"}},
  };
  for (const auto& [request, expected] : kBad) {
    const json::value v = ask_json(request, expected.first);
    const json::object& error = v.at("error").as_object();
    EXPECT_EQ(error.at("code"), json::value(expected.second));
    EXPECT_TRUE(error.at("message").is_string() && error.at("type").is_string() && error.contains("param"));
    EXPECT_EQ(ask(chat()).status, 200);
  }
  EXPECT_THAT(ask_json(chat(R"("model":"gpt-9")"), 404).at("error").at("message").as_string().c_str(),
              HasSubstr("fake, other-name"));
  EXPECT_EQ(ask(get("/v1/chat/completions")).fields.at("allow"), "POST");
  EXPECT_EQ(ask(post("/health", "")).fields.at("allow"), "GET, HEAD");
}

TEST_F(ApiTest, ModelsHealthAndVersion) {
  start();
  const json::value models = ask_json(get("/v1/models"));
  EXPECT_EQ(models.at("object"), "list");
  EXPECT_EQ(models.at("data").at(1).at("id"), "other-name");
  EXPECT_EQ(models.at("data").at(0).at("max_model_len"), 256);
  EXPECT_EQ(ask_json(get("/v1/models/other%2Dname")).at("id"), "other-name");
  EXPECT_EQ(ask_json(chat(R"("model":"other-name")")).at("model"), "other-name");
  EXPECT_EQ(ask(get("/health")).status, 200);
  EXPECT_EQ(ask(get("/health/ready")).status, 200);
  EXPECT_TRUE(ask_json(get("/version")).at("version").is_string());
}

TEST_F(ApiTest, LoadingAnswersHealthAloneAndSaysWhenToRetry) {
  start_loading();
  EXPECT_EQ(ask(get("/health")).status, 200);
  EXPECT_EQ(ask(get("/health/ready")).status, 503);
  const RawReply reply = ask(chat());
  EXPECT_EQ(reply.status, 503);
  EXPECT_GT(std::stoi(reply.fields.at("retry-after")), 0);
  EXPECT_THAT(reply.body, HasSubstr("loading"));
}

TEST_F(ApiTest, TokenizeAndDetokenize) {
  start();
  EXPECT_EQ(ask_json(post("/tokenize", R"({"prompt":"ab<|im_end|>"})")).at("tokens"),
            json::array({97, 98, 257}));
  EXPECT_EQ(ask_json(post("/tokenize", R"({"messages":[{"role":"user","content":"hi"}]})")).at("count"), 21);
  EXPECT_EQ(ask_json(post("/detokenize", R"({"tokens":[97,98,257]})")).at("prompt"), "ab<|im_end|>");
  EXPECT_EQ(ask(post("/detokenize", R"({"tokens":[9999]})")).status, 400);
  EXPECT_EQ(ask(post("/detokenize", R"({})")).status, 400);
}

TEST_F(ApiTest, KeysAreNeededExceptForHealth) {
  config_.server.api_key = {"one", "two"};
  start();
  for (const char* field :
       {"", "Authorization: Bearer wrong\r\n", "Authorization: one\r\n", "Authorization: Bearer \r\n"}) {
    const RawReply reply = ask(get("/v1/models", field));
    EXPECT_EQ(reply.status, 401) << field;
    EXPECT_EQ(reply.fields.at("www-authenticate"), "Bearer");
    EXPECT_EQ(ask(get("/nowhere", field)).status, 401);
  }
  EXPECT_EQ(ask(get("/v1/models", "Authorization: Bearer two\r\n")).status, 200);
  EXPECT_EQ(ask(get("/v1/models", "Authorization: bearer one\r\n")).status, 200);
  EXPECT_EQ(ask(get("/health")).status, 200);
}

TEST_F(ApiTest, KeysDoNotSharePrefixes) {
  config_.server.api_key = {"one", "two"};
  start();
  const std::string body = R"({"prompt":")" + std::string(100, 'p') + R"(","max_tokens":1})";
  const auto cached = [&](const char* key) {
    const json::value v =
        ask_json(post("/v1/completions", body, fmt::format("Authorization: Bearer {}\r\n", key)));
    return v.at("usage").at("prompt_tokens_details").at("cached_tokens").as_int64();
  };
  EXPECT_EQ(cached("one"), 0);
  EXPECT_GT(cached("one"), 0);
  EXPECT_EQ(cached("two"), 0);
}

TEST_F(ApiTest, SpellingsOfOneKeyShareTheirPrefixes) {
  config_.server.api_key = {"one"};
  start();
  const std::string body = R"({"prompt":")" + std::string(100, 'p') + R"(","max_tokens":1})";
  const auto cached = [&](const char* authorization) {
    const json::value v =
        ask_json(post("/v1/completions", body, fmt::format("Authorization: {}\r\n", authorization)));
    return v.at("usage").at("prompt_tokens_details").at("cached_tokens").as_int64();
  };
  EXPECT_EQ(cached("Bearer one"), 0);
  EXPECT_GT(cached("bearer  one"), 0);
  EXPECT_GT(cached("BEARER one "), 0);
}

TEST_F(ApiTest, OpenRoutesAreAsTheSettingsSay) {
  config_.server.api_key = {"one"};
  config_.server.open_routes = {"/v1/models", "/v1/models/"};
  start();
  EXPECT_EQ(ask(get("/v1/models")).status, 200);
  EXPECT_EQ(ask(get("/v1/models/fake")).status, 200);
  EXPECT_EQ(ask(get("/health")).status, 401);
  EXPECT_EQ(ask(get("/version")).status, 401);
  EXPECT_EQ(ask(chat()).status, 401);
  EXPECT_EQ(ask(post("/v1/models", "")).status, 401);  // what is open is a method and a path
}

TEST_F(ApiTest, UnknownOpenRouteIsRefusedWithTheValidOnes) {
  config_.server.open_routes = {"/health", "/helth"};
  const auto refused = Server(config_).start();
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::kConfig);
  EXPECT_THAT(refused.error().message, testing::AllOf(HasSubstr("server.open_routes: got \"/helth\""),
                                                      HasSubstr("/v1/completions"), HasSubstr("/version")));
}

TEST_F(ApiTest, HostsThatLoopbackAnswersFor) {
  config_.server.allowed_origins = {"https://chat.example"};
  start();
  EXPECT_EQ(ask("GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n").status, 403);
  EXPECT_EQ(
      ask("POST /v1/completions HTTP/1.1\r\nHost: 127.evil.example\r\nContent-Length: 0\r\n\r\n").status,
      403);
  for (const char* host : {"chat.example", "127.0.0.1:1", "localhost:8000", "[::1]:8000", "app.localhost"})
    EXPECT_EQ(ask(fmt::format("GET /health HTTP/1.1\r\nHost: {}\r\n\r\n", host)).status, 200) << host;
}

TEST_F(ApiTest, OtherAddressesAnswerForEveryHost) {
  config_.server.host = "0.0.0.0";
  start();
  EXPECT_EQ(ask("GET /health HTTP/1.1\r\nHost: any.example\r\n\r\n").status, 200);
}

TEST_F(ApiTest, OriginsThatPagesMayHave) {
  config_.server.allowed_origins = {"https://chat.example", "http://localhost:3000"};
  config_.server.api_key = {"one"};
  start();
  const RawReply good = ask(get("/health", "Origin: https://chat.example\r\n"));
  EXPECT_EQ(good.fields.at("access-control-allow-origin"), "https://chat.example");
  EXPECT_EQ(good.fields.at("access-control-allow-credentials"), "true");
  EXPECT_THAT(good.fields.at("access-control-expose-headers"), HasSubstr("X-Request-Id"));
  EXPECT_EQ(good.fields.at("vary"), "Origin");
  // A page must be able to read why it was refused.
  EXPECT_EQ(
      ask(get("/v1/models", "Origin: http://localhost:3000\r\n")).fields.at("access-control-allow-origin"),
      "http://localhost:3000");
  for (const char* origin :
       {"https://evil.example", "https://chat.example.evil", "null", "http://chat.example"}) {
    const RawReply bad = ask(get("/health", fmt::format("Origin: {}\r\n", origin)));
    EXPECT_FALSE(bad.fields.contains("access-control-allow-origin")) << origin;
    EXPECT_FALSE(bad.fields.contains("access-control-allow-credentials")) << origin;
    EXPECT_EQ(bad.fields.at("vary"), "Origin");
  }
}

// A preflight carries no key.
TEST_F(ApiTest, PreflightAllowsWhatIsAskedFor) {
  config_.server.allowed_origins = {"https://chat.example"};
  config_.server.api_key = {"one"};
  start();
  const auto preflight = [&](const char* origin, const char* fields) {
    return ask(
        fmt::format("OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nOrigin: {}\r\n"
                    "Access-Control-Request-Method: POST\r\n"
                    "Access-Control-Request-Headers: {}\r\n\r\n",
                    origin, fields));
  };
  const RawReply good = preflight("https://chat.example", "authorization,content-type,x-stainless-os");
  EXPECT_EQ(good.status, 204);
  EXPECT_EQ(good.fields.at("access-control-allow-origin"), "https://chat.example");
  EXPECT_EQ(good.fields.at("access-control-allow-credentials"), "true");
  EXPECT_THAT(good.fields.at("access-control-allow-methods"), HasSubstr("POST"));
  EXPECT_EQ(good.fields.at("access-control-allow-headers"), "authorization,content-type,x-stainless-os");
  EXPECT_EQ(good.fields.at("access-control-max-age"), "600");
  EXPECT_EQ(preflight("https://chat.example", "a;b").fields.at("access-control-allow-headers"),
            "Authorization, Content-Type, X-Request-Id");
  const RawReply bad = preflight("https://evil.example", "authorization");
  EXPECT_FALSE(bad.fields.contains("access-control-allow-origin"));
  EXPECT_FALSE(bad.fields.contains("access-control-allow-headers"));
}

TEST_F(ApiTest, AnyOriginIsWithoutCredentials) {
  config_.server.allowed_origins = {"*"};
  start();
  const RawReply reply = ask(get("/health", "Origin: https://any.example\r\n"));
  EXPECT_EQ(reply.fields.at("access-control-allow-origin"), "*");
  EXPECT_FALSE(reply.fields.contains("access-control-allow-credentials"));
}

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
