#include "tune/workload.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>

namespace deepinfer::tune {
namespace {

using testing::HasSubstr;

TEST(Workload, RequestsAreTheSameInEveryRunAndFitTheContext) {
  for (const std::string name : {"chat", "batch", "long-context"})
    for (const int context : {64, 512, 8192, 131072}) {
      SCOPED_TRACE(name + " " + std::to_string(context));
      const Result<Workload> w = Workload::named(name, false, 1000, context);
      const Result<Workload> again = Workload::named(name, false, 1000, context);
      ASSERT_TRUE(w.ok());
      std::set<std::vector<int32_t>> prompts;
      for (size_t i = 0; i < 100; ++i) {
        const EngineRequest r = w->request(i);
        EXPECT_EQ(r.prompt, again->request(i).prompt);
        EXPECT_GE(r.prompt.size(), 1u);
        EXPECT_GE(r.sampling.max_tokens, 1);
        EXPECT_LE(static_cast<int>(r.prompt.size()) + r.sampling.max_tokens, context);
        EXPECT_TRUE(std::all_of(r.prompt.begin(), r.prompt.end(), [](int t) { return t >= 0 && t < 1000; }));
        prompts.insert(r.prompt);
      }
      if (context >= 512) {
        EXPECT_EQ(prompts.size(), 100u);
      }
    }
}

TEST(Workload, ChatsBeginWithTheSameTokens) {
  const Result<Workload> w = Workload::named("chat", true, 1000, 8192);
  ASSERT_TRUE(w.ok());
  const std::vector<int32_t> a = w->request(1).prompt, b = w->request(2).prompt;
  EXPECT_TRUE(std::equal(a.begin(), a.begin() + 64, b.begin()));
  EXPECT_FALSE(std::equal(a.begin(), a.begin() + 70, b.begin()));
  EXPECT_GT(w->concurrency(), Workload::named("chat", false, 1000, 8192)->concurrency());
}

TEST(Workload, AnUnknownNameIsRefused) {
  const Result<Workload> w = Workload::named("chitchat", false, 1000, 8192);
  ASSERT_FALSE(w.ok());
  EXPECT_EQ(w.error().code, ErrorCode::kConfig);
  EXPECT_THAT(w.error().message, HasSubstr("chat, batch, long-context"));
}

// Bytes as tokens.
class Bytes final : public Tokenizer {
 public:
  std::vector<int32_t> encode(std::string_view text, std::span<const TextRange>) const override {
    return {text.begin(), text.end()};
  }
  std::string_view bytes(int32_t) const override { return ""; }
  int32_t vocab_size() const override { return 256; }
  bool is_special(int32_t) const override { return false; }
  std::optional<int32_t> find(std::string_view) const override { return std::nullopt; }
  const std::vector<int32_t>& end_ids() const override { return ends_; }
  std::optional<int32_t> bos() const override { return 1; }
  bool add_bos() const override { return true; }

 private:
  std::vector<int32_t> ends_;
};

class WorkloadFile : public testing::Test {
 protected:
  Result<Workload> read(const std::string& text) {
    std::ofstream(path_) << text;
    const Result<ChatTemplate> t =
        ChatTemplate::parse("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}");
    EXPECT_TRUE(t.ok());
    return Workload::from_file(path_, tokenizer_, with_template_ ? &*t : nullptr, 256, 100);
  }
  void TearDown() override { std::filesystem::remove(path_); }

  bool with_template_ = true;
  Bytes tokenizer_;
  std::filesystem::path path_ = std::filesystem::temp_directory_path() / "workload_test.jsonl";
};

TEST_F(WorkloadFile, LinesOfEveryKind) {
  const Result<Workload> w = read(
      "{\"prompt_tokens\": 30, \"max_tokens\": 9}\n\n"
      "{\"prompt\": \"ab\", \"max_tokens\": 5}\n"
      "{\"prompt\": [7, 8, 9]}\n"
      "{\"custom_id\": \"x\", \"body\": {\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}], "
      "\"max_completion_tokens\": 500}}\n");
  ASSERT_TRUE(w.ok()) << w.error().message;
  Workload one = *w;
  one.set_concurrency(0);  // none is cut short
  EXPECT_EQ(one.request(0).prompt.size(), 30u);
  EXPECT_EQ(one.request(0).sampling.max_tokens, 9);
  EXPECT_TRUE(one.request(0).sampling.ignore_eos);
  EXPECT_EQ(one.request(1).prompt, (std::vector<int32_t>{1, 'a', 'b'}));
  EXPECT_FALSE(one.request(1).sampling.ignore_eos);
  EXPECT_EQ(one.request(2).prompt, (std::vector<int32_t>{7, 8, 9}));
  EXPECT_EQ(one.request(3).prompt.size(), std::string("<user>hi").size());
  EXPECT_EQ(one.request(3).sampling.max_tokens, 100 - 8) << "no more than the context holds";
  EXPECT_EQ(one.request(5).prompt, one.request(1).prompt);
  EXPECT_NE(one.request(5).cache_salt, one.request(1).cache_salt) << "its prompt is not in the cache";
}

TEST_F(WorkloadFile, WhatIsWrongIsSaidWithItsLine) {
  const struct {
    const char* text;
    const char* part;
  } cases[] = {
      {"", "no request"},
      {"\n\n", "no request"},
      {"{\"prompt_tokens\": 3}\n{", ":2: not valid JSON"},
      {"[1]", ":1: expected a JSON object"},
      {"{}", "expected prompt_tokens, prompt or messages"},
      {"{\"prompt_tokens\": 0}", "prompt_tokens is 0"},
      {"{\"prompt_tokens\": 100}", "a prompt of 100 tokens"},
      {"{\"prompt_tokens\": 3, \"max_tokens\": -1}", "max_tokens is -1"},
      {"{\"prompt\": \"\", \"max_tokens\": \"many\"}", "max_tokens is"},
      {"{\"prompt\": []}", "not empty"},
      {"{\"prompt\": [256]}", "from 0 to 255"},
      {"{\"prompt\": {}}", "prompt: expected a text"},
      {"{\"messages\": []}", "a list with a message"},
      {"{\"body\": 3}", "body is 3"},
  };
  for (const auto& c : cases) {
    const Result<Workload> w = read(c.text);
    ASSERT_FALSE(w.ok()) << c.text;
    EXPECT_EQ(w.error().code, ErrorCode::kConfig);
    EXPECT_THAT(w.error().message, HasSubstr(c.part)) << c.text;
  }
  with_template_ = false;
  EXPECT_THAT(read("{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]}").error().message,
              HasSubstr("no chat template"));
}

}  // namespace
}  // namespace deepinfer::tune
