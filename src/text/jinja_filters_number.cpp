// Filters over numbers, and the table of all filters.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "text/jinja_builtins.h"

namespace deepinfer::jinja {
namespace {

// int("..."): digits with single underscores between, a sign, whitespace around, a prefix that fits the base.
std::optional<Int> parse_integer(std::string_view s, Int base) {
  const auto digit_of = [](char c) {
    if (c >= '0' && c <= '9') return c - '0';
    const char lower = static_cast<char>(c | 0x20);
    return lower >= 'a' && lower <= 'z' ? lower - 'a' + 10 : 99;
  };
  const bool negative = s.starts_with('-');
  if (negative || s.starts_with('+')) s.remove_prefix(1);
  if (s.size() > 2 && s[0] == '0') {
    const char letter = static_cast<char>(s[1] | 0x20);
    const Int prefix = letter == 'x' ? 16 : letter == 'o' ? 8 : letter == 'b' ? 2 : 0;
    if (prefix != 0 && (base == prefix || base == 0)) {
      base = prefix;
      s.remove_prefix(s[2] == '_' ? 3 : 2);
    }
  }
  if (base == 0) {
    if (s.size() > 1 && s[0] == '0' && s.find_first_not_of("0_") != std::string_view::npos)
      return std::nullopt;
    base = 10;
  }
  Int out = 0;
  bool digit_before = false;
  for (const char c : s) {
    if (c == '_' && digit_before) {
      digit_before = false;
      continue;
    }
    const int digit = digit_of(c);
    if (digit >= base) return std::nullopt;
    if (__builtin_mul_overflow(out, base, &out) || __builtin_add_overflow(out, digit, &out)) {
      fail("integer overflow: the template reads a number of more than 128 bits");
    }
    digit_before = true;
  }
  if (!digit_before) return std::nullopt;
  return negative ? -out : out;
}

std::string stripped(Heap& heap, const Value& v) {
  return strip(heap, v, Value::none(), Side::kBoth).bytes();
}

std::optional<double> parse_float(std::string s) {
  std::string lower = s;
  std::ranges::transform(lower, lower.begin(),
                         [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c | 0x20) : c; });
  const std::string word = lower.substr(lower.starts_with('-') || lower.starts_with('+') ? 1 : 0);
  const bool named = word == "nan" || word == "inf" || word == "infinity";
  if (!named && lower.find_first_not_of("0123456789+-.e_") != std::string::npos) return std::nullopt;
  for (size_t i = 0; i < s.size(); ++i) {
    const auto digit = [&](size_t at) { return at < s.size() && s[at] >= '0' && s[at] <= '9'; };
    if (s[i] == '_' && (i == 0 || !digit(i - 1) || !digit(i + 1))) return std::nullopt;
  }
  std::erase(s, '_');
  if (s.empty()) return std::nullopt;
  char* end = nullptr;
  const double out = std::strtod(s.c_str(), &end);
  if (end != s.c_str() + s.size()) return std::nullopt;
  return out;
}

std::optional<double> float_of(Heap& heap, const Value& v) {
  if (v.is_number()) return v.number();
  return v.is_string() ? parse_float(stripped(heap, v)) : std::nullopt;
}

bool has_taint(const Value& v) {
  return v.tainted || (v.is_string() && !v.text->untrusted.empty());
}

Int truncate(double value) {
  if (std::abs(value) > 1e38) fail("integer overflow: the template computes a number of more than 128 bits");
  return static_cast<Int>(value);
}

Value int_filter(Heap& heap, const Value& input, const CallArgs& call) {
  const BoundArgs args("int", call, {"default", "base"});
  if (input.is_undefined()) fail_undefined(input);
  const Value fallback = args.has(0) ? args[0] : Value::integer(0);
  Value out;
  if (input.kind == Kind::kInt || input.kind == Kind::kBool) {
    out = Value::integer(input.integral());
  } else {
    std::optional<Int> parsed;
    if (input.is_string()) {
      const Int base = args.integer(1, 10);
      if (base == 0 || (base >= 2 && base <= 36)) parsed = parse_integer(stripped(heap, input), base);
    }
    const std::optional<double> real = parsed ? std::nullopt : float_of(heap, input);
    if (!parsed && (!real || !std::isfinite(*real))) return fallback;
    out = Value::integer(parsed ? *parsed : truncate(*real));
  }
  out.tainted = has_taint(input);
  return out;
}

Value float_filter(Heap& heap, const Value& input, const CallArgs& call) {
  const BoundArgs args("float", call, {"default"});
  if (input.is_undefined()) fail_undefined(input);
  const std::optional<double> value = float_of(heap, input);
  if (!value) return args.has(0) ? args[0] : Value::real(0);
  Value out = Value::real(*value);
  out.tainted = has_taint(input);
  return out;
}

void require_number(const Value& v, const char* what) {
  if (v.is_undefined()) fail_undefined(v);
  if (!v.is_number()) fail(fmt::format("{}: expected a number, got {}", what, type_name(v)));
}

Value abs_filter(Heap&, const Value& input, const CallArgs& call) {
  const BoundArgs args("abs", call, {});
  require_number(input, "abs");
  Value out = input.kind == Kind::kFloat ? Value::real(std::abs(input.f))
                                         : unary(input.integral() < 0 ? Op::kNegative : Op::kPositive, input);
  out.tainted = input.tainted;
  return out;
}

// Python's round(): to even, on the exact value of the binary fraction.
Value round_common(const Value& input, Int precision) {
  if (input.is_integral()) {
    if (precision >= 0) return Value::integer(input.integral());
    if (precision < -30) return Value::integer(0);
    Int unit = 1;
    for (Int i = precision; i < 0; ++i) unit *= 10;
    const Int value = input.integral();
    Int rest = value % unit;
    if (rest < 0) rest += unit;
    const Int floor = value - rest;
    const bool up = rest * 2 > unit || (rest * 2 == unit && (floor / unit) % 2 != 0);
    return Value::integer(up ? floor + unit : floor);
  }
  if (!std::isfinite(input.f) || precision > 320) return input;
  if (precision >= 0)
    return Value::real(
        std::strtod(fmt::format("{:.{}f}", input.f, static_cast<int>(precision)).c_str(), nullptr));
  if (precision < -308) return Value::real(std::copysign(0.0, input.f));
  const double unit = std::pow(10.0, static_cast<double>(-precision));
  return Value::real(std::nearbyint(input.f / unit) * unit);
}

Value round_filter(Heap&, const Value& input, const CallArgs& call) {
  const BoundArgs args("round", call, {"precision", "method"});
  const std::string method = !args.has(1) ? "common" : args[1].is_string() ? args[1].bytes() : "";
  if (method != "common" && method != "ceil" && method != "floor")
    fail("method must be common, ceil or floor");
  require_number(input, "round");
  const Int precision = args.integer(0, 0);
  Value out;
  if (method == "common") {
    out = round_common(input, precision);
  } else {
    const double unit = std::pow(10.0, static_cast<double>(precision));
    const double scaled = input.number() * unit;
    out = Value::real((method == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / unit);
  }
  out.tainted = input.tainted;
  return out;
}

Value sum_filter(Heap& heap, const Value& input, const CallArgs& call) {
  const BoundArgs args("sum", call, {"attribute", "start"});
  Value total = args.has(1) ? args[1] : Value::integer(0);
  if (total.is_string()) fail("sum() can't sum strings [use ''.join(seq) instead]");
  std::vector<Value> items;
  if (args.has(0) && !args[0].is_none()) {
    CallArgs attribute;
    attribute.keywords.emplace_back(constant_text("attribute"), args[0]);
    items = collect(heap, find_filter("map")->run(heap, heap.list(collect(heap, input)), attribute));
  } else {
    items = collect(heap, input);
  }
  for (const Value& item : items) total = arithmetic(heap, Op::kAdd, total, item);
  return total;
}

constexpr FilterEntry kFilters[] = {
    {"int", int_filter},     {"float", float_filter}, {"abs", abs_filter},
    {"round", round_filter}, {"sum", sum_filter},
};

constexpr std::string_view kRefused[] = {"filesizeformat", "pprint", "random",   "striptags",
                                         "urlencode",      "urlize", "wordwrap", "xmlattr"};

}  // namespace

std::span<const FilterEntry> number_filters() {
  return kFilters;
}

const FilterEntry* find_filter(std::string_view name) {
  for (const auto& table : {text_filters(), list_filters(), number_filters()}) {
    const auto found = std::ranges::find_if(table, [&](const FilterEntry& f) { return f.name == name; });
    if (found != table.end()) return &*found;
  }
  return nullptr;
}

bool is_refused_filter(std::string_view name) {
  return std::ranges::find(kRefused, name) != std::end(kRefused);
}

std::string filter_names() {
  std::vector<std::string_view> names;
  for (const auto& table : {text_filters(), list_filters(), number_filters()}) {
    for (const FilterEntry& f : table) names.push_back(f.name);
  }
  std::ranges::sort(names);
  return fmt::format("{}", fmt::join(names, ", "));
}

Value apply_filter(Heap& heap, const Value& name, const Value& input, const CallArgs& call) {
  const FilterEntry* filter = find_filter(require_string(name, "map").bytes);
  if (filter == nullptr) fail(fmt::format("No filter named '{}'.", name.bytes()));
  heap.step();
  return filter->run(heap, input, call);
}

}  // namespace deepinfer::jinja
