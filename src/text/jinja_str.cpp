// The string algorithms behind methods and filters. They keep the origin of each byte where the result is
// made of pieces of the operands; elsewhere one untrusted byte makes the whole result untrusted.
#include <fmt/format.h>

#include <algorithm>

#include "text/jinja_builtins.h"

namespace deepinfer::jinja {

const Text& require_string(const Value& v, const char* what) {
  if (v.is_undefined()) fail_undefined(v);
  if (!v.is_string()) fail(fmt::format("{}: expected a string, got {}", what, type_name(v)));
  return *v.text;
}

namespace {

std::vector<char32_t> code_points(const Text& text) {
  std::vector<char32_t> out;
  for (size_t at = 0; at < text.bytes.size();) {
    const CodePoint c = decode_utf8(text.bytes, at);
    out.push_back(c.value);
    at += c.size;
  }
  return out;
}

}  // namespace

Value strip(Heap& heap, const Value& s, const Value& chars, Side side) {
  const std::string& bytes = s.bytes();
  std::vector<char32_t> set;
  const bool spaces = chars.is_none() || chars.is_undefined();
  if (!spaces) set = code_points(require_string(chars, "strip"));
  heap.copy_cost(set.size());
  const auto drop = [&](char32_t c) { return spaces ? is_space(c) : std::ranges::find(set, c) != set.end(); };
  size_t begin = 0;
  size_t end = bytes.size();
  while (side != Side::kRight && begin < end) {
    const CodePoint c = decode_utf8(bytes, begin);
    if (!drop(c.value)) break;
    begin += c.size;
  }
  while (side != Side::kLeft && end > begin) {
    const size_t at = previous_code_point(bytes, end);
    if (!drop(decode_utf8(bytes, at).value)) break;
    end = at;
  }
  return heap.slice(s, begin, std::max(begin, end));
}

Value mapped_case(Heap& heap, const Value& s, CaseMap map) {
  const Text& from = *s.text;
  heap.copy_cost(from.bytes.size());
  const std::string mapped = map_case(from.bytes, map);
  TextBuilder builder;
  if (from.ascii) {  // the same length, so each byte keeps its origin
    Text same;
    same.bytes = mapped;
    same.untrusted = from.untrusted;
    builder.append(same);
  } else {
    builder.append(mapped, !from.untrusted.empty());
  }
  Value out = heap.text(builder);
  out.markup = s.markup;
  return out;
}

Value replace(Heap& heap, const Value& s, const Text& from, const Text& to, Int count) {
  const Text& text = *s.text;
  heap.copy_cost(text.bytes.size());
  TextBuilder builder;
  size_t copied = 0;
  Int left = count < 0 ? static_cast<Int>(text.bytes.size()) + 1 : count;
  if (from.bytes.empty()) {
    for (size_t at = 0; left > 0; --left) {
      heap.step();
      builder.append(text, copied, at);
      builder.append(to);
      copied = at;
      if (at >= text.bytes.size()) break;
      at += decode_utf8(text.bytes, at).size;
    }
  } else {
    for (; left > 0; --left) {
      const size_t found = text.bytes.find(from.bytes, copied);
      if (found == std::string::npos) break;
      heap.step();
      builder.append(text, copied, found);
      builder.append(to);
      copied = found + from.bytes.size();
    }
  }
  builder.append(text, copied, text.bytes.size());
  Value out = heap.text(builder);
  out.markup = s.markup;
  return out;
}

Value join(Heap& heap, const Text& separator, const std::vector<Value>& strings) {
  TextBuilder builder;
  for (size_t i = 0; i < strings.size(); ++i) {
    if (i > 0) builder.append(separator);
    builder.append(*strings[i].text);
  }
  return heap.text(builder);
}

std::vector<Value> split_lines(Heap& heap, const Value& s, bool keep_ends) {
  const std::string& bytes = s.bytes();
  std::vector<Value> lines;
  size_t begin = 0;
  heap.copy_cost(bytes.size());
  for (size_t at = 0; at < bytes.size();) {
    const CodePoint c = decode_utf8(bytes, at);
    const size_t line_end = at;
    at += c.size;
    if (!is_line_break(c.value)) continue;
    if (c.value == '\r' && at < bytes.size() && bytes[at] == '\n') ++at;
    lines.push_back(heap.slice(s, begin, keep_ends ? at : line_end));
    begin = at;
  }
  if (begin < bytes.size()) lines.push_back(heap.slice(s, begin, bytes.size()));
  return lines;
}

}  // namespace deepinfer::jinja
