// What "..." % values and "...".format(values) share: a directive and the padded value it gives.
#pragma once

#include <string>
#include <string_view>

#include "text/jinja_ops.h"

namespace deepinfer::jinja {

struct FormatSpec {
  std::string fill = " ";
  char align = '\0';  // < > ^ =
  char sign = '-';    // - + or space
  bool alternate = false;
  bool comma = false;
  Int width = 0;
  Int precision = -1;
  char type = '\0';
};

Int read_format_number(std::string_view s, size_t& at);  // 0 without digits
FormatSpec parse_format_spec(std::string_view s);  // [[fill]align][sign][#][0][width][,][.precision][type]
void format_number(TextBuilder& out, const Value& v, const FormatSpec& spec);
void format_string(Heap& heap, TextBuilder& out, const Value& v, const FormatSpec& spec);
Value repr_value(Heap& heap, const Value& v);

}  // namespace deepinfer::jinja
