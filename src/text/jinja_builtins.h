// Filters, tests, methods and global functions: the only names that a template can call.
#pragma once

#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/jinja_ops.h"

namespace deepinfer::jinja {

struct CallArgs {
  std::vector<Value> args;
  std::vector<std::pair<TextPtr, Value>> keywords;
};

// The arguments of one call in the order of the parameters. Throws for unknown, double, missing and surplus
// ones.
class BoundArgs {
 public:
  BoundArgs(const char* function, const CallArgs& call, std::initializer_list<const char*> names,
            size_t required = 0);
  bool has(size_t i) const { return values_[i] != nullptr; }
  const Value& operator[](size_t i) const;  // undefined when it was not given
  bool flag(size_t i, bool fallback = false) const { return has(i) ? truthy(*values_[i]) : fallback; }
  Int integer(size_t i, Int fallback) const;

 private:
  const char* function_;
  std::vector<const Value*> values_;
};

struct FilterEntry {
  std::string_view name;
  Value (*run)(Heap& heap, const Value& input, const CallArgs& call);
};
struct TestEntry {
  std::string_view name;
  bool (*run)(Heap& heap, const Value& input, const CallArgs& call);
};
struct MethodEntry {
  Kind owner;
  std::string_view name;
  Value (*run)(Heap& heap, const Value& self, const CallArgs& call);
};

const FilterEntry* find_filter(std::string_view name);
bool is_refused_filter(std::string_view name);  // Jinja has it, this interpreter does not
std::string filter_names();
const TestEntry* find_test(std::string_view name);
std::string test_names();
const MethodEntry* find_method(Kind owner, std::string_view name);

struct MethodObject : Object {
  Value self;
  const MethodEntry* entry = nullptr;
};

enum class Builtin : uint8_t { kRange, kNamespace, kDict, kRaiseException, kStrftimeNow };
// Undefined when there is no such global.
Value find_builtin(std::string_view name);
Value call_builtin(Heap& heap, Builtin builtin, const CallArgs& call, int64_t now);

// A text of known origin out of a string argument, for messages: fails with `what` when it is none.
const Text& require_string(const Value& v, const char* what);
Value apply_filter(Heap& heap, const Value& name, const Value& input, const CallArgs& call);

// Parts of the filter table, a file each.
std::span<const FilterEntry> text_filters();    // jinja_filters_text.cpp
std::span<const FilterEntry> list_filters();    // jinja_filters_list.cpp
std::span<const FilterEntry> number_filters();  // jinja_filters_number.cpp

// jinja_str.cpp: what methods and filters share.
enum class Side : uint8_t { kLeft, kRight, kBoth };
Value strip(Heap& heap, const Value& s, const Value& chars, Side side);
Value mapped_case(Heap& heap, const Value& s, CaseMap map);
Value replace(Heap& heap, const Value& s, const Text& from, const Text& to, Int count);
Value join(Heap& heap, const Text& separator, const std::vector<Value>& strings);
bool has_case(Heap& heap, const Value& s, bool upper);  // str.isupper, str.islower
std::vector<Value> split_lines(Heap& heap, const Value& s, bool keep_ends);

}  // namespace deepinfer::jinja
