#include "base/log_format.h"

#include <gtest/gtest.h>
#include <spdlog/details/log_msg.h>

namespace deepinfer {
namespace {

std::string line(LogFormat format, std::string_view message, const LogFields* fields = nullptr) {
  const spdlog::log_clock::time_point time(std::chrono::milliseconds(1763836021007));
  const spdlog::source_loc source =
      fields ? spdlog::source_loc{fields->json().c_str(), 1, fields->text().c_str()} : spdlog::source_loc{};
  const spdlog::details::log_msg record(time, source, "test", spdlog::level::warn,
                                        spdlog::string_view_t(message.data(), message.size()));
  spdlog::memory_buf_t out;
  LineFormatter(format).format(record, out);
  return {out.data(), out.size()};
}

TEST(LogFormat, JsonIsOneObjectALine) {
  LogFields fields;
  fields.add("request_id", "a b\"c").add("tokens", int64_t{12}).add("seconds", 0.25);
  EXPECT_EQ(line(LogFormat::kJson, "it \"works\"", &fields),
            R"({"time":"2025-11-22T18:27:01.007Z","level":"warning","message":"it \"works\"",)"
            R"("request_id":"a b\"c","tokens":12,"seconds":0.250000})"
            "\n");
}

TEST(LogFormat, TextHasItsFieldsAtTheEnd) {
  LogFields fields;
  fields.add("request_id", "4f1c").add("path", "/a b").add("empty", "").add("tokens", int64_t{12});
  const std::string text = line(LogFormat::kText, "it works", &fields);
  EXPECT_EQ(text.substr(23), " warning it works request_id=4f1c path=\"/a b\" empty=\"\" tokens=12\n");
}

TEST(LogFormat, ClientsCannotBreakALine) {
  const std::string evil =
      "a\nb\r\t\x1b[31m\x7f\xc2\x9b\xe2\x80\xa8\xff\xed\xa0\x80\xc0\x80 \xc3\xa9\xf0\x9f\x98\x80";
  LogFields fields;
  fields.add("id", evil);
  const std::string text = line(LogFormat::kText, evil, &fields);
  EXPECT_EQ(text.find('\n'), text.size() - 1);
  for (const char c : text.substr(0, text.size() - 1)) EXPECT_GE(static_cast<unsigned char>(c), 0x20);
  EXPECT_NE(text.find("a\\nb\\r\\t\\x1b[31m\\x7f\\u009b\\u2028"), std::string::npos);
  const std::string json = line(LogFormat::kJson, evil, &fields);
  EXPECT_EQ(json.find('\n'), json.size() - 1);
  EXPECT_NE(json.find("a\\u000ab\\u000d\\u0009\\u001b[31m\\u007f\\u009b\\u2028"), std::string::npos);
  EXPECT_NE(json.find(" \xc3\xa9\xf0\x9f\x98\x80\""), std::string::npos);  // what is text stays
  EXPECT_EQ(json.find('\xff'), std::string::npos);
  EXPECT_EQ(json.find("\xed\xa0\x80"), std::string::npos);
}

TEST(LogFormat, BytesThatEndTooEarlyAreReplaced) {
  for (const std::string_view cut :
       {"\xc3", "\xe2\x80", "\xf0\x9f\x98", "\xf5\x80\x80\x80", "\xe0\x80\x80"}) {
    std::string out;
    append_json_string(out, cut);
    EXPECT_NE(out.find("\xef\xbf\xbd"), std::string::npos);
    EXPECT_EQ(out.find(cut), std::string::npos);
  }
}

}  // namespace
}  // namespace deepinfer
