// "..." % values and "...".format(values): the parts that templates use, with Python's results.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "text/jinja_builtins.h"

namespace deepinfer::jinja {
namespace {

constexpr Int kMaxWidth = 4096;

struct Spec {
  std::string fill = " ";
  char align = '\0';  // < > ^ =
  char sign = '-';    // - + or space
  bool alternate = false;
  bool comma = false;
  Int width = 0;
  Int precision = -1;
  char type = '\0';
};

Value repr_value(Heap& heap, const Value& v) {
  TextBuilder builder;
  print_repr(builder, v);
  return heap.text(builder);
}

// A run of digits; nothing of it when there is none.
Int read_number(std::string_view s, size_t& at) {
  Int out = 0;
  while (at < s.size() && s[at] >= '0' && s[at] <= '9') {
    out = out * 10 + (s[at++] - '0');
    if (out > kMaxWidth) fail(fmt::format("a format's width or precision: expected at most {}", kMaxWidth));
  }
  return out;
}

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
std::string digits_of(const Value& v, const Spec& spec) {
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

void pad(TextBuilder& out, const Text& body, const Spec& spec, char default_align) {
  const auto missing = spec.width - static_cast<Int>(count_code_points(body));
  const char align = spec.align == '\0' ? default_align : spec.align;
  const Int left = missing <= 0 || align == '<' ? 0 : align == '^' ? missing / 2 : missing;
  for (Int i = 0; i < left; ++i) out.append(spec.fill);
  out.append(body);
  for (Int i = left; i < missing; ++i) out.append(spec.fill);
}

void format_number(TextBuilder& out, const Value& v, const Spec& spec) {
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

void format_string(Heap& heap, TextBuilder& out, const Value& v, const Spec& spec) {
  Value s = to_string(heap, v);
  if (spec.precision >= 0) s = heap.slice(s, 0, byte_offset(*s.text, static_cast<size_t>(spec.precision)));
  pad(out, *s.text, spec, '<');
}

// [[fill]align][sign][#][0][width][,][.precision][type]
Spec parse_spec(std::string_view s) {
  Spec spec;
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
  spec.width = read_number(s, at);
  if (at < s.size() && s[at] == ',') spec.comma = ++at != 0;
  if (at < s.size() && s[at] == '.') spec.precision = read_number(s, ++at);
  if (at < s.size()) spec.type = s[at++];
  if (at != s.size()) fail(fmt::format("Invalid format specifier '{}'", s));
  return spec;
}

void format_value(Heap& heap, TextBuilder& out, const Value& v, std::string_view text) {
  if (text.empty()) return print(out, v);
  Spec spec = parse_spec(text);
  if (v.is_string()) {
    if ((spec.type != '\0' && spec.type != 's') || spec.align == '=') {
      fail(fmt::format("Unknown format code '{}' for object of type 'str'", spec.type));
    }
    return format_string(heap, out, v, spec);
  }
  if (!v.is_number()) fail(fmt::format("unsupported format string passed to {}.__format__", type_name(v)));
  if (v.kind == Kind::kBool && spec.type == '\0') return format_string(heap, out, v, spec);
  const std::string_view known = v.kind == Kind::kFloat ? "eEfFgG%" : "bdxXoeEfFgG%";
  if (spec.type != '\0' && known.find(spec.type) == std::string_view::npos) {
    fail(fmt::format("Unknown format code '{}' for object of type '{}'", spec.type, type_name(v)));
  }
  format_number(out, v, spec);
}

class PercentFormatter {
 public:
  PercentFormatter(Heap& heap, const Value& format, const Value& args)
      : heap_(heap), format_(format), args_(args) {}

  Value run() {
    const std::string& s = format_.bytes();
    while (at_ < s.size()) {
      const size_t percent = std::min(s.find('%', at_), s.size());
      out_.append(*format_.text, at_, percent);
      at_ = percent;
      if (at_ < s.size()) directive();
    }
    const bool mapping = args_.kind == Kind::kDict || args_.kind == Kind::kList;
    if (!mapping && next_ < count()) fail("not all arguments converted during string formatting");
    Value out = heap_.text(out_);
    out.markup = format_.markup;
    return out;
  }

 private:
  size_t count() const { return args_.kind == Kind::kTuple ? as_list(args_).items.size() : 1; }

  Value next_argument() {
    if (next_ >= count()) fail("not enough arguments for format string");
    return args_.kind == Kind::kTuple ? as_list(args_).items[next_++] : (++next_, args_);
  }

  Value named_argument() {
    const size_t close = format_.bytes().find(')', at_);
    if (close == std::string::npos) fail("incomplete format key");
    if (args_.kind != Kind::kDict) fail("format requires a mapping");
    const Value key = heap_.slice(format_, at_, close);
    const Value* found = as_dict(args_).find(heap_, key);
    if (found == nullptr) fail(fmt::format("'{}'", key.bytes()));
    at_ = close + 1;
    return *found;
  }

  void flags(Spec& spec) {
    for (const std::string& s = format_.bytes(); at_ < s.size(); ++at_) {
      const char c = s[at_];
      if (c == '-') {
        spec.align = '<';
        spec.fill = " ";
      } else if (c == '0' && spec.align != '<') {
        spec.align = '=';
        spec.fill = "0";
      } else if (c == '+' || (c == ' ' && spec.sign != '+')) {
        spec.sign = c;
      } else if (c == '#') {
        spec.alternate = true;
      } else if (c != '0' && c != ' ') {
        break;
      }
    }
  }

  void directive() {
    const std::string& s = format_.bytes();
    ++at_;
    std::optional<Value> value;
    if (at_ < s.size() && s[at_] == '(') {
      ++at_;
      value = named_argument();
    }
    Spec spec;
    flags(spec);
    spec.width = read_number(s, at_);
    if (at_ < s.size() && s[at_] == '.') spec.precision = read_number(s, ++at_);
    if (at_ >= s.size()) fail("incomplete format");
    spec.type = s[at_++];
    if (spec.type == '%') return out_.append("%");
    if (!value) value = next_argument();
    convert(*value, spec);
  }

  void convert(const Value& v, Spec spec) {
    if (spec.type == 's' || spec.type == 'r') {
      if (spec.align == '=') spec.align = '\0';
      if (spec.align == '\0') spec.align = '>';
      spec.fill = " ";
      Value s = spec.type == 'r' ? repr_value(heap_, v) : v;
      if (format_.markup) s = escape_html(heap_, s);
      return format_string(heap_, out_, s, spec);
    }
    if (std::string_view("diufFeEgGxXo").find(spec.type) == std::string_view::npos) {
      fail(fmt::format("unsupported format character '{}'", spec.type));
    }
    if (v.is_undefined()) fail_undefined(v);
    if (!v.is_number()) {
      fail(fmt::format("%{} format: a real number is required, not {}", spec.type, type_name(v)));
    }
    Value number = v;
    if (std::string_view("diu").find(spec.type) != std::string_view::npos) {
      if (v.kind == Kind::kFloat) {
        if (!(std::abs(v.f) < 1e38)) fail("cannot convert float to integer");
        number = Value::integer(static_cast<Int>(v.f));
        number.tainted = v.tainted;
      }
      spec.type = 'd';
      spec.precision = -1;
    } else if (v.kind == Kind::kFloat && std::string_view("xXo").find(spec.type) != std::string_view::npos) {
      fail(fmt::format("%{} format: an integer is required, not float", spec.type));
    }
    format_number(out_, number, spec);
  }

  Heap& heap_;
  const Value& format_;
  const Value& args_;
  TextBuilder out_;
  size_t at_ = 0;
  size_t next_ = 0;
};

class BraceFormatter {
 public:
  BraceFormatter(Heap& heap, const Value& format, const std::vector<Value>& args,
                 const std::vector<std::pair<TextPtr, Value>>& keywords)
      : heap_(heap), format_(format), args_(args), keywords_(keywords) {}

  Value run() {
    const std::string& s = format_.bytes();
    for (size_t at = 0; at < s.size();) {
      const size_t brace = std::min(s.find_first_of("{}", at), s.size());
      out_.append(*format_.text, at, brace);
      if (brace == s.size()) break;
      if (brace + 1 < s.size() && s[brace + 1] == s[brace]) {
        out_.append(*format_.text, brace, brace + 1);
        at = brace + 2;
        continue;
      }
      if (s[brace] == '}') fail("Single '}' encountered in format string");
      const size_t close = s.find_first_of("{}", brace + 1);
      if (close == std::string::npos) fail("expected '}' before end of string");
      if (s[close] == '{') fail("unsupported: a replacement field inside another one");
      field(std::string_view(s).substr(brace + 1, close - brace - 1));
      at = close + 1;
    }
    Value out = heap_.text(out_);
    out.markup = format_.markup;
    return out;
  }

 private:
  void field(std::string_view text) {
    heap_.step();
    const size_t colon = std::min(text.find(':'), text.size());
    std::string_view name = text.substr(0, colon);
    const std::string_view spec = colon < text.size() ? text.substr(colon + 1) : std::string_view();
    char conversion = '\0';
    if (name.size() >= 2 && name[name.size() - 2] == '!') {
      conversion = name.back();
      name.remove_suffix(2);
    }
    Value v = lookup(name);
    if (conversion == 'r') {
      v = repr_value(heap_, v);
    } else if (conversion == 's') {
      v = to_string(heap_, v);
    } else if (conversion != '\0') {
      fail(fmt::format("Unknown conversion specifier {}", conversion));
    }
    if (format_.markup) v = escape_html(heap_, v);
    format_value(heap_, out_, v, spec);
  }

  Value lookup(std::string_view path) {
    const size_t end = std::min(path.find_first_of(".["), path.size());
    Value v = first(path.substr(0, end));
    for (size_t at = end; at < path.size();) {
      if (path[at] == '.') {
        const size_t stop = std::min(path.find_first_of(".[", at + 1), path.size());
        v = attribute_of(heap_, v, constant_text(path.substr(at + 1, stop - at - 1)));
        at = stop;
      } else {
        const size_t stop = path.find(']', at);
        if (path[at] != '[' || stop == std::string_view::npos) fail("Missing ']' in format string");
        v = item_of(heap_, v, key(path.substr(at + 1, stop - at - 1)));
        at = stop + 1;
      }
    }
    return v;
  }

  static Value key(std::string_view text) {
    size_t at = 0;
    const Int number = read_number(text, at);
    return at == text.size() && at > 0 ? Value::integer(number) : Value::string(constant_text(text));
  }

  Value first(std::string_view name) {
    size_t digits = 0;
    const Int number = read_number(name, digits);
    const bool automatic = name.empty();
    if (automatic || digits == name.size()) {
      if (automatic ? manual_ : automatic_) {
        fail("cannot mix manual field specification and automatic field numbering");
      }
      (automatic ? automatic_ : manual_) = true;
      const Int at = automatic ? next_++ : number;
      if (at >= static_cast<Int>(args_.size())) {
        fail(fmt::format("Replacement index {} out of range for positional args tuple", at));
      }
      return args_[static_cast<size_t>(at)];
    }
    for (const auto& [key, value] : keywords_) {
      if (key->bytes == name) return value;
    }
    fail(fmt::format("'{}'", name));
  }

  Heap& heap_;
  const Value& format_;
  const std::vector<Value>& args_;
  const std::vector<std::pair<TextPtr, Value>>& keywords_;
  TextBuilder out_;
  Int next_ = 0;
  bool automatic_ = false, manual_ = false;
};

}  // namespace

Value format_percent(Heap& heap, const Value& format, const Value& args) {
  heap.copy_cost(format.bytes().size());
  return PercentFormatter(heap, format, args).run();
}

Value format_braces(Heap& heap, const Value& format, const std::vector<Value>& args,
                    const std::vector<std::pair<TextPtr, Value>>& keywords) {
  heap.copy_cost(format.bytes().size());
  return BraceFormatter(heap, format, args, keywords).run();
}

}  // namespace deepinfer::jinja
