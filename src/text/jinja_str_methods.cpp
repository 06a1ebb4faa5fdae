#include "text/jinja_str_methods.h"

#include <fmt/format.h>

#include <algorithm>

namespace deepinfer::jinja {
namespace {

template <CaseMap map>
Value case_method(Heap& heap, const Value& self, const CallArgs& call) {
  const BoundArgs args("str.upper", call, {});
  return mapped_case(heap, self, map);
}

template <Side side>
Value strip_method(Heap& heap, const Value& self, const CallArgs& call) {
  const BoundArgs args("strip", call, {"chars"});
  if (args.has(0) && args[0].is_undefined()) fail_undefined(args[0]);
  return strip(heap, self, args[0], side);
}

// Bounds of find, count, startswith as bytes; nothing when start lies behind the end.
struct Window {
  size_t begin = 0, end = 0;
  bool valid = true;
};

Window window(const Value& self, const BoundArgs& args, size_t first) {
  const Text& text = *self.text;
  const auto size = static_cast<Int>(count_code_points(text));
  const auto bound = [&](size_t i, Int fallback) {
    if (!args.has(i) || args[i].is_none()) return fallback;
    const Int v = args.integer(i, fallback);
    return v < 0 ? std::max(v + size, Int{0}) : v;
  };
  const Int start = bound(first, 0);
  const Int stop = std::min(bound(first + 1, size), size);
  if (start > stop) return {0, 0, false};
  return {byte_offset(text, static_cast<size_t>(start)), byte_offset(text, static_cast<size_t>(stop)), true};
}

Int code_point_index(const Text& text, size_t byte) {
  if (text.ascii) return static_cast<Int>(byte);
  Int index = 0;
  for (size_t at = 0; at < byte; at += decode_utf8(text.bytes, at).size) ++index;
  return index;
}

template <bool from_right>
Int find_in(Heap& heap, const Value& self, const CallArgs& call) {
  const BoundArgs args("find", call, {"sub", "start", "end"}, 1);
  const Text& sub = require_string(args[0], "find");
  heap.copy_cost(self.bytes().size());
  const Window w = window(self, args, 1);
  if (!w.valid) return -1;
  const std::string_view in = std::string_view(self.bytes()).substr(w.begin, w.end - w.begin);
  const size_t found = from_right ? in.rfind(sub.bytes) : in.find(sub.bytes);
  return found == std::string_view::npos ? -1 : code_point_index(*self.text, w.begin + found);
}

template <bool from_right>
Value find_method(Heap& heap, const Value& self, const CallArgs& call) {
  return Value::integer(find_in<from_right>(heap, self, call));
}

template <bool from_right>
Value index_method(Heap& heap, const Value& self, const CallArgs& call) {
  const Int at = find_in<from_right>(heap, self, call);
  if (at < 0) fail("substring not found");
  return Value::integer(at);
}

Value count_method(Heap& heap, const Value& self, const CallArgs& call) {
  const BoundArgs args("count", call, {"sub", "start", "end"}, 1);
  const Text& sub = require_string(args[0], "count");
  heap.copy_cost(self.bytes().size());
  const Window w = window(self, args, 1);
  if (!w.valid) return Value::integer(0);
  const std::string_view in = std::string_view(self.bytes()).substr(w.begin, w.end - w.begin);
  Int count = 0;
  if (sub.bytes.empty()) {
    for (size_t at = 0; at < in.size(); at += decode_utf8(in, at).size) ++count;
    return Value::integer(count + 1);
  }
  for (size_t at = in.find(sub.bytes); at != std::string_view::npos;
       at = in.find(sub.bytes, at + sub.bytes.size())) {
    ++count;
  }
  return Value::integer(count);
}

template <bool at_end>
Value affix_method(Heap&, const Value& self, const CallArgs& call) {
  const BoundArgs args(at_end ? "endswith" : "startswith", call, {"affix", "start", "end"}, 1);
  const Window w = window(self, args, 1);
  const std::string_view in = std::string_view(self.bytes()).substr(w.begin, w.end - w.begin);
  const auto matches = [&](const Value& v) {
    const std::string& affix = require_string(v, at_end ? "endswith" : "startswith").bytes;
    return w.valid && (at_end ? in.ends_with(affix) : in.starts_with(affix));
  };
  if (args[0].kind == Kind::kTuple)
    return Value::boolean(std::ranges::any_of(as_list(args[0]).items, matches));
  return Value::boolean(matches(args[0]));
}

// Words between whitespace; from the right when a maximum counts from there.
std::vector<Value> split_words(Heap& heap, const Value& s, Int maximum, bool from_right) {
  const std::string& bytes = s.bytes();
  std::vector<Value> out;
  if (!from_right) {
    for (size_t at = 0;;) {
      while (at < bytes.size() && is_space(decode_utf8(bytes, at).value)) at += decode_utf8(bytes, at).size;
      if (at >= bytes.size()) return out;
      if (static_cast<Int>(out.size()) >= maximum) {
        out.push_back(heap.slice(s, at, bytes.size()));
        return out;
      }
      const size_t begin = at;
      while (at < bytes.size() && !is_space(decode_utf8(bytes, at).value)) at += decode_utf8(bytes, at).size;
      out.push_back(heap.slice(s, begin, at));
    }
  }
  const auto space_before = [&](size_t end) {
    return is_space(decode_utf8(bytes, previous_code_point(bytes, end)).value);
  };
  for (size_t end = bytes.size();;) {
    while (end > 0 && space_before(end)) end = previous_code_point(bytes, end);
    if (end == 0) break;
    if (static_cast<Int>(out.size()) >= maximum) {
      out.push_back(heap.slice(s, 0, end));
      break;
    }
    size_t begin = end;
    while (begin > 0 && !space_before(begin)) begin = previous_code_point(bytes, begin);
    out.push_back(heap.slice(s, begin, end));
    end = begin;
  }
  std::ranges::reverse(out);
  return out;
}

std::vector<Value> split_at(Heap& heap, const Value& s, const std::string& separator, Int maximum,
                            bool from_right) {
  const std::string& bytes = s.bytes();
  std::vector<Value> out;
  if (!from_right) {
    size_t begin = 0;
    while (static_cast<Int>(out.size()) < maximum) {
      const size_t found = bytes.find(separator, begin);
      if (found == std::string::npos) break;
      out.push_back(heap.slice(s, begin, found));
      begin = found + separator.size();
    }
    out.push_back(heap.slice(s, begin, bytes.size()));
    return out;
  }
  size_t end = bytes.size();
  while (static_cast<Int>(out.size()) < maximum && end >= separator.size()) {
    const size_t found = bytes.rfind(separator, end - separator.size());
    if (found == std::string::npos) break;
    out.push_back(heap.slice(s, found + separator.size(), end));
    end = found;
  }
  out.push_back(heap.slice(s, 0, end));
  std::ranges::reverse(out);
  return out;
}

template <bool from_right>
Value split_method(Heap& heap, const Value& self, const CallArgs& call) {
  const BoundArgs args("split", call, {"sep", "maxsplit"});
  Int maximum = args.integer(1, -1);
  if (maximum < 0) maximum = Int{1} << 62;
  heap.copy_cost(self.bytes().size());
  if (!args.has(0) || args[0].is_none()) return heap.list(split_words(heap, self, maximum, from_right));
  const std::string& separator = require_string(args[0], "split").bytes;
  if (separator.empty()) fail("empty separator");
  return heap.list(split_at(heap, self, separator, maximum, from_right));
}

Value splitlines_method(Heap& heap, const Value& self, const CallArgs& call) {
  const BoundArgs args("splitlines", call, {"keepends"});
  return heap.list(split_lines(heap, self, args.flag(0)));
}

template <bool from_right>
Value partition_method(Heap& heap, const Value& self, const CallArgs& call) {
  const BoundArgs args("partition", call, {"sep"}, 1);
  const std::string& separator = require_string(args[0], "partition").bytes;
  if (separator.empty()) fail("empty separator");
  const std::string& bytes = self.bytes();
  const size_t found = from_right ? bytes.rfind(separator) : bytes.find(separator);
  const Value empty = heap.text("", false);
  if (found == std::string::npos) {
    return heap.list(from_right ? std::vector{empty, empty, self} : std::vector{self, empty, empty},
                     Kind::kTuple);
  }
  const size_t after = found + separator.size();
  return heap.list({heap.slice(self, 0, found), args[0], heap.slice(self, after, bytes.size())},
                   Kind::kTuple);
}

Value replace_method(Heap& heap, const Value& self, const CallArgs& call) {
  const BoundArgs args("replace", call, {"old", "new", "count"}, 2);
  return replace(heap, self, require_string(args[0], "replace"), require_string(args[1], "replace"),
                 args.integer(2, -1));
}

Value join_method(Heap& heap, const Value& self, const CallArgs& call) {
  const BoundArgs args("join", call, {"iterable"}, 1);
  const std::vector<Value> items = collect(heap, args[0]);
  for (size_t i = 0; i < items.size(); ++i) {
    if (!items[i].is_string()) {
      fail(fmt::format("sequence item {}: expected str instance, {} found", i, type_name(items[i])));
    }
  }
  return join(heap, *self.text, items);
}

template <bool suffix>
Value remove_affix(Heap& heap, const Value& self, const CallArgs& call) {
  const BoundArgs args("removeprefix", call, {"affix"}, 1);
  const std::string& affix = require_string(args[0], "removeprefix").bytes;
  const std::string& bytes = self.bytes();
  if (suffix) return bytes.ends_with(affix) ? heap.slice(self, 0, bytes.size() - affix.size()) : self;
  return bytes.starts_with(affix) ? heap.slice(self, affix.size(), bytes.size()) : self;
}

enum class Fill : uint8_t { kLeft, kRight, kCenter, kZero };

template <Fill mode>
Value fill_method(Heap& heap, const Value& self, const CallArgs& call) {
  const BoundArgs args("ljust", call, {"width", "fillchar"}, 1);
  const auto size = static_cast<Int>(count_code_points(*self.text));
  const Int missing = args.integer(0, 0) - size;
  if (missing <= 0) return self;
  if (missing > static_cast<Int>(TextBuilder::kMaxBytes)) fail("the width is larger than a string may be");
  const Text space = [] {
    Text t;
    t.bytes = mode == Fill::kZero ? "0" : " ";
    return t;
  }();
  const Text& fill = args.has(1) ? require_string(args[1], "ljust") : space;
  const bool odd = (missing & (size + missing) & 1) != 0;
  const Int left = mode == Fill::kLeft ? 0 : mode == Fill::kCenter ? missing / 2 + (odd ? 1 : 0) : missing;
  heap.copy_cost(static_cast<size_t>(missing));
  TextBuilder builder;
  const bool sign = mode == Fill::kZero && (self.bytes().starts_with('-') || self.bytes().starts_with('+'));
  if (sign) builder.append(*self.text, 0, 1);
  for (Int i = 0; i < left; ++i) builder.append(fill);
  builder.append(*self.text, sign ? 1 : 0, self.bytes().size());
  for (Int i = left; i < missing; ++i) builder.append(fill);
  return heap.text(builder);
}

template <bool (*accept)(char32_t)>
Value all_method(Heap& heap, const Value& self, const CallArgs& call) {
  const BoundArgs args("isdigit", call, {});
  heap.copy_cost(self.bytes().size());
  for (size_t at = 0; at < self.bytes().size();) {
    const CodePoint c = decode_utf8(self.bytes(), at);
    if (!accept(c.value)) return Value::boolean(false);
    at += c.size;
  }
  return Value::boolean(!self.bytes().empty());
}

bool is_alphanumeric(char32_t c) {
  return is_alpha(c) || is_decimal(c);
}

Value is_ascii_method(Heap&, const Value& self, const CallArgs& call) {
  const BoundArgs args("isascii", call, {});
  return Value::boolean(self.text->ascii);
}

template <bool upper>
Value is_case_method(Heap& heap, const Value& self, const CallArgs& call) {
  const BoundArgs args("isupper", call, {});
  return Value::boolean(has_case(heap, self, upper));
}

Value format_method(Heap& heap, const Value& self, const CallArgs& call) {
  return format_braces(heap, self, call.args, call.keywords);
}

constexpr MethodEntry kMethods[] = {
    {Kind::kString, "upper", case_method<CaseMap::kUpper>},
    {Kind::kString, "lower", case_method<CaseMap::kLower>},
    {Kind::kString, "title", case_method<CaseMap::kTitle>},
    {Kind::kString, "capitalize", case_method<CaseMap::kCapitalize>},
    {Kind::kString, "swapcase", case_method<CaseMap::kSwap>},
    {Kind::kString, "casefold", case_method<CaseMap::kFold>},
    {Kind::kString, "strip", strip_method<Side::kBoth>},
    {Kind::kString, "lstrip", strip_method<Side::kLeft>},
    {Kind::kString, "rstrip", strip_method<Side::kRight>},
    {Kind::kString, "find", find_method<false>},
    {Kind::kString, "rfind", find_method<true>},
    {Kind::kString, "index", index_method<false>},
    {Kind::kString, "rindex", index_method<true>},
    {Kind::kString, "count", count_method},
    {Kind::kString, "startswith", affix_method<false>},
    {Kind::kString, "endswith", affix_method<true>},
    {Kind::kString, "split", split_method<false>},
    {Kind::kString, "rsplit", split_method<true>},
    {Kind::kString, "splitlines", splitlines_method},
    {Kind::kString, "partition", partition_method<false>},
    {Kind::kString, "rpartition", partition_method<true>},
    {Kind::kString, "replace", replace_method},
    {Kind::kString, "join", join_method},
    {Kind::kString, "removeprefix", remove_affix<false>},
    {Kind::kString, "removesuffix", remove_affix<true>},
    {Kind::kString, "ljust", fill_method<Fill::kLeft>},
    {Kind::kString, "rjust", fill_method<Fill::kRight>},
    {Kind::kString, "center", fill_method<Fill::kCenter>},
    {Kind::kString, "zfill", fill_method<Fill::kZero>},
    {Kind::kString, "isdigit", all_method<is_decimal>},
    {Kind::kString, "isdecimal", all_method<is_decimal>},
    {Kind::kString, "isnumeric", all_method<is_decimal>},
    {Kind::kString, "isalpha", all_method<is_alpha>},
    {Kind::kString, "isalnum", all_method<is_alphanumeric>},
    {Kind::kString, "isspace", all_method<is_space>},
    {Kind::kString, "isascii", is_ascii_method},
    {Kind::kString, "isupper", is_case_method<true>},
    {Kind::kString, "islower", is_case_method<false>},
    {Kind::kString, "format", format_method},
};

}  // namespace

const MethodEntry* find_string_method(std::string_view name) {
  const auto* found = std::ranges::find_if(kMethods, [&](const auto& m) { return m.name == name; });
  return found == std::end(kMethods) ? nullptr : found;
}

// str.isupper and str.islower: some cased character, and none of the other case.
bool has_case(Heap& heap, const Value& s, bool upper) {
  heap.copy_cost(s.bytes().size());
  bool found = false;
  for (size_t at = 0; at < s.bytes().size();) {
    const CodePoint c = decode_utf8(s.bytes(), at);
    if (upper ? is_lower(c.value) : is_upper(c.value)) return false;
    found = found || (upper ? is_upper(c.value) : is_lower(c.value));
    at += c.size;
  }
  return found;
}

}  // namespace deepinfer::jinja
