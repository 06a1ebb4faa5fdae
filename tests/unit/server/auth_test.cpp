// API keys: from the settings and from a file, and what is refused in one.
#include "server/auth.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

namespace deepinfer::server {
namespace {

using testing::HasSubstr;
using testing::Not;

Result<ApiKeys> load(const std::string& text, std::vector<std::string> keys = {}) {
  Config::Server config;
  config.api_key = std::move(keys);
  config.api_key_file = testing::TempDir() + "auth_test_keys";
  std::ofstream(config.api_key_file) << text;
  return ApiKeys::load(config);
}

std::string refusal(const std::string& text) {
  const auto keys = load(text);
  EXPECT_FALSE(keys.ok());
  if (keys.ok()) return {};
  EXPECT_EQ(keys.error().code, ErrorCode::kConfig);
  return keys.error().message;
}

TEST(ApiKeysTest, FileOfKeysAndHashesBesideTheSetting) {
  const auto keys = load("# mine\n  first \r\n\nsha256:" + sha256_hex("second") + "\nlast", {"zero"});
  ASSERT_TRUE(keys.ok()) << keys.error().message;
  for (const char* good : {"zero", "first", "second", "last"})
    EXPECT_EQ(keys->match(std::string("Bearer ") + good), sha256_hex(good)) << good;
  for (const char* bad : {"# mine", "mine", "", "Second", "sha256:"})
    EXPECT_EQ(keys->match(std::string("Bearer ") + bad), std::nullopt) << bad;
  EXPECT_EQ(keys->match("Bearer sha256:" + sha256_hex("second")), std::nullopt);  // a hash is no key
  EXPECT_EQ(keys->match("first"), std::nullopt);
  EXPECT_EQ(keys->match("Basic first"), std::nullopt);
  EXPECT_EQ(keys->match(""), std::nullopt);
}

TEST(ApiKeysTest, UpperCaseDigitsOfAHash) {
  std::string hash = sha256_hex("k");
  for (char& c : hash) c = static_cast<char>(std::toupper(c));
  const auto keys = load("sha256:" + hash);
  ASSERT_TRUE(keys.ok());
  EXPECT_TRUE(keys->match("Bearer k"));
}

TEST(ApiKeysTest, NoKeysMeansOpen) {
  const auto keys = ApiKeys::load({});
  ASSERT_TRUE(keys.ok());
  EXPECT_TRUE(keys->empty());
  EXPECT_EQ(keys->match(""), "");
}

TEST(ApiKeysTest, WrongFilesSayWhereAndNeverWhat) {
  EXPECT_THAT(refusal(""), testing::AllOf(HasSubstr("auth_test_keys"), HasSubstr("no key")));
  EXPECT_THAT(refusal("# only\n\n"), HasSubstr("no key"));
  EXPECT_THAT(refusal("good\nsha256:abc\n"), testing::AllOf(HasSubstr("keys:2"), HasSubstr("64 hex")));
  EXPECT_THAT(refusal("sha256:" + std::string(64, 'g')), HasSubstr(":1"));
  EXPECT_THAT(refusal("sha256:" + std::string(65, 'a')), HasSubstr(":1"));
  EXPECT_THAT(refusal("a secret phrase"), testing::AllOf(HasSubstr(":1"), Not(HasSubstr("phrase"))));
  Config::Server config;
  config.api_key_file = testing::TempDir() + "no/such/file";
  EXPECT_THAT(ApiKeys::load(config).error().message,
              testing::AllOf(HasSubstr("server.api_key_file"), HasSubstr("No such file")));
  config.api_key_file = testing::TempDir();
  EXPECT_THAT(ApiKeys::load(config).error().message, HasSubstr("directory"));
  config.api_key_file.clear();
  config.api_key = {""};
  EXPECT_THAT(ApiKeys::load(config).error().message, HasSubstr("server.api_key"));
}

}  // namespace
}  // namespace deepinfer::server
