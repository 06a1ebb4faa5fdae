#include "hub/settings.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <map>

namespace deepinfer::hub {
namespace {

using testing::HasSubstr;

Result<Settings> with(std::map<std::string, std::string> variables) {
  variables.emplace("HOME", "/nowhere");
  return settings_from([variables](const char* name) -> std::optional<std::string> {
    const auto it = variables.find(name);
    if (it == variables.end()) return std::nullopt;
    return it->second;
  });
}

TEST(Settings, Defaults) {
  const auto s = with({});
  ASSERT_TRUE(s);
  EXPECT_THAT(s->endpoint, HasSubstr("https://"));
  EXPECT_EQ(s->token, "");
  EXPECT_FALSE(s->offline);
  EXPECT_EQ(s->cache, "/nowhere/.cache/huggingface/hub");
}

TEST(Settings, TheCache) {
  EXPECT_EQ(with({{"XDG_CACHE_HOME", "/x"}})->cache, "/x/huggingface/hub");
  EXPECT_EQ(with({{"XDG_CACHE_HOME", "/x"}, {"HF_HOME", "~/h"}})->cache, "/nowhere/h/hub");
  EXPECT_EQ(with({{"HF_HOME", "/h"}, {"HUGGINGFACE_HUB_CACHE", "/old"}})->cache, "/old");
  EXPECT_EQ(with({{"HF_HOME", "/h"}, {"HUGGINGFACE_HUB_CACHE", "/old"}, {"HF_HUB_CACHE", "/c"}})->cache,
            "/c");
}

TEST(Settings, TheEndpoint) {
  EXPECT_EQ(with({{"HF_ENDPOINT", "http://h:1/x//"}})->endpoint, "http://h:1/x");
  for (const char* wrong : {"h", "ftp://h", "http://u:p@h", "http://h?x", "http://h y", "file:///x"})
    EXPECT_EQ(with({{"HF_ENDPOINT", wrong}}).error().code, ErrorCode::kConfig) << wrong;
}

TEST(Settings, TheToken) {
  const auto s = with({{"HF_TOKEN", " hf_a\n"}});
  EXPECT_EQ(s->token, "hf_a");
  EXPECT_EQ(s->token_origin, "HF_TOKEN");
  for (const char* wrong : {"a\r\nb", "a b", "\x80"})
    EXPECT_EQ(with({{"HF_TOKEN", wrong}}).error().code, ErrorCode::kConfig);
  const auto file = std::filesystem::path(testing::TempDir()) / "hub_token";
  std::ofstream(file) << "hf_file\n";
  EXPECT_EQ(with({{"HF_TOKEN_PATH", file}})->token, "hf_file");
  EXPECT_EQ(with({{"HF_TOKEN_PATH", file}})->token_origin, file);
  EXPECT_EQ(with({{"HF_TOKEN_PATH", file}, {"HF_TOKEN", "hf_a"}})->token, "hf_a");
  EXPECT_EQ(with({{"HF_TOKEN_PATH", file}, {"HF_HUB_DISABLE_IMPLICIT_TOKEN", "1"}})->token, "");
  std::filesystem::remove(file);
}

TEST(Settings, OfflineAndTimeout) {
  for (const char* yes : {"1", "on", "YES", "True"})
    EXPECT_TRUE(with({{"HF_HUB_OFFLINE", yes}})->offline) << yes;
  for (const char* no : {"", "0", "off", "2"}) EXPECT_FALSE(with({{"HF_HUB_OFFLINE", no}})->offline) << no;
  EXPECT_EQ(with({{"HF_HUB_DOWNLOAD_TIMEOUT", "7"}})->stall_seconds, 7);
  for (const char* wrong : {"0", "-1", "x", "1x", "nan", "1e9"})
    EXPECT_EQ(with({{"HF_HUB_DOWNLOAD_TIMEOUT", wrong}}).error().code, ErrorCode::kConfig) << wrong;
}

}  // namespace
}  // namespace deepinfer::hub
