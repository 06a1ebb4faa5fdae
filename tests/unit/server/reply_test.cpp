// Answers as JSON, from updates made by hand: what vLLM's fields hold, and what scores prompts.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <limits>

#include "fake_llm.h"
#include "server/reply_json.h"

namespace deepinfer::server {
namespace {

namespace json = boost::json;

constexpr float kNever = -std::numeric_limits<float>::infinity();

OutputToken token(int32_t id, float logprob, int rank = 1, std::vector<TokenLogprob> top = {}) {
  return {id, rank, logprob, std::move(top)};
}

class ReplyTest : public testing::Test {
 protected:
  ReplyOptions options() const {
    ReplyOptions out{.head = {"id-1", 5, "m", "fp"}};
    out.prompts = {{"", {'p', 'q'}}};
    return out;
  }
  static std::vector<json::value> events(const std::string& text) {
    std::vector<json::value> out;
    for (size_t at = 0, end; (end = text.find("\n\n", at)) != std::string::npos; at = end + 2)
      out.push_back(json::parse(text.substr(at + 6, end - at - 6)));
    return out;
  }

  const std::unique_ptr<Llm> llm_ = make_fake_llm(Config(), {});
  const Tokenizer& tokenizer_ = *llm_->tokenizer;
  const PromptTokens scored_{token('q', -1.5f, 3, {{'z', -0.25f}, {'y', kNever}})};
};

TEST_F(ReplyTest, EchoAndLogprobsOfACompletion) {
  ReplyOptions o = options();
  o.logprobs = o.echo_logprobs = true;
  o.prompts = {{"pq", {'p', 'q'}}};
  ChoiceUpdate choice{.text = "r", .tokens = {token('r', -0.5f), token(kFakeEnd, -2)}, .finish = "stop"};
  const json::value v =
      json::parse(make_completion_format(o, tokenizer_)->whole({choice}, {scored_}, Usage{2, 2, 0}));
  EXPECT_EQ(v.at("choices").at(0).at("text"), "pqr");
  const json::value& l = v.at("choices").at(0).at("logprobs");
  EXPECT_EQ(l.at("tokens"), json::array({"p", "q", "r", "<|im_end|>"}));
  EXPECT_EQ(l.at("token_logprobs"), json::array({nullptr, -1.5, -0.5, -2.0}));
  EXPECT_EQ(l.at("text_offset"), json::array({0, 1, 2, 3}));
  EXPECT_TRUE(l.at("top_logprobs").at(0).is_null());
  EXPECT_EQ(l.at("top_logprobs").at(1), json::value({{"z", -0.25}, {"y", -9999.0}, {"q", -1.5}}));
  EXPECT_TRUE(v.at("choices").at(0).at("prompt_logprobs").is_null());
}

// A beginning of sequence that the echo does not spell takes no room in the offsets.
TEST_F(ReplyTest, OffsetsFollowTheEchoedText) {
  ReplyOptions o = options();
  o.logprobs = o.echo_logprobs = true;
  o.prompts = {{"\xC3\xA9q", {kFakeStart, 0xC3, 0xA9, 'q'}}};
  const PromptTokens scored{token(0xC3, -1), token(0xA9, -1), token('q', -1)};
  ChoiceUpdate choice{.text = "r", .tokens = {token('r', -0.5f)}, .finish = "length"};
  const json::value v =
      json::parse(make_completion_format(o, tokenizer_)->whole({choice}, {scored}, {4, 1, 0}));
  const json::value& l = v.at("choices").at(0).at("logprobs");
  EXPECT_EQ(l.at("text_offset"), json::array({0, 0, 1, 1, 2}));
  EXPECT_EQ(l.at("tokens").at(1), "bytes:\\xc3");
}

TEST_F(ReplyTest, StreamedEchoIsTheWholeOnesBeginning) {
  ReplyOptions o = options();
  o.logprobs = o.echo_logprobs = o.token_ids = o.include_usage = true;
  o.prompts = {{"pq", {'p', 'q'}}};
  const auto format = make_completion_format(o, tokenizer_);
  EXPECT_EQ(format->opening(), "");
  ChoiceUpdate first{.first = true, .text = "r", .tokens = {token('r', -0.5f)}, .ids = {'r'}};
  const auto all = events(format->update(first, scored_));
  ASSERT_EQ(all.size(), 2u);
  EXPECT_EQ(all[0].at("choices").at(0).at("text"), "pq");
  EXPECT_EQ(all[0].at("choices").at(0).at("logprobs").at("token_logprobs"), json::array({nullptr, -1.5}));
  EXPECT_EQ(all[0].at("choices").at(0).at("prompt_token_ids"), json::array({112, 113}));
  EXPECT_EQ(all[1].at("choices").at(0).at("logprobs").at("text_offset"), json::array{json::value(2)});
  EXPECT_EQ(all[1].at("choices").at(0).at("token_ids"), json::array{json::value(114)});
  EXPECT_TRUE(all[1].at("usage").is_null());
  ChoiceUpdate last{.finish = "stop", .stop_id = 7};
  const json::value end = events(format->update(last, scored_)).at(0);
  EXPECT_EQ(end.at("choices").at(0).at("finish_reason"), "stop");
  EXPECT_EQ(end.at("choices").at(0).at("stop_reason"), 7);
}

TEST_F(ReplyTest, PromptLogprobsHaveVllmsShape) {
  ReplyOptions o = options();
  o.prompt_logprobs = true;
  const ChoiceUpdate choice{.text = "r", .finish = "length"};
  const json::value expected = json::parse(
      R"([null,{"113":{"logprob":-1.5E0,"rank":3,"decoded_token":"q"},"122":{"logprob":-2.5E-1,"rank":1,"decoded_token":"z"},
         "121":{"logprob":-9999.0E0,"rank":2,"decoded_token":"y"}}])");
  const json::value completion =
      json::parse(make_completion_format(o, tokenizer_)->whole({choice}, {scored_}, {2, 1, 0}));
  EXPECT_EQ(completion.at("choices").at(0).at("prompt_logprobs"), expected);
  const json::value chat =
      json::parse(make_chat_format(o, tokenizer_)->whole({choice}, {scored_}, {2, 1, 0}));
  EXPECT_EQ(chat.at("prompt_logprobs"), expected);
  // The prompt's own token among the most likely ones stands there once.
  EXPECT_EQ(
      json_prompt_logprobs(tokenizer_, {token('q', -0.5f, 1, {{'q', -0.5f}, {'z', -1}})}),
      R"([null,{"113":{"logprob":-0.5,"rank":1,"decoded_token":"q"},"122":{"logprob":-1.0,"rank":2,"decoded_token":"z"}}])");
}

TEST_F(ReplyTest, TokensAsIds) {
  ReplyOptions o = options();
  o.logprobs = o.tokens_as_token_ids = true;
  const ChoiceUpdate choice{
      .text = "r", .tokens = {token('r', -0.5f, 1, {{'r', -0.5f}})}, .finish = "length"};
  const json::value completion = json::parse(
      make_completion_format(o, tokenizer_)->whole({choice}, std::vector<PromptTokens>(1), {2, 1, 0}));
  EXPECT_EQ(completion.at("choices").at(0).at("logprobs").at("tokens"),
            json::array{json::value("token_id:114")});
  EXPECT_TRUE(completion.at("choices")
                  .at(0)
                  .at("logprobs")
                  .at("top_logprobs")
                  .at(0)
                  .as_object()
                  .contains("token_id:114"));
  const json::value chat =
      json::parse(make_chat_format(o, tokenizer_)->whole({choice}, std::vector<PromptTokens>(1), {2, 1, 0}));
  const json::value& content = chat.at("choices").at(0).at("logprobs").at("content").at(0);
  EXPECT_EQ(content.at("token"), "token_id:114");
  EXPECT_EQ(content.at("bytes"), json::array{json::value(114)});
}

TEST_F(ReplyTest, ChatStreamsIdsEchoAndUsage) {
  ReplyOptions o = options();
  o.token_ids = o.include_usage = o.continuous_usage = true;
  o.prompts = {{"before ", {'p', 'q'}}};
  const auto format = make_chat_format(o, tokenizer_);
  const auto opening = events(format->opening());
  ASSERT_EQ(opening.size(), 2u);
  EXPECT_EQ(opening[0].at("prompt_token_ids"), json::array({112, 113}));
  EXPECT_EQ(opening[1].at("choices").at(0).at("delta").at("content"), "before ");
  ChoiceUpdate update{
      .text = "r", .ids = {'r', kFakeEnd}, .finish = "stop", .stop_text = "x", .usage = Usage{2, 2, 0}};
  const auto all = events(format->update(update, {}));
  ASSERT_EQ(all.size(), 2u);
  EXPECT_EQ(all[0].at("choices").at(0).at("token_ids"), json::array({114, kFakeEnd}));
  EXPECT_EQ(all[0].at("usage").at("total_tokens"), 4);
  EXPECT_EQ(all[1].at("choices").at(0).at("stop_reason"), "x");
  const json::value whole =
      json::parse(format->whole({update}, std::vector<PromptTokens>(1), Usage{2, 2, 0}));
  EXPECT_EQ(whole.at("choices").at(0).at("message").at("content"), "before r");
  EXPECT_EQ(whole.at("prompt_token_ids"), json::array({112, 113}));
}

}  // namespace
}  // namespace deepinfer::server
