// Text out of a file, made safe for a message: it may hold anything.
#pragma once

#include <string>
#include <string_view>

namespace deepinfer {

// At most 80 bytes; bytes outside of printable ASCII as \xNN.
inline std::string shown(std::string_view text) {
  constexpr size_t kMax = 80;
  constexpr char kHex[] = "0123456789abcdef";
  std::string out;
  for (const char c : text.substr(0, kMax)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7f) {
      out += c;
    } else {
      out += "\\x";
      out += kHex[byte >> 4];
      out += kHex[byte & 15];
    }
  }
  if (text.size() > kMax) out += "...";
  return out;
}

}  // namespace deepinfer
