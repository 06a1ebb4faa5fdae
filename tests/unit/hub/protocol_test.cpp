// What the hub sends: listings, indices, ranges, statuses; and what a person reads while it comes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "hub/hub_client.h"
#include "hub/list.h"
#include "hub/progress.h"

namespace deepinfer::hub {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

const std::string kCommit(40, 'c');

std::string listing(const std::string& siblings) {
  return R"({"sha": ")" + kCommit + R"(", "siblings": [)" + siblings + "]}";
}

TEST(RepoInfo, SizesAndHashes) {
  const std::string git(40, 'a'), sha(64, 'b');
  const auto info = parse_repo_info(
      listing(R"({"rfilename": "a.json", "size": 5, "blobId": ")" + git + R"("},
              {"rfilename": "b.gguf", "size": 9, "blobId": ")" +
              git + R"(", "lfs": {"sha256": ")" + sha +
              R"(", "size": 9}}, {"rfilename": "plain"}, {"rfilename": "odd", "size": 5, "blobId": "../x"})"),
      "x");
  ASSERT_TRUE(info) << info.error().message;
  EXPECT_EQ(info->commit, kCommit);
  ASSERT_EQ(info->files.size(), 4u);
  EXPECT_EQ(info->files[0].etag, git);
  EXPECT_EQ(info->files[0].size, 5u);
  EXPECT_EQ(info->files[1].etag, sha);
  EXPECT_EQ(info->files[1].size, 9u);
  EXPECT_EQ(info->files[2].etag, "");
  EXPECT_EQ(info->files[3].etag, "");
}

TEST(RepoInfo, WhatIsNone) {
  for (const std::string& text :
       {std::string(), std::string("{"), std::string("[]"), listing("3"), listing("{}"),
        listing(R"({"rfilename": 3})"), listing(R"({"rfilename": "../x"})"),
        listing(R"({"rfilename": "a"}, {"rfilename": "a"})"), listing(R"({"rfilename": "a", "size": -1})"),
        listing(R"({"rfilename": "a", "size": 1.5})"), listing(R"({"rfilename": "a", "size": 1e18})"),
        listing(R"({"rfilename": "a", "size": "5"})"), std::string(R"({"sha": "main", "siblings": []})")})
    EXPECT_FALSE(parse_repo_info(text, "x")) << text;
}

TEST(Index, NamesItsShardsOnce) {
  const auto shards = shards_of_index(R"({"weight_map": {"a": "2", "b": "1", "c": "2"}})", "x");
  ASSERT_TRUE(shards);
  EXPECT_THAT(*shards, ElementsAre("1", "2"));
  for (const char* text :
       {"{}", R"({"weight_map": []})", R"({"weight_map": {"a": 1}})", R"({"weight_map": {"a": "/x"}})"})
    EXPECT_FALSE(shards_of_index(text, "x")) << text;
}

TEST(WeightsText, FromTheConfig) {
  EXPECT_EQ(weights_text(R"({"torch_dtype": "bfloat16"})"), "safetensors bfloat16");
  EXPECT_EQ(weights_text(R"({"dtype": "float32", "quantization_config": {"quant_method": "awq"}})"),
            "safetensors awq");
  EXPECT_EQ(weights_text("{"), "safetensors");
}

TEST(ContentRange, Parsed) {
  const auto r = parse_content_range("bytes 10-19/100");
  ASSERT_TRUE(r);
  EXPECT_EQ(r->begin, 10u);
  EXPECT_EQ(r->end, 20u);
  EXPECT_EQ(r->size, 100u);
  EXPECT_EQ(parse_content_range("bytes 0-0/*")->size, 0u);
  for (const char* text : {"", "bytes", "bytes */5", "bytes 5-4/9", "bytes 1-2", "bytes -1-2/3", "10-19/100",
                           "bytes 1-18446744073709551615/5", "bytes 1-99999999999999999999/5", "bytes 1-2/x"})
    EXPECT_FALSE(parse_content_range(text)) << text;
}

TEST(UrlEscaped, KeepsWhatIsPlain) {
  EXPECT_EQ(url_escaped("refs/pr/1", false), "refs%2Fpr%2F1");
  EXPECT_EQ(url_escaped("a b/\xc3\xa9?#%.json", true), "a%20b/%C3%A9%3F%23%25.json");
}

TEST(StatusError, SaysWhatToDo) {
  Settings s{.endpoint = "https://h"};
  const Asked asked{"a/b", "main", ""};
  const auto message = [&](int status, const char* code = "") {
    return status_error(s, asked, {.status = status, .headers = {{"x-error-code", code}}, .redirect = {}})
        .message;
  };
  EXPECT_THAT(message(401), HasSubstr("HF_TOKEN"));
  EXPECT_THAT(message(403), HasSubstr("https://h/a/b"));
  EXPECT_THAT(message(401, "GatedRepo"), HasSubstr("https://h/a/b"));
  EXPECT_THAT(message(404), HasSubstr("no such model"));
  EXPECT_THAT(message(404, "RevisionNotFound"), HasSubstr("'main'"));
  EXPECT_THAT(message(500), HasSubstr("500"));
  s.token = "t";
  s.token_origin = "/file";
  EXPECT_THAT(message(401), HasSubstr("/file"));
}

TEST(RetryAfter, IsBounded) {
  const auto after = [](const char* text) {
    return retry_after({.status = 429, .headers = {{"retry-after", text}}, .redirect = {}});
  };
  EXPECT_EQ(after("3"), 3);
  EXPECT_EQ(after("99999"), 60);
  EXPECT_LT(after("Wed, 21 Oct 2026 07:28:00 GMT"), 0);
  EXPECT_LT(after("-1"), 0);
  EXPECT_LT(after("nan"), 0);
}

TEST(ProgressText, BarSpeedAndTime) {
  const ProgressState s{
      .files = 7, .files_done = 3, .total = 2'000'000'000, .done = 900'000'000, .bytes_per_second = 1e7};
  EXPECT_EQ(progress_text("a/b", s, 0), "a/b: 45% of 2.0 GB, 10.0 MB/s, 1:50 left, 3 of 7 files");
  EXPECT_THAT(progress_text("a/b", s, 20), HasSubstr("[#########...........]"));
  EXPECT_EQ(progress_text("a", {.files = 1, .total = 10, .done = 10}, 0), "a: 100% of 10 B");
  EXPECT_EQ(progress_text("a", {.files = 1, .total = 1000, .done = 999}, 0), "a: 99% of 1.0 kB");
}

TEST(AgoText, Rounds) {
  using std::chrono::seconds;
  EXPECT_EQ(ago_text(seconds(5)), "just now");
  EXPECT_EQ(ago_text(seconds(61)), "1 minute ago");
  EXPECT_EQ(ago_text(seconds(7200)), "2 hours ago");
  EXPECT_EQ(ago_text(seconds(100'000)), "yesterday");
  EXPECT_EQ(ago_text(seconds(86400 * 12)), "12 days ago");
}

}  // namespace
}  // namespace deepinfer::hub
