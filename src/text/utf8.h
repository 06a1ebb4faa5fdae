// UTF-8 as it really arrives: every fault becomes U+FFFD, one for each maximal subpart, as Unicode
// recommends and Python's decode(errors="replace") does.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace deepinfer {

inline constexpr char32_t kReplacement = 0xFFFD;
inline constexpr std::string_view kReplacementUtf8 = "\xEF\xBF\xBD";

struct Utf8Step {
  char32_t code = 0;   // kReplacement for a fault
  uint8_t length = 0;  // bytes read, 1 to 4; for a fault those of its maximal subpart
  bool valid = false;
  bool truncated = false;  // the text ended inside a sequence that was right so far
};

// The first code point of a text that is not empty.
Utf8Step decode_utf8(std::string_view text);

bool is_valid_utf8(std::string_view text);
std::string sanitize_utf8(std::string_view text);
void append_utf8(std::string& out, char32_t code);

}  // namespace deepinfer
