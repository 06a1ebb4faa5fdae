// Requests, field by field: what is accepted, and what is refused with which parameter.
#include "server/openai.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json/serialize.hpp>

#include "server/params.h"

namespace deepinfer::server {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Pair;

constexpr int kVocab = 1000;

ParseContext context() {
  return {SamplingParams{.temperature = 0.5f}, {}, kVocab, false};
}

Result<ChatRequest> chat(std::string_view fields,
                         std::string_view messages = R"([{"role":"user","content":"hi"}])") {
  auto body =
      parse_body(fmt::format(R"({{"messages":{}{}{}}})", messages, fields.empty() ? "" : ",", fields));
  if (!body) return std::move(body).error();
  return parse_chat(*body, context());
}

Result<CompletionRequest> completion(std::string_view fields) {
  auto body = parse_body(fmt::format("{{{}}}", fields));
  if (!body) return std::move(body).error();
  return parse_completion(*body, context());
}

TEST(ParseBody, RefusesWhatIsNoJsonObject) {
  for (const char* body : {"", "{", "[1]", "\"x\"", "{\"a\":NaN}", "{\"a\":Infinity}", "{\"a\":1}x",
                           "{'a':1}", "{\"a\":\"\xff\"}", "null"}) {
    const auto result = parse_body(body);
    ASSERT_FALSE(result.ok()) << body;
    EXPECT_EQ(result.error().code, ErrorCode::kInvalidArgument);
  }
  const auto deep = parse_body(R"({"a":)" + std::string(100000, '[') + std::string(100000, ']') + "}");
  ASSERT_FALSE(deep.ok());
  EXPECT_THAT(deep.error().message, HasSubstr("nested deeper"));
}

TEST(ParseChat, DefaultsStayWhereTheRequestIsSilent) {
  const auto request = chat("");
  ASSERT_TRUE(request.ok()) << request.error().message;
  EXPECT_EQ(request->sampling.temperature, 0.5f);
  EXPECT_FALSE(request->max_tokens);
  EXPECT_FALSE(request->stream);
  EXPECT_EQ(request->sampling.logprobs, -1);
  EXPECT_TRUE(request->add_generation_prompt);
}

TEST(ParseChat, EveryParameterArrives) {
  const auto request = chat(
      R"("model":"m","n":3,"temperature":0,"top_p":0.5,"top_k":7,"min_p":0.25,"presence_penalty":-1,
         "frequency_penalty":1.5,"repetition_penalty":1.25,"max_tokens":5,"min_tokens":2,"seed":-9223372036854775808,
         "stop":["a","b"],"stop_token_ids":[1,2],"ignore_eos":true,"logprobs":true,"top_logprobs":4,
         "logit_bias":{"5":-100,"6":2.5},"stream":true,"stream_options":{"include_usage":true},"priority":-3,
         "cache_salt":"s","skip_special_tokens":false,"include_stop_str_in_output":true,
         "chat_template_kwargs":{"enable_thinking":false,"level":2,"name":"x"})");
  ASSERT_TRUE(request.ok()) << request.error().message;
  const SamplingParams& s = request->sampling;
  EXPECT_EQ(request->model, "m");
  EXPECT_EQ(s.n, 3);
  EXPECT_EQ(s.temperature, 0.0f);
  EXPECT_EQ(s.top_p, 0.5f);
  EXPECT_EQ(s.top_k, 7);
  EXPECT_EQ(s.min_p, 0.25f);
  EXPECT_EQ(s.presence_penalty, -1.0f);
  EXPECT_EQ(s.frequency_penalty, 1.5f);
  EXPECT_EQ(s.repetition_penalty, 1.25f);
  EXPECT_EQ(request->max_tokens, 5);
  EXPECT_EQ(s.min_tokens, 2);
  EXPECT_EQ(s.seed, std::numeric_limits<int64_t>::min());
  EXPECT_THAT(request->stop, ElementsAre("a", "b"));
  EXPECT_THAT(s.stop_token_ids, ElementsAre(1, 2));
  EXPECT_TRUE(s.ignore_eos);
  EXPECT_EQ(s.logprobs, 4);
  EXPECT_THAT(s.logit_bias, ElementsAre(Pair(5, -100.0f), Pair(6, 2.5f)));
  EXPECT_TRUE(request->stream && request->include_usage);
  EXPECT_EQ(request->priority, -3);
  EXPECT_EQ(request->cache_salt, "s");
  EXPECT_FALSE(request->skip_special_tokens);
  EXPECT_TRUE(request->include_stop);
  EXPECT_EQ(request->template_kwargs.size(), 3u);
}

TEST(ParseChat, MaxCompletionTokensWins) {
  EXPECT_EQ(chat(R"("max_completion_tokens":7,"max_tokens":5)")->max_tokens, 7);
  EXPECT_EQ(chat(R"("max_completion_tokens":null,"max_tokens":5)")->max_tokens, 5);
}

TEST(ParseChat, NullIsTheSameAsAbsentEverywhere) {
  std::string all;
  const auto check = [&all](std::string_view name) {
    if (name == "messages" || name == "prompt") return;
    const std::string field = fmt::format("\"{}\":null", name);
    const auto request = chat(field);
    EXPECT_TRUE(request.ok()) << name << ": " << request.error().message;
    if (all.find(field) == std::string::npos) all += (all.empty() ? "" : ",") + field;
  };
  for (const ParamRow& row : param_table()) check(row.name);
  for (const RefusedRow& row : refused_table()) check(row.name);
  check("best_of");
  EXPECT_TRUE(chat(all).ok());
  EXPECT_TRUE(completion("\"prompt\":\"p\"," + all).ok());
}

struct Bad {
  const char* fields;
  const char* param;
  ErrorCode code = ErrorCode::kInvalidArgument;
};

TEST(ParseChat, WrongTypesAndRangesNameTheParameter) {
  const Bad kBad[] = {
      {R"("model":5)", "model"},
      {R"("n":0)", "n"},
      {R"("n":129)", "n"},
      {R"("n":1.5)", "n"},
      {R"("n":"2")", "n"},
      {R"("n":true)", "n"},
      {R"("n":18446744073709551615)", "n"},
      {R"("n":1e300)", "n"},
      {R"("temperature":-0.1)", "temperature"},
      {R"("temperature":"1")", "temperature"},
      {R"("temperature":true)", "temperature"},
      {R"("temperature":[1])", "temperature"},
      {R"("temperature":1e999)", "temperature"},
      {R"("top_p":0)", "top_p"},
      {R"("top_p":1.01)", "top_p"},
      {R"("top_k":-2)", "top_k"},
      {R"("min_p":1.5)", "min_p"},
      {R"("presence_penalty":2.5)", "presence_penalty"},
      {R"("frequency_penalty":-2.5)", "frequency_penalty"},
      {R"("repetition_penalty":0)", "repetition_penalty"},
      {R"("max_tokens":0)", "max_tokens"},
      {R"("max_tokens":-1)", "max_tokens"},
      {R"("max_completion_tokens":0)", "max_completion_tokens"},
      {R"("max_tokens":3000000000)", "max_tokens"},
      {R"("max_tokens":3,"min_tokens":4)", "min_tokens"},
      {R"("seed":1.5)", "seed"},
      {R"("seed":9223372036854775808)", "seed"},
      {R"("stop":5)", "stop"},
      {R"("stop":"")", "stop"},
      {R"("stop":["a","b","c","d","e"])", "stop"},
      {R"("stop":["a",""])", "stop[1]"},
      {R"("stop":["a",null])", "stop[1]"},
      {R"("stop_token_ids":[1000])", "stop_token_ids[0]"},
      {R"("stop_token_ids":[-1])", "stop_token_ids[0]"},
      {R"("stop_token_ids":7)", "stop_token_ids"},
      {R"("logit_bias":{"x":1})", "logit_bias"},
      {R"("logit_bias":{"1000":1})", "logit_bias"},
      {R"("logit_bias":{"1":101})", "logit_bias"},
      {R"("logit_bias":{"1":"a"})", "logit_bias"},
      {R"("logit_bias":[1])", "logit_bias"},
      {R"("logprobs":5)", "logprobs"},
      {R"("top_logprobs":3)", "top_logprobs"},
      {R"("logprobs":true,"top_logprobs":21)", "top_logprobs"},
      {R"("stream":"yes")", "stream"},
      {R"("stream_options":{"include_usage":true})", "stream_options"},
      {R"("stream":true,"stream_options":{"include_usage":1})", "stream_options.include_usage"},
      {R"("priority":"high")", "priority"},
      {R"("chat_template_kwargs":{"messages":1})", "chat_template_kwargs"},
      {R"("chat_template_kwargs":{"__class__":1})", "chat_template_kwargs"},
      {R"("chat_template_kwargs":{"x":{"y":1}})", "chat_template_kwargs.x"},
      {R"("chat_template_kwargs":"x")", "chat_template_kwargs"},
      {R"("continue_final_message":true)", "continue_final_message"},
      {R"("tools":[{"type":"function","function":{"name":"f"}}])", "tools", ErrorCode::kUnsupported},
      {R"("tool_choice":"required")", "tool_choice", ErrorCode::kUnsupported},
      {R"("response_format":{"type":"json_object"})", "response_format", ErrorCode::kUnsupported},
      {R"("modalities":["text","audio"])", "modalities", ErrorCode::kUnsupported},
      {R"("best_of":2)", "best_of", ErrorCode::kUnsupported},
      {R"("structured_outputs":{"regex":"a"})", "structured_outputs", ErrorCode::kUnsupported},
      {R"("chat_template":"{{ x }}")", "chat_template", ErrorCode::kUnsupported},
      {R"("use_beam_search":true)", "use_beam_search", ErrorCode::kUnsupported},
      {R"("prompt_logprobs":-1)", "prompt_logprobs"},
      {R"("prompt_logprobs":21)", "prompt_logprobs"},
      {R"("prompt_logprobs":1,"stream":true)", "prompt_logprobs"},
      {R"("bad_words":"x")", "bad_words"},
      {R"("bad_words":["x",""])", "bad_words[1]"},
      {R"("bad_words":[5])", "bad_words[0]"},
      {R"("allowed_token_ids":[])", "allowed_token_ids"},
      {R"("allowed_token_ids":[1000])", "allowed_token_ids[0]"},
      {R"("truncate_prompt_tokens":0)", "truncate_prompt_tokens"},
      {R"("truncate_prompt_tokens":-2)", "truncate_prompt_tokens"},
      {R"("typical_p":0)", "typical_p"},
      {R"("typical_p":1.5)", "typical_p"},
      {R"("top_n_sigma":-1001)", "top_n_sigma"},
      {R"("top_n_sigma":"NaN")", "top_n_sigma"},
      {R"("xtc_probability":1.5)", "xtc_probability"},
      {R"("xtc_threshold":-0.5)", "xtc_threshold"},
      {R"("dynatemp_range":-1)", "dynatemp_range"},
      {R"("dynatemp_exponent":1e999)", "dynatemp_exponent"},
      {R"("num_speculative_tokens":33)", "num_speculative_tokens"},
      {R"("num_speculative_tokens":-2)", "num_speculative_tokens"},
      {R"("mirostat":3)", "mirostat"},
      {R"("mirostat":1.5)", "mirostat"},
      {R"("mirostat_tau":-1)", "mirostat_tau"},
      {R"("mirostat_eta":2)", "mirostat_eta"},
      {R"("dry_multiplier":-1)", "dry_multiplier"},
      {R"("dry_base":0.5)", "dry_base"},
      {R"("dry_allowed_length":-1)", "dry_allowed_length"},
      {R"("dry_penalty_last_n":-2)", "dry_penalty_last_n"},
      {R"("dry_sequence_breakers":"x")", "dry_sequence_breakers"},
      {R"("dry_sequence_breakers":[""])", "dry_sequence_breakers[0]"},
      {R"("cache_salt":"")", "cache_salt"},
      {R"("request_id":"a b")", "request_id"},
      {R"("request_id":"a\nb")", "request_id"},
      {R"("reasoning_effort":"huge")", "reasoning_effort"},
      {R"("documents":["x"])", "documents[0]"},
      {R"("documents":[{"title":5}])", "documents[0]"},
      {R"("deterministic":"yes")", "deterministic"},
      {R"("echo":1)", "echo"},
  };
  for (const Bad& bad : kBad) {
    const auto request = chat(bad.fields);
    ASSERT_FALSE(request.ok()) << bad.fields;
    EXPECT_EQ(request.error().param, bad.param) << bad.fields << ": " << request.error().message;
    EXPECT_EQ(request.error().code, bad.code) << bad.fields;
    EXPECT_THAT(request.error().message,
                HasSubstr(std::string(bad.param).substr(0, std::string(bad.param).find('.'))));
  }
}

TEST(ParseChat, SamplersAndRestOfTheTableArrive) {
  const auto request = chat(
      R"("typical_p":0.5,"top_n_sigma":2,"xtc_probability":0.25,"xtc_threshold":0.125,"dynatemp_range":0.5,
         "dynatemp_exponent":2,"mirostat":2,"mirostat_tau":4,"mirostat_eta":0.5,"dry_multiplier":0.75,"dry_base":2,
         "dry_allowed_length":3,"dry_penalty_last_n":64,"dry_sequence_breakers":["\n","x"],"bad_words":["a"," b"],
         "allowed_token_ids":[7,3,7],"prompt_logprobs":3,"truncate_prompt_tokens":-1,"return_token_ids":true,
         "num_speculative_tokens":7,"return_tokens_as_token_ids":true,
        "spaces_between_special_tokens":false,"echo":true,"deterministic":true,
         "request_id":"r-1","reasoning_effort":"low","documents":[{"title":"t","text":"x"}],"best_of":1)");
  ASSERT_TRUE(request.ok()) << request.error().message;
  const SamplingParams& s = request->sampling;
  EXPECT_EQ(s.typical_p, 0.5f);
  EXPECT_EQ(s.top_n_sigma, 2.0f);
  EXPECT_EQ(s.xtc_probability, 0.25f);
  EXPECT_EQ(s.xtc_threshold, 0.125f);
  EXPECT_EQ(s.dynatemp_range, 0.5f);
  EXPECT_EQ(s.dynatemp_exponent, 2.0f);
  EXPECT_EQ(s.num_speculative_tokens, 7);
  EXPECT_EQ(s.mirostat, 2);
  EXPECT_EQ(s.mirostat_tau, 4.0f);
  EXPECT_EQ(s.mirostat_eta, 0.5f);
  EXPECT_EQ(s.dry_multiplier, 0.75f);
  EXPECT_EQ(s.dry_base, 2.0f);
  EXPECT_EQ(s.dry_allowed_length, 3);
  EXPECT_EQ(s.dry_penalty_last_n, 64);
  EXPECT_EQ(request->dry_breakers, (std::vector<std::string>{"\n", "x"}));
  EXPECT_THAT(request->bad_words, ElementsAre("a", " b"));
  EXPECT_THAT(s.allowed_token_ids, ElementsAre(3, 7));
  EXPECT_EQ(s.prompt_logprobs, 3);
  EXPECT_EQ(request->prompt_logprobs, 3);
  EXPECT_EQ(request->truncate_prompt_tokens, -1);
  EXPECT_TRUE(request->return_token_ids && request->return_tokens_as_token_ids);
  EXPECT_TRUE(request->echo && request->deterministic);
  EXPECT_EQ(request->request_id, "r-1");
  EXPECT_EQ(request->template_kwargs.at("reasoning_effort"), "low");
  EXPECT_EQ(request->template_kwargs.at("documents").at(0).at("title"), "t");
}

TEST(ParseChat, TemplatesOfRequestsNeedTheOperatorsTrust) {
  const auto body = parse_body(R"({"messages":[{"role":"user","content":"x"}],"chat_template":"{{ 1 }}"})");
  ParseContext trusting = context();
  trusting.trust_chat_template = true;
  const auto request = parse_chat(*body, trusting);
  ASSERT_TRUE(request.ok()) << request.error().message;
  EXPECT_EQ(request->chat_template, "{{ 1 }}");
  EXPECT_EQ(parse_chat(*body, context()).error().code, ErrorCode::kUnsupported);
}

TEST(ParseChat, ContinuousUsageNeedsUsage) {
  const auto both =
      chat(R"("stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true})");
  EXPECT_TRUE(both->include_usage && both->continuous_usage);
  EXPECT_FALSE(chat(R"("stream":true,"stream_options":{"continuous_usage_stats":true})")->continuous_usage);
}

TEST(ParseCompletion, EchoWithLogprobsScoresThePrompt) {
  EXPECT_EQ(completion(R"("prompt":"a","echo":true,"logprobs":2)")->sampling.prompt_logprobs, 2);
  EXPECT_EQ(
      completion(R"("prompt":"a","echo":true,"logprobs":2,"prompt_logprobs":5)")->sampling.prompt_logprobs,
      5);
  EXPECT_EQ(completion(R"("prompt":"a","echo":true)")->sampling.prompt_logprobs, -1);
  EXPECT_EQ(completion(R"("prompt":"a","logprobs":2)")->sampling.prompt_logprobs, -1);
}

TEST(ParseChat, NeutralValuesOfUnbuiltFeaturesAreAccepted) {
  const auto request = chat(
      R"("tools":[],"tool_choice":"none","response_format":{"type":"text"},"modalities":["text"],"parallel_tool_calls":true,
         "store":false,"metadata":{"a":"b"},"user":"u","service_tier":"auto","n":2,"best_of":2,"an_unknown_field":[1,2])");
  EXPECT_TRUE(request.ok()) << request.error().message;
}

TEST(ParseChat, MessagesAreChecked) {
  const std::pair<const char*, const char*> kBad[] = {
      {"[]", "messages"},
      {"null", "messages"},
      {"{}", "messages"},
      {R"("hi")", "messages"},
      {R"(["hi"])", "messages[0]"},
      {R"([{"content":"x"}])", "messages[0].role"},
      {R"([{"role":"king","content":"x"}])", "messages[0].role"},
      {R"([{"role":5,"content":"x"}])", "messages[0].role"},
      {R"([{"role":"user"}])", "messages[0].content"},
      {R"([{"role":"user","content":null}])", "messages[0].content"},
      {R"([{"role":"user","content":5}])", "messages[0].content"},
      {R"([{"role":"user","content":"a"},{"role":"user","content":[5]}])", "messages[1].content[0]"},
      {R"([{"role":"user","content":[{"type":"text"}]}])", "messages[0].content[0].text"},
      {R"([{"role":"user","content":[{"type":"text","text":5}]}])", "messages[0].content[0].text"},
      {R"([{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}])",
       "messages[0].content[0].type"},
      {R"([{"role":"assistant","tool_calls":[]}])", "messages[0].tool_calls"},
      {R"([{"role":"assistant","tool_calls":[{"id":"1"}]}])", "messages[0].tool_calls[0]"},
      {R"([{"role":"user","content":"x","tool_calls":[{"function":{"name":"f"}}]}])",
       "messages[0].tool_calls"},
  };
  for (const auto& [messages, param] : kBad) {
    const auto request = chat("", messages);
    ASSERT_FALSE(request.ok()) << messages;
    EXPECT_EQ(request.error().param, param) << messages;
  }
}

TEST(ParseChat, MessagesTakeTheFormThatTemplatesRead) {
  const auto request =
      chat("", R"([{"role":"developer","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},
      {"role":"assistant","content":null,"tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{\"x\":1}"}}]},
      {"role":"tool","tool_call_id":"1","content":"r"},{"role":"user","content":"","name":"me"}])");
  ASSERT_TRUE(request.ok()) << request.error().message;
  EXPECT_EQ(
      boost::json::serialize(request->messages),
      R"([{"role":"system","content":"a\nb"},{"role":"assistant","content":null,"tool_calls":[{"id":"1","type":)"
      R"("function","function":{"name":"f","arguments":{"x":1}}}]},{"role":"tool","tool_call_id":"1","content":)"
      R"("r"},{"role":"user","content":"","name":"me"}])");
}

TEST(ParseCompletion, AllFormsOfAPrompt) {
  EXPECT_THAT(completion(R"("prompt":"a")")->prompts, ElementsAre(PromptInput("a")));
  EXPECT_THAT(completion(R"("prompt":["a","b"])")->prompts, ElementsAre(PromptInput("a"), PromptInput("b")));
  EXPECT_THAT(completion(R"("prompt":[1,2])")->prompts, ElementsAre(PromptInput(std::vector<int32_t>{1, 2})));
  EXPECT_THAT(completion(R"("prompt":[[1],[2,3]])")->prompts,
              ElementsAre(PromptInput(std::vector<int32_t>{1}), PromptInput(std::vector<int32_t>{2, 3})));
  const auto request = completion(R"("prompt":"a","logprobs":0,"max_tokens":0)");
  EXPECT_TRUE(request->logprobs);
  EXPECT_EQ(request->sampling.logprobs, 0);
  EXPECT_EQ(request->max_tokens, 0);
}

TEST(ParseCompletion, BadPromptsNameTheirPlace) {
  const std::pair<const char*, const char*> kBad[] = {
      {R"("prompt":null)", "prompt"},
      {R"("x":1)", "prompt"},
      {R"("prompt":5)", "prompt"},
      {R"("prompt":[])", "prompt"},
      {R"("prompt":{})", "prompt"},
      {R"("prompt":[[]])", "prompt[0]"},
      {R"("prompt":["a",5])", "prompt[1]"},
      {R"("prompt":[1,"a"])", "prompt[1]"},
      {R"("prompt":[1000])", "prompt[0]"},
      {R"("prompt":[[1],[-1]])", "prompt[1][0]"},
      {R"("prompt":[1.5])", "prompt[0]"},
      {R"("prompt":"a","logprobs":21)", "logprobs"},
      {R"("prompt":"a","logprobs":true)", "logprobs"},
      {R"("prompt":"a","echo":1)", "echo"},
      {R"("prompt":"a","suffix":"b")", "suffix"},
  };
  for (const auto& [fields, param] : kBad) {
    const auto request = completion(fields);
    ASSERT_FALSE(request.ok()) << fields;
    EXPECT_EQ(request.error().param, param) << fields << ": " << request.error().message;
  }
}

TEST(UnknownFields, AreFound) {
  const auto body =
      parse_body(R"({"temperature":1,"tools":[],"echo":true,"prompt":"x","messages":[],"zebra":1})");
  EXPECT_THAT(unknown_fields(*body), ElementsAre("zebra"));
}

}  // namespace
}  // namespace deepinfer::server
