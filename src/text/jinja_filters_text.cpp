// Filters that give text.
#include <fmt/format.h>

#include <algorithm>

#include "text/jinja_builtins.h"

namespace deepinfer::jinja {
namespace {

Value strip_filter(Heap& heap, const Value& input, const CallArgs& call) {
  const BoundArgs args("trim", call, {"chars"});
  return strip(heap, to_string(heap, input), args[0], Side::kBoth);
}

template <CaseMap map>
Value case_filter(Heap& heap, const Value& input, const CallArgs& call) {
  const BoundArgs args("upper", call, {});
  return mapped_case(heap, to_string(heap, input), map);
}

// Jinja's own rule: a word begins after whitespace, a dash or an opening bracket.
Value title_filter(Heap& heap, const Value& input, const CallArgs& call) {
  const BoundArgs args("title", call, {});
  const Value s = to_string(heap, input);
  const std::string& bytes = s.bytes();
  const auto is_break = [](char32_t c) {
    return is_space(c) || c == '-' || c == '(' || c == '{' || c == '[' || c == '<';
  };
  std::vector<Value> parts;
  for (size_t at = 0; at < bytes.size();) {
    const size_t begin = at;
    const bool breaks = is_break(decode_utf8(bytes, at).value);
    while (at < bytes.size() && is_break(decode_utf8(bytes, at).value) == breaks)
      at += decode_utf8(bytes, at).size;
    const size_t second = begin + decode_utf8(bytes, begin).size;
    parts.push_back(mapped_case(heap, heap.slice(s, begin, second), CaseMap::kUpper));
    parts.push_back(mapped_case(heap, heap.slice(s, second, at), CaseMap::kLower));
  }
  return join(heap, Text(), parts);
}

Value replace_filter(Heap& heap, const Value& input, const CallArgs& call) {
  const BoundArgs args("replace", call, {"old", "new", "count"}, 2);
  Value s = to_string(heap, input);
  s.markup = false;
  const bool all = !args.has(2) || args[2].is_none();
  const Value from = to_string(heap, args[0]);
  const Value to = to_string(heap, args[1]);
  return replace(heap, s, *from.text, *to.text, all ? -1 : args.integer(2, -1));
}

Value string_filter(Heap& heap, const Value& input, const CallArgs& call) {
  const BoundArgs args("string", call, {});
  return to_string(heap, input);
}

Value safe_filter(Heap& heap, const Value& input, const CallArgs& call) {
  const BoundArgs args("safe", call, {});
  Value out = to_string(heap, input);
  out.markup = true;
  return out;
}

Value escape_filter(Heap& heap, const Value& input, const CallArgs& call) {
  const BoundArgs args("escape", call, {});
  return escape_html(heap, input);
}

Value forceescape_filter(Heap& heap, const Value& input, const CallArgs& call) {
  const BoundArgs args("forceescape", call, {});
  Value plain = to_string(heap, input);
  plain.markup = false;
  return escape_html(heap, plain);
}

TextPtr spaces(Int count) {
  if (count > 4096) fail("indent: expected at most 4096 columns");
  return constant_text(std::string(count < 0 ? 0 : static_cast<size_t>(count), ' '));
}

Value indent_filter(Heap& heap, const Value& input, const CallArgs& call) {
  const BoundArgs args("indent", call, {"width", "first", "blank"});
  require_string(input, "indent");
  const TextPtr indention = args.has(0) && args[0].is_string() ? args[0].text : spaces(args.integer(0, 4));
  const bool blank = args.flag(2);
  TextBuilder with_end;
  with_end.append(*input.text);
  with_end.append("\n");
  const std::vector<Value> lines = split_lines(heap, heap.text(with_end), false);
  TextBuilder builder;
  if (args.flag(1)) builder.append(*indention);
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) {
      builder.append("\n");
      if (blank || !lines[i].bytes().empty()) builder.append(*indention);
    }
    builder.append(*lines[i].text);
  }
  Value out = heap.text(builder);
  out.markup = input.markup;
  return out;
}

Value tojson_filter(Heap& heap, const Value& input, const CallArgs& call) {
  const BoundArgs args("tojson", call, {"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonOptions options;
  options.ensure_ascii = args.flag(0);
  options.sort_keys = args.flag(3);
  if (args.has(1) && !args[1].is_none()) {
    options.indent = args[1].is_string() ? args[1].text : spaces(args.integer(1, 0));
  }
  options.item_separator = constant_text(options.indent ? "," : ", ");
  options.key_separator = constant_text(": ");
  if (args.has(2) && !args[2].is_none()) {
    const std::vector<Value> separators = collect(heap, args[2]);
    if (separators.size() != 2 || !separators[0].is_string() || !separators[1].is_string()) {
      fail("tojson: separators must be a pair of strings");
    }
    options.item_separator = separators[0].text;
    options.key_separator = separators[1].text;
  }
  TextBuilder builder;
  print_json(builder, heap, input, options);
  return heap.text(builder);
}

Value format_filter(Heap& heap, const Value& input, const CallArgs& call) {
  if (!call.args.empty() && !call.keywords.empty()) {
    fail("can't handle positional and keyword arguments at the same time");
  }
  if (call.keywords.empty())
    return format_percent(heap, to_string(heap, input), heap.list(call.args, Kind::kTuple));
  DictObject* dict = heap.dict();
  for (const auto& [name, value] : call.keywords) dict->set(heap, Value::string(name), value);
  return format_percent(heap, to_string(heap, input), Value::of(Kind::kDict, dict));
}

Value truncate_filter(Heap& heap, const Value& input, const CallArgs& call) {
  const BoundArgs args("truncate", call, {"length", "killwords", "end", "leeway"});
  require_string(input, "truncate");
  const TextPtr end = args.has(2)
                          ? heap.slice(args[2], 0, require_string(args[2], "truncate").bytes.size()).text
                          : constant_text("...");
  const Int length = args.integer(0, 255);
  const Int leeway = args.has(3) && !args[3].is_none() ? args.integer(3, 5) : 5;
  const auto end_size = static_cast<Int>(count_code_points(*end));
  if (length < end_size) fail(fmt::format("expected length >= {}, got {}", end_size, length));
  if (leeway < 0) fail(fmt::format("expected leeway >= 0, got {}", leeway));
  if (static_cast<Int>(count_code_points(*input.text)) <= length + leeway) return input;
  size_t cut = byte_offset(*input.text, static_cast<size_t>(length - end_size));
  if (!args.flag(1)) {
    const size_t space = cut == 0 ? std::string::npos : input.bytes().rfind(' ', cut - 1);
    if (space != std::string::npos) cut = space;
  }
  TextBuilder builder;
  builder.append(*input.text, 0, cut);
  builder.append(*end);
  return heap.text(builder);
}

Value wordcount_filter(Heap& heap, const Value& input, const CallArgs& call) {
  const BoundArgs args("wordcount", call, {});
  const Value s = to_string(heap, input);
  Int count = 0;
  bool in_word = false;
  for (size_t at = 0; at < s.bytes().size();) {
    const CodePoint c = decode_utf8(s.bytes(), at);
    const bool word = c.value == '_' || is_alpha(c.value) || is_decimal(c.value);
    count += word && !in_word ? 1 : 0;
    in_word = word;
    at += c.size;
  }
  return Value::integer(count);
}

Value center_filter(Heap& heap, const Value& input, const CallArgs& call) {
  const BoundArgs args("center", call, {"width"});
  CallArgs width;
  width.args.push_back(Value::integer(args.integer(0, 80)));
  return find_method(Kind::kString, "center")->run(heap, to_string(heap, input), width);
}

constexpr FilterEntry kFilters[] = {
    {"tojson", tojson_filter},
    {"trim", strip_filter},
    {"upper", case_filter<CaseMap::kUpper>},
    {"lower", case_filter<CaseMap::kLower>},
    {"capitalize", case_filter<CaseMap::kCapitalize>},
    {"title", title_filter},
    {"replace", replace_filter},
    {"string", string_filter},
    {"safe", safe_filter},
    {"e", escape_filter},
    {"escape", escape_filter},
    {"forceescape", forceescape_filter},
    {"indent", indent_filter},
    {"format", format_filter},
    {"truncate", truncate_filter},
    {"wordcount", wordcount_filter},
    {"center", center_filter},
};

}  // namespace

std::span<const FilterEntry> text_filters() {
  return kFilters;
}

}  // namespace deepinfer::jinja
