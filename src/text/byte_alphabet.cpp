#include "text/byte_alphabet.h"

#include <array>

#include "text/utf8.h"

namespace deepinfer {
namespace {

constexpr bool is_printable(uint32_t byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

constexpr uint32_t kShifted = 256;  // the bytes that are not printable stand, in order, from here on
constexpr uint32_t kCodes = kShifted + 68;

struct Alphabet {
  std::array<uint16_t, 256> code = {};
  std::array<int16_t, kCodes> byte = {};
};

constexpr Alphabet kAlphabet = [] {
  Alphabet a;
  for (auto& byte : a.byte) byte = -1;
  uint16_t next = kShifted;
  for (uint16_t byte = 0; byte < 256; ++byte) {
    a.code[byte] = is_printable(byte) ? byte : next++;
    a.byte[a.code[byte]] = static_cast<int16_t>(byte);
  }
  return a;
}();

}  // namespace

std::optional<std::string> bytes_from_alphabet(std::string_view spelling) {
  std::string out;
  out.reserve(spelling.size());
  while (!spelling.empty()) {
    const Utf8Step step = decode_utf8(spelling);
    if (!step.valid || step.code >= kCodes || kAlphabet.byte[step.code] < 0) return std::nullopt;
    out += static_cast<char>(kAlphabet.byte[step.code]);
    spelling.remove_prefix(step.length);
  }
  return out;
}

std::string bytes_to_alphabet(std::string_view bytes) {
  std::string out;
  for (const char byte : bytes) append_utf8(out, kAlphabet.code[static_cast<uint8_t>(byte)]);
  return out;
}

}  // namespace deepinfer
