// A batch: its files through every kind of end, its lines, and its answers from a model that says what it is
// told.
#include "server/batch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <boost/asio/post.hpp>
#include <boost/json.hpp>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>

#include "fake_llm.h"

namespace deepinfer::server {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;
using testing::HasSubstr;

std::string request(const std::string& id, const std::string& body = R"({"prompt":"Say:"})") {
  return R"({"custom_id":")" + id + R"(","method":"POST","url":"/v1/completions","body":)" + body + "}";
}

class BatchTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::path(testing::TempDir()) / fmt::format("batch-{}", getpid());
    fs::create_directories(folder_);
    paths_ = {folder_ / "in.jsonl", folder_ / "out.jsonl", folder_ / "out.errors.jsonl"};
  }
  void TearDown() override { fs::remove_all(folder_); }

  static void write(const fs::path& path, const std::string& text) {
    std::ofstream(path, std::ios::binary) << text;
  }
  static std::string read(const fs::path& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  static std::vector<json::object> lines(const fs::path& path) {
    std::vector<json::object> out;
    std::istringstream in(read(path));
    for (std::string line; std::getline(in, line);) out.push_back(json::parse(line).as_object());
    return out;
  }
  // By custom_id; each once.
  static std::map<std::string, json::object> results(const fs::path& path) {
    std::map<std::string, json::object> out;
    for (json::object& line : lines(path)) {
      const std::string id(line.at("custom_id").as_string());
      EXPECT_FALSE(out.contains(id)) << id;
      out[id] = std::move(line);
    }
    return out;
  }
  void requests(int count) {
    std::string text;
    for (int i = 0; i < count; ++i) text += request(fmt::format("r{}", i)) + "\n";
    write(paths_.input, text);
  }
  Result<BatchFiles> open(size_t max_line = 1 << 20) const { return open_batch(paths_, max_line); }
  std::string open_error(size_t max_line = 1 << 20) const {
    const auto files = open(max_line);
    return files ? "" : files.error().message;
  }

  struct Ended {
    BatchProgress progress;
    std::optional<Error> error;
  };
  // `stop_after`: results, after which it is stopped; -1: never.
  Ended run(FakeModel model = {}, int stop_after = -1, int window = 4) {
    Config config;
    auto llm = make_fake_llm(config, std::move(model));
    auto files = open();
    EXPECT_TRUE(files.ok()) << files.error().message;
    if (!files) return {};
    boost::asio::io_context io;
    Batch batch(*llm, config, std::move(*files), io, window);
    bool ended = false;
    batch.start([&] { ended = true; });
    while (!ended && io.run_one() > 0)
      if (stop_after >= 0 && batch.progress().succeeded >= stop_after) batch.stop(std::nullopt);
    io.run();
    EXPECT_TRUE(ended);
    llm.reset();
    return {batch.progress(), batch.error()};
  }

  fs::path folder_;
  BatchPaths paths_;
};

TEST_F(BatchTest, LinesOfAFile) {
  write(paths_.input, "\xEF\xBB\xBFone\r\n\n" + std::string(600'000, 'x') + "\nend");
  auto reader = LineReader::open(paths_.input, 100);
  ASSERT_TRUE(reader.ok()) << reader.error().message;
  for (int pass = 0; pass < 2; ++pass) {
    auto a = *reader->next(), b = *reader->next(), c = *reader->next(), d = *reader->next();
    EXPECT_EQ(a->text, "one");
    EXPECT_EQ(a->bytes, 8);
    EXPECT_EQ(b->text, "");
    EXPECT_TRUE(c->too_long && c->text.empty());
    EXPECT_EQ(c->bytes, 600'001);
    EXPECT_EQ(d->text, "end");
    EXPECT_EQ(d->number, 4);
    EXPECT_FALSE(d->ended);
    EXPECT_FALSE(reader->next()->has_value());
    reader->rewind();
  }
}

TEST_F(BatchTest, AnswersInOpenAisFormat) {
  write(paths_.input, request("a b\\n\\u00e9") + "\n\n" +
                          R"({"custom_id":"chat","method":"POST","url":"/v1/chat/completions",)"
                          R"("body":{"messages":[{"role":"user","content":"Hi"}],"max_tokens":5}})");
  const Ended ended = run();
  EXPECT_FALSE(ended.error);
  EXPECT_EQ(ended.progress.succeeded, 2);
  EXPECT_EQ(ended.progress.left(), 0);
  auto all = results(paths_.output);
  ASSERT_EQ(all.size(), 2u);
  const json::object& plain = all.at("a b\n\xC3\xA9");
  EXPECT_THAT(std::string(plain.at("id").as_string()), testing::StartsWith("batch_req_"));
  EXPECT_TRUE(plain.at("error").is_null());
  const json::object& response = plain.at("response").as_object();
  EXPECT_EQ(response.at("status_code"), 200);
  EXPECT_FALSE(response.at("request_id").as_string().empty());
  EXPECT_EQ(response.at("body").at("object"), "text_completion");
  EXPECT_EQ(response.at("body").at("choices").at(0).at("text"), "Hello there.");
  const json::value& chat = all.at("chat").at("response").at("body");
  EXPECT_EQ(chat.at("object"), "chat.completion");
  EXPECT_EQ(chat.at("choices").at(0).at("message").at("content"), "Hello");
  EXPECT_EQ(chat.at("choices").at(0).at("finish_reason"), "length");
  EXPECT_EQ(chat.at("usage").at("completion_tokens"), 5);
  EXPECT_EQ(read(paths_.errors), "");
}

TEST_F(BatchTest, ABadLineFailsAlone) {
  const std::string deep(70, '[');
  const std::vector<std::pair<std::string, std::pair<std::string, std::string>>> bad = {
      {"{oops", {"invalid_json_line", "the line is not valid JSON"}},
      {"[1]", {"invalid_json_line", "expected a JSON object"}},
      {R"({"a":)" + deep, {"invalid_json_line", "nested deeper than 64"}},
      {"\"\xFF\"", {"invalid_json_line", "not valid JSON"}},
      {R"({"method":"POST"})", {"missing_required_parameter", "custom_id: missing"}},
      {R"({"custom_id":7})", {"invalid_custom_id", "custom_id: got 7, expected a string"}},
      {R"({"custom_id":"1"})", {"missing_required_parameter", "method: missing, expected \"POST\""}},
      {R"({"custom_id":"2","method":"GET"})", {"invalid_method", "got \"GET\", expected \"POST\""}},
      {R"({"custom_id":"3","method":"POST"})", {"missing_required_parameter", "url: missing"}},
      {R"({"custom_id":"4","method":"POST","url":"/v1/embeddings"})",
       {"invalid_url", "expected \"/v1/chat/completions\" or \"/v1/completions\""}},
      {R"({"custom_id":"5","method":"POST","url":"/v1/completions"})",
       {"missing_required_parameter", "body: missing"}},
      {request("6", "[]"), {"invalid_body", "body: got"}},
  };
  std::string text = request("good") + "\n";
  for (const auto& [line, expected] : bad) text += line + "\n";
  write(paths_.input, text + request("last"));
  const Ended ended = run({}, -1, 1);
  EXPECT_EQ(ended.progress.succeeded, 2);
  EXPECT_EQ(ended.progress.failed, static_cast<int64_t>(bad.size()));
  EXPECT_THAT(ended.progress.first_failure, HasSubstr("line 2: the line is not valid JSON"));
  EXPECT_EQ(results(paths_.output).size(), 2u);
  const auto failures = lines(paths_.errors);
  ASSERT_EQ(failures.size(), bad.size());
  for (size_t i = 0; i < bad.size(); ++i) {
    EXPECT_TRUE(failures[i].at("response").is_null());
    EXPECT_EQ(failures[i].at("error").at("code"), json::value(bad[i].second.first)) << bad[i].first;
    EXPECT_THAT(std::string(failures[i].at("error").at("message").as_string()),
                HasSubstr(bad[i].second.second));
    EXPECT_EQ(failures[i].at("custom_id").is_null(), i < 6);
  }
}

TEST_F(BatchTest, ARequestThatTheServerRefusesHasItsStatus) {
  write(paths_.input, request("range", R"({"prompt":"x","temperature":9})") + "\n" +
                          request("model", R"({"prompt":"x","model":"gpt-4o"})") + "\n" +
                          request("long", R"({"prompt":")" + std::string(300, 'x') + R"("})") + "\n" +
                          request("stream", R"({"prompt":"x","stream":true})") + "\n" +
                          request("none", "{}"));
  EXPECT_EQ(run().progress.failed, 5);
  auto all = results(paths_.errors);
  const auto told = [&](const char* id, int status, const char* code, const char* words) {
    const json::object& response = all.at(id).at("response").as_object();
    EXPECT_TRUE(all.at(id).at("error").is_null());
    EXPECT_EQ(response.at("status_code"), status) << id;
    EXPECT_EQ(response.at("body").at("error").at("code"), code) << id;
    EXPECT_THAT(std::string(response.at("body").at("error").at("message").as_string()), HasSubstr(words));
  };
  told("range", 400, "invalid_value", "temperature: got 9");
  told("model", 404, "model_not_found", "gpt-4o");
  told("long", 400, "context_length_exceeded", "256");
  told("stream", 400, "invalid_value", "answers of a batch are whole");
  told("none", 400, "invalid_value", "prompt");
  EXPECT_EQ(read(paths_.output), "");
}

TEST_F(BatchTest, AFaultOfAStepFailsItsRequestAlone) {
  write(paths_.input, request("short", R"({"prompt":"abc","max_tokens":2})") + "\n" +
                          request("long", R"({"prompt":"abc","max_tokens":9})"));
  const Ended ended = run({.fails_at = 7}, -1, 1);
  EXPECT_EQ(ended.progress.succeeded, 1);
  EXPECT_EQ(results(paths_.errors).at("long").at("response").at("status_code"), 500);
}

TEST_F(BatchTest, WhatFailedIsRunAgain) {
  write(paths_.input, request("a", R"({"prompt":"x","temperature":9})") + "\n" + request("b"));
  EXPECT_EQ(run().progress.failed, 1);
  write(paths_.input, request("a") + "\n" + request("b"));
  const Ended again = run();
  EXPECT_EQ(again.progress.before, 1);
  EXPECT_EQ(again.progress.succeeded, 1);
  EXPECT_EQ(results(paths_.output).size(), 2u);
  EXPECT_EQ(read(paths_.errors), "");
}

TEST_F(BatchTest, StoppedAnywhereNothingIsLostOrDoubled) {
  requests(60);
  int64_t done = 0;
  for (int round = 0; done < 60; ++round) {
    ASSERT_LT(round, 60);
    const Ended ended = run({.step_time = std::chrono::microseconds(50)}, 7);
    EXPECT_EQ(ended.progress.before, done);
    EXPECT_EQ(ended.progress.failed, 0);
    done += ended.progress.succeeded;
    EXPECT_EQ(static_cast<int64_t>(results(paths_.output).size()), done);
  }
  EXPECT_EQ(run().progress.succeeded, 0);
}

// As a kill leaves it: any prefix of the file.
TEST_F(BatchTest, ATornLastLineIsDropped) {
  requests(5);
  run({}, -1, 1);
  const std::string whole = read(paths_.output);
  std::mt19937 random(11);
  for (int i = 0; i < 40; ++i) {
    const size_t cut = random() % whole.size();
    write(paths_.output, whole.substr(0, cut));
    const int64_t kept = std::count(whole.begin(), whole.begin() + static_cast<long>(cut), '\n');
    auto files = open();
    ASSERT_TRUE(files.ok()) << files.error().message << " seed 11, cut " << cut;
    EXPECT_EQ(files->plan.done, kept);
    EXPECT_EQ(files->output.size(), static_cast<int64_t>(fs::file_size(paths_.output)));
    EXPECT_EQ(std::count(whole.begin(), whole.begin() + files->output.size(), '\n'), kept);
  }
}

TEST_F(BatchTest, FilesOfOthersAreLeftAlone) {
  requests(2);
  for (const char* text : {"my notes, without an end of line", "{\"custom_id\":\"r0\"}", "{\"a\":1}\n", "\n",
                           "{\"id\":\"batch_req_1\"}\n"}) {
    write(paths_.output, text);
    EXPECT_THAT(open_error(), HasSubstr("out.jsonl:1: is no line of a batch's results")) << text;
    EXPECT_EQ(read(paths_.output), text);
  }
  write(paths_.output, R"({"id":"batch_req_1","custom_id":"other"})"
                       "\n");
  EXPECT_THAT(open_error(), HasSubstr("another batch's"));
  fs::remove(paths_.output);
  write(paths_.errors, "precious");
  EXPECT_THAT(open_error(), HasSubstr("--errors"));
  EXPECT_EQ(read(paths_.errors), "precious");
}

TEST_F(BatchTest, DuplicatesAreRefusedWithTheirLines) {
  std::string text = request("a") + "\n" + request("b") + "\n\n" + request("a") + "\n" + request("b") + "\n";
  write(paths_.input, text);
  EXPECT_THAT(open_error(), HasSubstr("lines have the same: 1 and 4, 2 and 5"));
  EXPECT_FALSE(fs::exists(paths_.output));
  for (int i = 0; i < 20; ++i) text += request("c") + "\n";
  write(paths_.input, text);
  EXPECT_THAT(open_error(), HasSubstr("6 and 7, 7 and 8"));
  EXPECT_THAT(open_error(), HasSubstr("and 13 more"));
}

TEST_F(BatchTest, ALineThatIsTooLongFailsAlone) {
  write(paths_.input,
        request("a", R"({"prompt":")" + std::string(2 << 20, 'x') + R"("})") + "\n" + request("b"));
  EXPECT_EQ(run().progress.succeeded, 1);
  EXPECT_EQ(lines(paths_.errors).at(0).at("error").at("code"), "line_too_long");
}

TEST_F(BatchTest, WrongFilesAreNamed) {
  EXPECT_THAT(open_error(), HasSubstr("in.jsonl: cannot open: No such file"));
  ASSERT_EQ(mkfifo(paths_.input.c_str(), 0600), 0);
  EXPECT_THAT(open_error(), HasSubstr("no regular file"));
  fs::remove(paths_.input);
  requests(1);
  paths_.errors = paths_.output;
  EXPECT_THAT(open_error(), HasSubstr("the same file"));
  paths_.errors = folder_ / "e";
  paths_.output = folder_ / "." / "in.jsonl";
  EXPECT_THAT(open_error(), HasSubstr("the same file"));
  EXPECT_THAT(read(paths_.input), HasSubstr("r0"));
  paths_.output = folder_ / "missing" / "out";
  EXPECT_THAT(open_error(), HasSubstr("cannot open for writing"));
}

TEST_F(BatchTest, OneProcessAtATime) {
  requests(1);
  const auto first = open();
  ASSERT_TRUE(first.ok());
  EXPECT_THAT(open_error(), HasSubstr("another process writes to it"));
}

// A disk that is full, in a way that tests can make: the limit of a file's size.
TEST_F(BatchTest, AFullDiskEndsTheRunWithWholeLines) {
  requests(40);
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  const rlimit small{3000, before.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  const Ended ended = run();
  setrlimit(RLIMIT_FSIZE, &before);
  ASSERT_TRUE(ended.error);
  EXPECT_THAT(ended.error->message, HasSubstr("out.jsonl: cannot write: File too large"));
  EXPECT_GT(ended.progress.succeeded, 0);
  EXPECT_EQ(static_cast<int64_t>(results(paths_.output).size()), ended.progress.succeeded);
  EXPECT_EQ(run().progress.left(), 0);
  EXPECT_EQ(results(paths_.output).size(), 40u);
}

TEST_F(BatchTest, AnEmptyFileIsDone) {
  write(paths_.input, " \n\n");
  const auto files = open();
  ASSERT_TRUE(files.ok());
  EXPECT_EQ(files->plan.requests, 0);
}

}  // namespace
}  // namespace deepinfer::server
