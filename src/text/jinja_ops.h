// What values do: Python's operators, item access and iteration. Everything throws Failure.
#pragma once

#include <functional>
#include <optional>
#include <string_view>
#include <vector>

#include "text/jinja_ast.h"
#include "text/jinja_value.h"

namespace deepinfer::jinja {

// Containers inside each other that printing and comparing still follow.
inline constexpr int kMaxNesting = 200;

bool truthy(const Value& v);
bool equal(Heap& heap, const Value& a, const Value& b, int depth = 0);
bool less(Heap& heap, const Value& a, const Value& b, int depth = 0);  // throws for types without an order
bool contains(Heap& heap, const Value& container, const Value& item);
bool compare(Heap& heap, Op op, const Value& a, const Value& b);
Value arithmetic(Heap& heap, Op op, const Value& a, const Value& b);
Value unary(Op op, const Value& a);
void check_hashable(const Value& key);  // of a dict

std::optional<size_t> length_of(const Value& v);  // nothing for what has no len()
size_t require_length(const Value& v);

// Walks what can be iterated. Keeps a reference to the value.
class Cursor {
 public:
  Cursor(Heap& heap, Value iterable);  // throws for what cannot be iterated
  bool next(Value& out);

 private:
  Heap* heap_;
  Value value_;
  size_t at_ = 0;
};
bool is_iterable(const Value& v);
std::vector<Value> collect(Heap& heap, const Value& iterable);

Value item_of(Heap& heap, const Value& object, const Value& key);  // object[key]
Value slice_of(Heap& heap, const Value& object, const Value& start, const Value& stop, const Value& step);
Value attribute_of(Heap& heap, const Value& object, const TextPtr& name);  // object.name

// jinja_print.cpp
Value to_string(Heap& heap, const Value& v);  // str(v); strings as they are
void print(TextBuilder& out, const Value& v);
void print_repr(TextBuilder& out, const Value& v, int depth = 0);
std::string repr_of_float(double value);
Value escape_html(Heap& heap, const Value& v);  // gives markup

struct JsonOptions {
  bool ensure_ascii = false;
  bool sort_keys = false;
  std::optional<TextPtr> indent;
  TextPtr item_separator, key_separator;
};
void print_json(TextBuilder& out, Heap& heap, const Value& v, const JsonOptions& options);

// jinja_format.cpp
Value format_percent(Heap& heap, const Value& format, const Value& args);
Value format_braces(Heap& heap, const Value& format, const std::vector<Value>& args,
                    const std::vector<std::pair<TextPtr, Value>>& keywords);

}  // namespace deepinfer::jinja
