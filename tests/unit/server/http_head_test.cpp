#include "server/http_head.h"

#include <gtest/gtest.h>

namespace deepinfer::server {
namespace {

TEST(HttpHead, GoodHeadPasses) {
  EXPECT_FALSE(check_head(
      "POST /v1/x?y HTTP/1.1\r\nHost: a:1\r\nX-Odd~Name: \t v \xC3\xA4 \r\nContent-Length: 0\r\n\r\n"));
  EXPECT_FALSE(check_head("GET / HTTP/1.0\r\n\r\n"));
}

TEST(HttpHead, FaultsDoNotDependOnWhereTheBytesWereSplit) {
  const std::string head = "GET / HTTP/1.1\r\nHost: a\r\nX: b\rc\r\n\r\n";
  for (size_t split = 0; split < head.size(); ++split) {
    auto fault = check_head_start(std::string_view(head).substr(0, split));
    if (!fault) fault = check_head_start(head, split);
    ASSERT_TRUE(fault) << split;
    EXPECT_EQ(fault->status, 400);
  }
}

TEST(HttpHead, LoopbackHosts) {
  for (const char* host :
       {"localhost", "LOCALHOST:8000", "127.0.0.1", "127.1.2.3:80", "[::1]:8000", "x.localhost"})
    EXPECT_TRUE(is_loopback_host(host)) << host;
  for (const char* host :
       {"", "example.com", "localhost.example.com", "127.example.com", "10.0.0.1", "[::2]", "["})
    EXPECT_FALSE(is_loopback_host(host)) << host;
}

TEST(HttpHead, HostNames) {
  EXPECT_EQ(host_name("https://a.example:443/x"), "a.example");
  EXPECT_EQ(host_name("[::1]:80"), "[::1]");
  EXPECT_EQ(host_name("["), "[");
  EXPECT_EQ(host_name(""), "");
}

}  // namespace
}  // namespace deepinfer::server
