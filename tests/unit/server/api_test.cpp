// What the API answers.
#include <gmock/gmock.h>

#include "api_fixture.h"

namespace deepinfer::server {
namespace {

namespace json = boost::json;
using testing::HasSubstr;

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

}  // namespace
}  // namespace deepinfer::server
