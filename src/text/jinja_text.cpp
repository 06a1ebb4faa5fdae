#include "text/jinja_text.h"

#include <utf8proc.h>

#include <algorithm>
#include <utility>

#include "text/jinja_value.h"

namespace deepinfer::jinja {

void TextBuilder::make_room(size_t bytes) const {
  if (bytes > kMaxBytes - text_.bytes.size()) {
    fail_budget(
        "the chat template builds a string of more than 64 MiB: shorten the messages or the template");
  }
}

void TextBuilder::mark(size_t begin, size_t end) {
  if (begin == end) return;
  auto& ranges = text_.untrusted;
  if (!ranges.empty() && ranges.back().end == begin) {
    ranges.back().end = end;
  } else {
    ranges.push_back({begin, end});
  }
}

void TextBuilder::append(std::string_view bytes, bool untrusted) {
  make_room(bytes.size());
  const size_t at = text_.bytes.size();
  text_.bytes.append(bytes);
  text_.ascii = text_.ascii && is_ascii(bytes);
  if (untrusted) mark(at, text_.bytes.size());
}

void TextBuilder::append(const Text& text, size_t begin, size_t end) {
  make_room(end - begin);
  const size_t at = text_.bytes.size();
  const std::string_view piece = std::string_view(text.bytes).substr(begin, end - begin);
  text_.bytes.append(piece);
  text_.ascii = text_.ascii && (text.ascii || is_ascii(piece));
  auto range = std::upper_bound(text.untrusted.begin(), text.untrusted.end(), begin,
                                [](size_t value, const TextRange& r) { return value < r.end; });
  for (; range != text.untrusted.end() && range->begin < end; ++range) {
    mark(at + std::max(range->begin, begin) - begin, at + std::min(range->end, end) - begin);
  }
}

Text TextBuilder::take() {
  Text out;
  std::swap(out.bytes, text_.bytes);
  std::swap(out.untrusted, text_.untrusted);
  out.ascii = std::exchange(text_.ascii, true);
  return out;
}

bool is_ascii(std::string_view bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

TextPtr constant_text(std::string_view bytes) {
  auto text = std::make_shared<Text>();
  text->bytes = bytes;
  text->ascii = is_ascii(bytes);
  return text;
}

CodePoint decode_utf8(std::string_view bytes, size_t at) {
  const auto first = static_cast<unsigned char>(bytes[at]);
  if (first < 0x80) return {first, 1};
  utf8proc_int32_t value = 0;
  const auto* data = reinterpret_cast<const utf8proc_uint8_t*>(bytes.data()) + at;
  const auto size = utf8proc_iterate(data, static_cast<utf8proc_ssize_t>(bytes.size() - at), &value);
  if (size <= 0) return {0xFFFD, 1};
  return {static_cast<char32_t>(value), static_cast<uint32_t>(size)};
}

void append_utf8(std::string& out, char32_t value) {
  utf8proc_uint8_t buffer[4];
  const auto size = utf8proc_encode_char(static_cast<utf8proc_int32_t>(value), buffer);
  out.append(reinterpret_cast<const char*>(buffer), static_cast<size_t>(size));
}

size_t previous_code_point(std::string_view bytes, size_t end) {
  for (size_t back = 1; back <= 4 && back <= end; ++back) {
    const auto byte = static_cast<unsigned char>(bytes[end - back]);
    if ((byte & 0xC0U) == 0x80U) continue;
    return decode_utf8(bytes, end - back).size == back ? end - back : end - 1;
  }
  return end - 1;
}

size_t count_code_points(const Text& text) {
  if (text.ascii) return text.bytes.size();
  size_t count = 0;
  for (size_t at = 0; at < text.bytes.size(); at += decode_utf8(text.bytes, at).size) ++count;
  return count;
}

size_t byte_offset(const Text& text, size_t index) {
  if (text.ascii) return std::min(index, text.bytes.size());
  size_t at = 0;
  while (index > 0 && at < text.bytes.size()) {
    at += decode_utf8(text.bytes, at).size;
    --index;
  }
  return at;
}

bool is_space(char32_t c) {
  if (c < 0x80) return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20);
  return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 ||
         c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool is_line_break(char32_t c) {
  return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

namespace {

utf8proc_category_t category(char32_t c) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(c));
}

}  // namespace

bool is_alpha(char32_t c) {
  const auto k = category(c);
  return k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_LO;
}

bool is_decimal(char32_t c) {
  return category(c) == UTF8PROC_CATEGORY_ND;
}

bool is_identifier_start(char32_t c) {
  return c == '_' || is_alpha(c) || category(c) == UTF8PROC_CATEGORY_NL;
}

bool is_identifier_part(char32_t c) {
  const auto k = category(c);
  return is_identifier_start(c) || k == UTF8PROC_CATEGORY_ND || k == UTF8PROC_CATEGORY_MN ||
         k == UTF8PROC_CATEGORY_MC || k == UTF8PROC_CATEGORY_PC;
}

bool is_upper(char32_t c) {
  return utf8proc_isupper(static_cast<utf8proc_int32_t>(c)) != 0;
}

bool is_lower(char32_t c) {
  return utf8proc_islower(static_cast<utf8proc_int32_t>(c)) != 0;
}

bool is_printable(char32_t c) {
  if (c == ' ') return true;
  const auto k = category(c);
  return !(k == UTF8PROC_CATEGORY_CN || (k >= UTF8PROC_CATEGORY_ZS && k <= UTF8PROC_CATEGORY_CO));
}

namespace {

// The mappings of SpecialCasing that change the number of characters, as far as they do not depend on
// context.
void append_upper(std::string& out, char32_t c, bool title) {
  if (c == 0xDF) {
    out += title ? "Ss" : "SS";
  } else if (c >= 0xFB00 && c <= 0xFB06) {
    static constexpr const char* kUpper[] = {"FF", "FI", "FL", "FFI", "FFL", "ST", "ST"};
    static constexpr const char* kTitle[] = {"Ff", "Fi", "Fl", "Ffi", "Ffl", "St", "St"};
    out += (title ? kTitle : kUpper)[c - 0xFB00];
  } else if (c == 0x149) {
    out += "\xCA\xBCN";
  } else {
    const auto code = static_cast<utf8proc_int32_t>(c);
    append_utf8(out, static_cast<char32_t>(title ? utf8proc_totitle(code) : utf8proc_toupper(code)));
  }
}

bool is_cased(char32_t c) {
  return is_upper(c) || is_lower(c) || category(c) == UTF8PROC_CATEGORY_LT;
}

// Greek sigma is the one letter whose lower case depends on what stands around it.
bool is_final_sigma(std::string_view bytes, size_t at, size_t size) {
  const auto skipped = [](char32_t c) {
    const auto k = category(c);
    return c == '\'' || c == '.' || c == ':' || c == 0xB7 || c == 0x2019 || k == UTF8PROC_CATEGORY_MN ||
           k == UTF8PROC_CATEGORY_ME || k == UTF8PROC_CATEGORY_CF || k == UTF8PROC_CATEGORY_LM ||
           k == UTF8PROC_CATEGORY_SK;
  };
  bool cased_before = false;
  for (size_t end = at; end > 0;) {
    end = previous_code_point(bytes, end);
    const char32_t c = decode_utf8(bytes, end).value;
    if (skipped(c)) continue;
    cased_before = is_cased(c);
    break;
  }
  if (!cased_before) return false;
  for (size_t next = at + size; next < bytes.size();) {
    const CodePoint c = decode_utf8(bytes, next);
    if (!skipped(c.value)) return !is_cased(c.value);
    next += c.size;
  }
  return true;
}

void append_lower(std::string& out, std::string_view bytes, size_t at, CodePoint c, bool fold) {
  if (c.value == 0x130) {
    out += "i\xCC\x87";
  } else if (fold && c.value == 0x3C2) {
    append_utf8(out, 0x3C3);
  } else if (!fold && c.value == 0x3A3 && is_final_sigma(bytes, at, c.size)) {
    append_utf8(out, 0x3C2);
  } else {
    append_utf8(out, static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c.value))));
  }
}

}  // namespace

std::string map_case(std::string_view bytes, CaseMap map) {
  std::string out;
  out.reserve(bytes.size());
  bool in_word = false;
  for (size_t at = 0; at < bytes.size();) {
    const CodePoint c = decode_utf8(bytes, at);
    const bool valid = c.value != 0xFFFD || c.size != 1;
    if (!valid) {
      out += bytes[at];
    } else if (map == CaseMap::kUpper || (map == CaseMap::kSwap && is_lower(c.value))) {
      append_upper(out, c.value, false);
    } else if (map == CaseMap::kFold && c.value == 0xDF) {
      out += "ss";
    } else if (map == CaseMap::kCapitalize || map == CaseMap::kTitle) {
      const bool first = map == CaseMap::kCapitalize ? at == 0 : !in_word;
      first ? append_upper(out, c.value, true) : append_lower(out, bytes, at, c, false);
    } else if (map == CaseMap::kSwap && !is_upper(c.value)) {
      append_utf8(out, c.value);
    } else {
      append_lower(out, bytes, at, c, map == CaseMap::kFold);
    }
    in_word = is_cased(c.value);
    at += c.size;
  }
  return out;
}

}  // namespace deepinfer::jinja
