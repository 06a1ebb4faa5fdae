// "...".format(values)
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "text/jinja_format.h"

namespace deepinfer::jinja {
namespace {

void format_value(Heap& heap, TextBuilder& out, const Value& v, std::string_view text) {
  if (text.empty()) return print(out, v);
  FormatSpec spec = parse_format_spec(text);
  if (v.is_string()) {
    if ((spec.type != '\0' && spec.type != 's') || spec.align == '=') {
      fail(fmt::format("Unknown format code '{}' for object of type 'str'", spec.type));
    }
    return format_string(heap, out, v, spec);
  }
  if (!v.is_number()) fail(fmt::format("unsupported format string passed to {}.__format__", type_name(v)));
  const std::string_view known = v.kind == Kind::kFloat ? "eEfFgG%" : "bdxXoeEfFgG%";
  if (spec.type != '\0' && known.find(spec.type) == std::string_view::npos) {
    fail(fmt::format("Unknown format code '{}' for object of type '{}'", spec.type, type_name(v)));
  }
  format_number(out, v, spec);
}

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
    const Int number = read_format_number(text, at);
    return at == text.size() && at > 0 ? Value::integer(number) : Value::string(constant_text(text));
  }

  Value first(std::string_view name) {
    size_t digits = 0;
    const Int number = read_format_number(name, digits);
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

Value format_braces(Heap& heap, const Value& format, const std::vector<Value>& args,
                    const std::vector<std::pair<TextPtr, Value>>& keywords) {
  heap.copy_cost(format.bytes().size());
  return BraceFormatter(heap, format, args, keywords).run();
}

}  // namespace deepinfer::jinja
