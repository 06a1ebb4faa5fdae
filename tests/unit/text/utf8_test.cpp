#include "text/utf8.h"

#include <gtest/gtest.h>

namespace deepinfer {
namespace {

using namespace std::string_literals;

TEST(Utf8, ReplacesMaximalSubparts) {
  // Expected texts are those of Python's bytes.decode(errors="replace"); '?' stands for U+FFFD.
  const std::pair<std::string, std::string> cases[] = {
      {"plain", "plain"},
      {"\xC3\xA9", "\xC3\xA9"},
      {"\x80", "?"},
      {"\xC0\xAF", "??"},
      {"\xE0\x9F\x80", "???"},
      {"\xE2\x82", "?"},
      {"\xE2\x82x", "?x"},
      {"\xED\xA0\x80", "???"},
      {"\xF0\x9F\x98", "?"},
      {"\xF0\x9F\x98\x80", "\xF0\x9F\x98\x80"},
      {"\xF0\x80\x80\x80", "????"},
      {"\xF4\x90\x80\x80", "????"},
      {"\xF5\xFF", "??"},
      {"\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41", "????\x41"},
      {"a\0b"s, "a\0b"s},
  };
  for (const auto& [bytes, marked] : cases) {
    std::string expected;
    for (const char c : marked) expected += c == '?' ? std::string(kReplacementUtf8) : std::string(1, c);
    EXPECT_EQ(sanitize_utf8(bytes), expected);
    EXPECT_EQ(is_valid_utf8(bytes), bytes == expected);
  }
}

TEST(Utf8, EncodesWhatItDecodes) {
  for (char32_t code = 0; code < 0x110000; code += code < 0x3000 ? 1 : 97) {
    if (code >= 0xD800 && code < 0xE000) continue;
    std::string bytes;
    append_utf8(bytes, code);
    const Utf8Step step = decode_utf8(bytes);
    ASSERT_TRUE(step.valid && step.length == bytes.size() && step.code == code) << std::hex << uint32_t{code};
    for (size_t cut = 1; cut < bytes.size(); ++cut)
      ASSERT_TRUE(decode_utf8(bytes.substr(0, cut)).truncated) << std::hex << uint32_t{code};
  }
}

}  // namespace
}  // namespace deepinfer
