#include "text/jinja_escape.h"

#include <fmt/format.h>

#include <cstring>

namespace deepinfer::jinja {
namespace {

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  const char lower = static_cast<char>(c | 0x20);
  return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
}

// \xHH, \uHHHH, \UHHHHHHHH; at stands behind the letter.
const char* unescape_hex(std::string_view literal, size_t& at, size_t digits, std::string& out) {
  char32_t value = 0;
  for (size_t i = 0; i < digits; ++i, ++at) {
    const int digit = at < literal.size() ? hex_digit(literal[at]) : -1;
    if (digit < 0) return "truncated hexadecimal escape in a string";
    value = value * 16 + static_cast<char32_t>(digit);
  }
  if (value > 0x10FFFF) return "escape beyond Unicode's last character in a string";
  if (value >= 0xD800 && value <= 0xDFFF)
    return "half a surrogate pair in a string: write the character itself";
  append_utf8(out, value);
  return nullptr;
}

// Python decodes the literal after writing what is not ASCII as escapes; a backslash before such a character
// therefore protects the escape.
void append_protected(std::string_view literal, size_t& at, std::string& out) {
  const CodePoint c = decode_utf8(literal, at);
  const auto value = static_cast<uint32_t>(c.value);
  out += '\\';
  out += value < 0x100     ? fmt::format("x{:02x}", value)
         : value < 0x10000 ? fmt::format("u{:04x}", value)
                           : fmt::format("U{:08x}", value);
  at += c.size;
}

}  // namespace

const char* unescape(std::string_view literal, std::string& out) {
  static constexpr char kLetters[] = "\\'\"abfnrtv";
  static constexpr char kValues[] = "\\'\"\a\b\f\n\r\t\v";
  for (size_t at = 0; at < literal.size();) {
    const char c = literal[at++];
    if (c != '\\' || at >= literal.size()) {
      out += c;
      continue;
    }
    const char letter = literal[at];
    if (static_cast<unsigned char>(letter) >= 0x80) {
      append_protected(literal, at, out);
      continue;
    }
    ++at;
    if (const char* found = std::strchr(kLetters, letter); found != nullptr && letter != '\0') {
      out += kValues[found - kLetters];
    } else if (letter == '\n') {
      continue;
    } else if (letter >= '0' && letter <= '7') {
      char32_t value = static_cast<char32_t>(letter - '0');
      for (int i = 0; i < 2 && at < literal.size() && literal[at] >= '0' && literal[at] <= '7'; ++i, ++at) {
        value = value * 8 + static_cast<char32_t>(literal[at] - '0');
      }
      append_utf8(out, value);
    } else if (letter == 'x' || letter == 'u' || letter == 'U') {
      const size_t digits = letter == 'x' ? 2 : letter == 'u' ? 4 : 8;
      if (const char* problem = unescape_hex(literal, at, digits, out)) return problem;
    } else if (letter == 'N') {
      return "\\N{...} in a string is not supported: write the character itself";
    } else {
      out += '\\';
      out += letter;
    }
  }
  return nullptr;
}

namespace {

// Whether the byte came from the request: escapes keep the taint of what they stand for. Bytes are asked for
// in rising order.
class TaintWalker {
 public:
  explicit TaintWalker(const Text& text) : text_(text) {}
  bool at(size_t byte) {
    while (next_ < text_.untrusted.size() && text_.untrusted[next_].end <= byte) ++next_;
    return next_ < text_.untrusted.size() && text_.untrusted[next_].begin <= byte;
  }

 private:
  const Text& text_;
  size_t next_ = 0;
};

// Copies text, with `escape` giving the replacement of a code point or an empty string.
template <class Escape>
void append_escaped(TextBuilder& out, const Text& text, Escape escape) {
  TaintWalker taint(text);
  size_t copied = 0;
  for (size_t at = 0; at < text.bytes.size();) {
    const CodePoint c = decode_utf8(text.bytes, at);
    const std::string replacement = escape(c.value);
    if (!replacement.empty()) {
      out.append(text, copied, at);
      out.append(replacement, taint.at(at));
      copied = at + c.size;
    }
    at += c.size;
  }
  out.append(text, copied, text.bytes.size());
}

}  // namespace

void append_repr(TextBuilder& out, const Text& text) {
  const bool both = text.bytes.find('"') != std::string::npos;
  const char quote = text.bytes.find('\'') != std::string::npos && !both ? '"' : '\'';
  const bool tainted = !text.untrusted.empty();
  out.append(std::string_view(&quote, 1), tainted);
  append_escaped(out, text, [quote](char32_t c) -> std::string {
    if (c == static_cast<char32_t>(quote) || c == '\\') return {'\\', static_cast<char>(c)};
    if (c >= 0x20 && c < 0x7F) return {};
    if (c == '\n') return "\\n";
    if (c == '\r') return "\\r";
    if (c == '\t') return "\\t";
    if (c >= 0x80 && is_printable(c)) return {};
    const auto value = static_cast<uint32_t>(c);
    if (value < 0x100) return fmt::format("\\x{:02x}", value);
    return value < 0x10000 ? fmt::format("\\u{:04x}", value) : fmt::format("\\U{:08x}", value);
  });
  out.append(std::string_view(&quote, 1), tainted);
}

void append_json(TextBuilder& out, const Text& text, bool ensure_ascii) {
  const bool tainted = !text.untrusted.empty();
  out.append("\"", tainted);
  append_escaped(out, text, [ensure_ascii](char32_t c) -> std::string {
    if (c == '"' || c == '\\') return {'\\', static_cast<char>(c)};
    if (c >= 0x20 && (c < 0x7F || !ensure_ascii)) return {};
    switch (c) {
      case '\n':
        return "\\n";
      case '\r':
        return "\\r";
      case '\t':
        return "\\t";
      case '\b':
        return "\\b";
      case '\f':
        return "\\f";
      default:
        break;
    }
    const auto value = static_cast<uint32_t>(c);
    if (value < 0x10000) return fmt::format("\\u{:04x}", value);
    const uint32_t rest = value - 0x10000;
    return fmt::format("\\u{:04x}\\u{:04x}", 0xD800 + (rest >> 10U), 0xDC00 + (rest & 0x3FFU));
  });
  out.append("\"", tainted);
}

void append_html(TextBuilder& out, const Text& text) {
  append_escaped(out, text, [](char32_t c) -> std::string {
    switch (c) {
      case '&':
        return "&amp;";
      case '<':
        return "&lt;";
      case '>':
        return "&gt;";
      case '\'':
        return "&#39;";
      case '"':
        return "&#34;";
      default:
        return {};
    }
  });
}

}  // namespace deepinfer::jinja
