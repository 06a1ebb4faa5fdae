#include "text/jinja_format.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace deepinfer::jinja {
namespace {

constexpr Int kMaxWidth = 4096;

}  // namespace

Value repr_value(Heap& heap, const Value& v) {
  TextBuilder builder;
  print_repr(builder, v);
  return heap.text(builder);
}

// A run of digits; nothing of it when there is none.
Int read_format_number(std::string_view s, size_t& at) {
  Int out = 0;
  while (at < s.size() && s[at] >= '0' && s[at] <= '9') {
    out = out * 10 + (s[at++] - '0');
    if (out > kMaxWidth) fail(fmt::format("a format's width or precision: expected at most {}", kMaxWidth));
  }
  return out;
}

namespace {

void group_thousands(std::string& digits) {
  const size_t end = std::min(digits.find_first_not_of("0123456789"), digits.size());
  for (size_t at = end; at > 3; at -= 3) digits.insert(at - 3, ",");
}

std::string format_double(double value, char type, Int precision) {
  const int digits = precision < 0 ? 6 : static_cast<int>(precision);
  switch (type) {
    case 'e':
      return fmt::format("{:.{}e}", value, digits);
    case 'E':
      return fmt::format("{:.{}E}", value, digits);
    case 'g':
      return fmt::format("{:.{}g}", value, digits == 0 ? 1 : digits);
    case 'G':
      return fmt::format("{:.{}G}", value, digits == 0 ? 1 : digits);
    default:
      return fmt::format("{:.{}f}", value, digits);
  }
}

// The digits of a number without sign, in the notation of the type.
std::string digits_of(const Value& v, const FormatSpec& spec) {
  const char type = spec.type;
  const bool real =
      v.kind == Kind::kFloat || std::string_view("eEfFgG%").find(type) != std::string_view::npos;
  if (real && type != '\0') {
    const double value = std::abs(v.number());
    return type == '%' ? format_double(value * 100, 'f', spec.precision) + "%"
                       : format_double(value, type, spec.precision);
  }
  if (v.kind == Kind::kFloat) {
    return spec.precision < 0 ? repr_of_float(std::abs(v.f))
                              : format_double(std::abs(v.f), 'g', spec.precision);
  }
  const Int value = v.integral() < 0 ? -v.integral() : v.integral();
  switch (type) {
    case 'x':
      return fmt::format("{}{:x}", spec.alternate ? "0x" : "", value);
    case 'X':
      return fmt::format("{}{:X}", spec.alternate ? "0X" : "", value);
    case 'o':
      return fmt::format("{}{:o}", spec.alternate ? "0o" : "", value);
    case 'b':
      return fmt::format("{}{:b}", spec.alternate ? "0b" : "", value);
    default:
      return fmt::format("{}", value);
  }
}

void pad(TextBuilder& out, const Text& body, const FormatSpec& spec, char default_align) {
  const auto missing = spec.width - static_cast<Int>(count_code_points(body));
  const char align = spec.align == '\0' ? default_align : spec.align;
  const Int left = missing <= 0 || align == '<' ? 0 : align == '^' ? missing / 2 : missing;
  for (Int i = 0; i < left; ++i) out.append(spec.fill);
  out.append(body);
  for (Int i = left; i < missing; ++i) out.append(spec.fill);
}

}  // namespace

void format_number(TextBuilder& out, const Value& v, const FormatSpec& spec) {
  std::string body = digits_of(v, spec);
  if (spec.comma) group_thousands(body);
  const bool negative = v.kind == Kind::kFloat ? std::signbit(v.f) : v.integral() < 0;
  const std::string sign = negative ? "-" : spec.sign == '-' ? "" : std::string(1, spec.sign);
  TextBuilder text;
  if (spec.align == '=') {
    text.append(sign, v.tainted);
    for (Int i = static_cast<Int>(sign.size() + body.size()); i < spec.width; ++i) text.append(spec.fill);
    text.append(body, v.tainted);
  } else {
    text.append(sign + body, v.tainted);
  }
  pad(out, text.take(), spec, '>');
}

void format_string(Heap& heap, TextBuilder& out, const Value& v, const FormatSpec& spec) {
  Value s = to_string(heap, v);
  if (spec.precision >= 0) s = heap.slice(s, 0, byte_offset(*s.text, static_cast<size_t>(spec.precision)));
  pad(out, *s.text, spec, '<');
}

// [[fill]align][sign][#][0][width][,][.precision][type]
FormatSpec parse_format_spec(std::string_view s) {
  FormatSpec spec;
  const auto is_align = [](char c) { return c == '<' || c == '>' || c == '^' || c == '='; };
  size_t at = 0;
  const size_t first = s.empty() ? 0 : decode_utf8(s, 0).size;
  if (first < s.size() && is_align(s[first])) {
    spec.fill = s.substr(0, first);
    spec.align = s[first];
    at = first + 1;
  } else if (!s.empty() && is_align(s[0])) {
    spec.align = s[at++];
  }
  if (at < s.size() && (s[at] == '+' || s[at] == '-' || s[at] == ' ')) spec.sign = s[at++];
  if (at < s.size() && s[at] == '#') spec.alternate = ++at != 0;
  if (at < s.size() && s[at] == '0') {
    if (spec.align == '\0') {
      spec.fill = "0";
      spec.align = '=';
    }
    ++at;
  }
  spec.width = read_format_number(s, at);
  if (at < s.size() && s[at] == ',') spec.comma = ++at != 0;
  if (at < s.size() && s[at] == '.') spec.precision = read_format_number(s, ++at);
  if (at < s.size()) spec.type = s[at++];
  if (at != s.size()) fail(fmt::format("Invalid format specifier '{}'", s));
  return spec;
}

}  // namespace deepinfer::jinja
