// The table of parameters: its documentation, its ranges against the engine's, and strings as tokens.
#include "server/params.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <set>
#include <sstream>

#include "engine/sampling_params.h"
#include "fake_llm.h"
#include "server/prepare.h"
#include "server/token_words.h"

namespace deepinfer::server {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr std::string_view kBegin = "<!-- parameters: begin -->\n", kEnd = "<!-- parameters: end -->";

TEST(ParamTable, DocumentationIsMadeFromIt) {
  const std::string path = std::string(DI_SOURCE_DIR) + "/docs/API.md";
  std::ifstream in(path);
  ASSERT_TRUE(in) << path << " is missing";
  std::stringstream stream;
  stream << in.rdbuf();
  std::string text = stream.str();
  const size_t begin = text.find(kBegin), end = text.find(kEnd);
  ASSERT_TRUE(begin != std::string::npos && end != std::string::npos) << path << " lacks its marks";
  const size_t at = begin + kBegin.size();
  if (std::getenv("DEEPINFER_UPDATE_DOCS")) {
    std::ofstream(path) << text.substr(0, at) << params_markdown() << text.substr(end);
    return;
  }
  EXPECT_EQ(text.substr(at, end - at), params_markdown()) << "run this test with DEEPINFER_UPDATE_DOCS=1";
}

TEST(ParamTable, NoNameTwiceInOneForm) {
  std::set<std::pair<std::string_view, Form>> names;
  const auto add = [&names](std::string_view name, Form forms) {
    for (const Form form : {kChat, kCompletion}) {
      if (forms & form) {
        EXPECT_TRUE(names.emplace(name, form).second) << name;
      }
    }
  };
  for (const ParamRow& row : param_table()) add(row.name, row.forms);
  for (const RefusedRow& row : refused_table()) add(row.name, row.forms);
}

// What this table lets through the engine must take, and the other way round: at and just beyond each end.
TEST(ParamTable, RangesAreTheEngines) {
  const auto engine_takes = [](const GenerationRequest& request) {
    SamplingParams sampling = request.sampling;
    sampling.max_tokens = request.max_tokens.value_or(2147483647);
    return validate(sampling, 1000).ok();
  };
  int checked = 0;
  for (const ParamRow& row : param_table()) {
    if (!row.set || row.kind == ParamKind::kBool) continue;
    GenerationRequest plain;
    row.set(plain, row.high);
    GenerationRequest low;
    row.set(low, row.kind == ParamKind::kNumberAbove ? row.low + 1e-3 : row.low);
    // max_tokens 0 never reaches the engine as such; rows of the request itself are not the engine's.
    if (row.name == "max_tokens" || row.name == "max_completion_tokens" || row.name == "logprobs") continue;
    EXPECT_TRUE(engine_takes(plain)) << row.name << " at " << row.high;
    EXPECT_TRUE(engine_takes(low)) << row.name << " at " << row.low;
    // Where -1 means something to the engine alone, or the engine does not look.
    const bool other_below = row.name == "priority" || row.name == "truncate_prompt_tokens" ||
                             row.name == "prompt_logprobs" || row.name == "top_logprobs";
    GenerationRequest beyond;
    row.set(beyond, row.kind == ParamKind::kNumberAbove ? row.low : row.low - 1);
    EXPECT_TRUE(other_below || !engine_takes(beyond)) << row.name << " below " << row.low;
    ++checked;
  }
  EXPECT_GT(checked, 25);
}

TEST(Fields, NumbersOutOfRangeSayWhatIsExpected) {
  const auto body = parse_body(R"({"messages":[{"role":"user","content":"x"}],"xtc_probability":1.5})");
  const Error error = parse_chat(*body, {{}, {}, 10, false}).error();
  EXPECT_EQ(error.message, "xtc_probability: got 1.5E0, expected a number from 0 up to 1");
}

class Words : public testing::Test {
 protected:
  const std::unique_ptr<Llm> llm_ = make_fake_llm(Config(), {});
};

TEST_F(Words, BadWordsWithAndWithoutASpace) {
  const std::string words[] = {"ab", " c"};
  // With bytes as tokens a space makes a longer sequence: vLLM's rule leaves it out.
  EXPECT_THAT(bad_word_sequences(*llm_->tokenizer, words),
              ElementsAre(ElementsAre('a', 'b'), ElementsAre('c')));
  const std::string special[] = {"<|im_end|>"};
  EXPECT_THAT(bad_word_sequences(*llm_->tokenizer, special), ElementsAre(ElementsAre(kFakeEnd)));
}

TEST_F(Words, BreakersAreTokensAndTheirRests) {
  const std::string breakers[] = {"\n", "ab"};
  const TokenSequences sequences = breaker_sequences(*llm_->tokenizer, breakers);
  EXPECT_THAT(sequences, ElementsAre(ElementsAre('\n'), ElementsAre('a', 'b')));
  EXPECT_EQ(breaker_sequences(*llm_->tokenizer, default_breakers()).size(), 4u);
  EXPECT_TRUE(breaker_sequences(*llm_->tokenizer, {}).empty());
}

Result<Prepared> prepare_text(const std::string& text, Form form, const Llm& llm, const Config& config = {}) {
  return prepare(*parse_body(text), form, llm, config);
}

TEST_F(Words, ReachTheEngine) {
  const auto prepared =
      prepare_text(R"({"prompt":"x","bad_words":["q"],"dry_multiplier":1,"dry_sequence_breakers":["z"]})",
                   kCompletion, *llm_);
  ASSERT_TRUE(prepared.ok()) << prepared.error().message;
  EXPECT_THAT(prepared->request.sampling.bad_words, ElementsAre(ElementsAre('q')));
  EXPECT_THAT(prepared->request.sampling.dry_breakers, ElementsAre(ElementsAre('z')));
  const auto off = prepare_text(R"({"prompt":"x","dry_sequence_breakers":["z"]})", kCompletion, *llm_);
  EXPECT_TRUE(off->request.sampling.dry_breakers.empty());
  EXPECT_EQ(prepare_text(R"({"prompt":"x","dry_multiplier":1})", kCompletion, *llm_)
                ->request.sampling.dry_breakers.size(),
            4u);
}

TEST_F(Words, DeterministicNeedsItsSettingOnAGpuOnly) {
  const std::string body = R"({"prompt":"x","deterministic":true})";
  EXPECT_TRUE(prepare_text(body, kCompletion, *llm_).ok());
  llm_->on_gpu = true;
  const auto refused = prepare_text(body, kCompletion, *llm_);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().param, "deterministic");
  EXPECT_EQ(refused.error().code, ErrorCode::kInvalidArgument);
  Config config;
  config.gpu.deterministic = true;
  EXPECT_TRUE(prepare_text(body, kCompletion, *llm_, config).ok());
}

TEST_F(Words, TruncatedPromptsKeepTheirEnd) {
  const auto ids = [&](std::string_view fields) {
    return prepare_text(fmt::format(R"({{"prompt":"abcdef",{}}})", fields), kCompletion, *llm_)
        ->prompts.front();
  };
  EXPECT_THAT(ids(R"("truncate_prompt_tokens":2)"), ElementsAre('e', 'f'));
  EXPECT_THAT(ids(R"("truncate_prompt_tokens":2,"truncation_side":"right")"), ElementsAre('a', 'b'));
  EXPECT_EQ(ids(R"("truncate_prompt_tokens":100)").size(), 6u);
  EXPECT_THAT(ids(R"("truncate_prompt_tokens":-1,"max_tokens":253)"), ElementsAre('d', 'e', 'f'));
  const std::string long_prompt(300, 'y');
  const auto room = prepare_text(fmt::format(R"({{"prompt":"{}","truncate_prompt_tokens":-1}})", long_prompt),
                                 kCompletion, *llm_);
  ASSERT_TRUE(room.ok());
  EXPECT_EQ(room->prompts.front().size(), 240u) << "16 tokens of an answer whose length is not asked for";
  const auto beyond = prepare_text(R"({"prompt":"x","truncate_prompt_tokens":257})", kCompletion, *llm_);
  EXPECT_EQ(beyond.error().param, "truncate_prompt_tokens");
}

TEST_F(Words, TemplatesOfRequestsAndTheirVariables) {
  Config config;
  config.server.trust_request_chat_template = true;
  const auto text = [&](std::string_view fields) {
    const auto prepared = prepare_text(
        fmt::format(R"({{"messages":[{{"role":"user","content":"hi"}}],{}}})", fields), kChat, *llm_, config);
    if (!prepared) return prepared.error().param + ": " + prepared.error().message;
    const auto& ids = prepared->prompts.front();
    return std::string(ids.begin(), ids.end());
  };
  EXPECT_EQ(text(R"("chat_template":"{{ messages[0].content }}!")"), "hi!");
  EXPECT_EQ(text(R"("chat_template":"{{ reasoning_effort }}","reasoning_effort":"high")"), "high");
  EXPECT_EQ(text(R"("chat_template":"{{ enable_thinking }}","reasoning_effort":"none")"), "False");
  EXPECT_EQ(text(R"("chat_template":"{{ documents[0].text }}","documents":[{"text":"d"}])"), "d");
  EXPECT_EQ(text(R"("chat_template":"{{ x }}","chat_template_kwargs":{"x":7})"), "7");
  EXPECT_THAT(text(R"("chat_template":"{% if %}")"), HasSubstr("chat_template: "));
}

TEST_F(Words, AnAnswerGoesOnBehindTheLastMessageWhateverTheTemplateWroteThen) {
  const auto goes_on = [&](std::string_view text) {
    return prepare_text(
        fmt::format(
            R"({{"messages":[{{"role":"user","content":"im_end"}},{{"role":"assistant","content":"{}"}}],)"
            R"("continue_final_message":true}})",
            text),
        kChat, *llm_);
  };
  for (const std::string_view text : {"n", "end", "im_end", "assistant"}) {
    const auto prepared = goes_on(text);
    ASSERT_TRUE(prepared.ok()) << prepared.error().message;
    const std::vector<int32_t>& ids = prepared->prompts.front();
    std::string bytes;
    for (const int32_t id : ids) bytes += id < 256 ? static_cast<char>(id) : '#';
    EXPECT_TRUE(bytes.ends_with(fmt::format("#assistant\n{}", text))) << bytes;
  }
  EXPECT_EQ(goes_on("").error().param, "continue_final_message");
}

TEST_F(Words, WhatASmallRequestMayNotMakeTheServerHold) {
  const std::string prompt(250, 'x');
  const auto scored = [&](int prompts, int n) {
    std::string list;
    for (int i = 0; i < prompts; ++i) list += fmt::format("{}\"{}\"", i ? "," : "", prompt);
    return prepare_text(
        fmt::format(R"({{"prompt":[{}],"n":{},"prompt_logprobs":20,"max_tokens":1}})", list, n), kCompletion,
        *llm_);
  };
  EXPECT_TRUE(scored(1, 100).ok());
  EXPECT_EQ(scored(2, 128).error().param, "n");
  EXPECT_EQ(scored(2, 128).error().code, ErrorCode::kInvalidArgument);
  // A breaker longer than llama.cpp's is cut, not tokenized from each of its bytes on.
  const std::string breaker(1024, 'b');
  EXPECT_LE(breaker_sequences(*llm_->tokenizer, std::vector<std::string>{breaker}).size(), 40u);
}

}  // namespace
}  // namespace deepinfer::server
