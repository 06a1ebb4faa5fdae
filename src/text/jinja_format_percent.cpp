// "..." % values
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "text/jinja_format.h"

namespace deepinfer::jinja {
namespace {

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

  void flags(FormatSpec& spec) {
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
    FormatSpec spec;
    flags(spec);
    spec.width = read_format_number(s, at_);
    if (at_ < s.size() && s[at_] == '.') spec.precision = read_format_number(s, ++at_);
    if (at_ >= s.size()) fail("incomplete format");
    spec.type = s[at_++];
    if (spec.type == '%') return out_.append("%");
    if (!value) value = next_argument();
    convert(*value, spec);
  }

  void convert(const Value& v, FormatSpec spec) {
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

}  // namespace

Value format_percent(Heap& heap, const Value& format, const Value& args) {
  heap.copy_cost(format.bytes().size());
  return PercentFormatter(heap, format, args).run();
}

}  // namespace deepinfer::jinja
