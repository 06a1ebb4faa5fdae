// The tests of `is`.
#include <fmt/format.h>

#include <algorithm>

#include "text/jinja_builtins.h"

namespace deepinfer::jinja {
namespace {

template <bool (*predicate)(const Value&)>
bool simple(Heap&, const Value& v, const CallArgs& call) {
  const BoundArgs args("test", call, {});
  return predicate(v);
}

template <Kind kind>
bool is_kind(const Value& v) {
  return v.kind == kind;
}

bool is_defined(const Value& v) {
  return !v.is_undefined();
}

bool is_number(const Value& v) {
  return v.is_number();
}

bool is_true(const Value& v) {
  return v.kind == Kind::kBool && v.b;
}

bool is_false(const Value& v) {
  return v.kind == Kind::kBool && !v.b;
}

// Whatever has a length and items. An undefined value looks like one, as it does in Python.
bool is_sequence(const Value& v) {
  return v.kind != Kind::kView && length_of(v).has_value();
}

bool is_callable(const Value& v) {
  return v.kind == Kind::kFunction || v.kind == Kind::kMethod || v.kind == Kind::kMacro ||
         v.kind == Kind::kLoop || v.is_undefined();
}

bool is_escaped(const Value& v) {
  return v.is_string() && v.markup;
}

template <int remainder>
bool parity(Heap& heap, const Value& v, const CallArgs& call) {
  const BoundArgs args("odd", call, {});
  const Value rest = arithmetic(heap, Op::kModulo, v, Value::integer(2));
  return equal(heap, rest, Value::integer(remainder));
}

bool divisible(Heap& heap, const Value& v, const CallArgs& call) {
  const BoundArgs args("divisibleby", call, {"num"}, 1);
  return equal(heap, arithmetic(heap, Op::kModulo, v, args[0]), Value::integer(0));
}

template <Op op>
bool compared(Heap& heap, const Value& v, const CallArgs& call) {
  const BoundArgs args("comparison", call, {"other"}, 1);
  return compare(heap, op, v, args[0]);
}

template <bool upper>
bool cased(Heap& heap, const Value& v, const CallArgs& call) {
  const BoundArgs args("upper", call, {});
  return has_case(heap, to_string(heap, v), upper);
}

bool same_as(Heap& heap, const Value& v, const CallArgs& call) {
  const BoundArgs args("sameas", call, {"other"}, 1);
  const Value& other = args[0];
  if (v.kind != other.kind) return false;
  if (v.is_string()) return v.text == other.text;
  if (v.is_number() || v.is_none() || v.is_undefined()) return equal(heap, v, other);
  return v.object == other.object;
}

template <bool filters>
bool exists(Heap&, const Value& v, const CallArgs& call) {
  const BoundArgs args("filter", call, {});
  check_hashable(v);
  if (!v.is_string()) return false;
  return filters ? find_filter(v.bytes()) != nullptr : find_test(v.bytes()) != nullptr;
}

constexpr TestEntry kTests[] = {
    {"defined", simple<is_defined>},
    {"undefined", simple<is_kind<Kind::kUndefined>>},
    {"none", simple<is_kind<Kind::kNone>>},
    {"string", simple<is_kind<Kind::kString>>},
    {"mapping", simple<is_kind<Kind::kDict>>},
    {"sequence", simple<is_sequence>},
    {"iterable", simple<is_iterable>},
    {"number", simple<is_number>},
    {"integer", simple<is_kind<Kind::kInt>>},
    {"float", simple<is_kind<Kind::kFloat>>},
    {"boolean", simple<is_kind<Kind::kBool>>},
    {"true", simple<is_true>},
    {"false", simple<is_false>},
    {"callable", simple<is_callable>},
    {"escaped", simple<is_escaped>},
    {"odd", parity<1>},
    {"even", parity<0>},
    {"divisibleby", divisible},
    {"upper", cased<true>},
    {"lower", cased<false>},
    {"sameas", same_as},
    {"filter", exists<true>},
    {"test", exists<false>},
    {"in", compared<Op::kIn>},
    {"==", compared<Op::kEqual>},
    {"eq", compared<Op::kEqual>},
    {"equalto", compared<Op::kEqual>},
    {"!=", compared<Op::kNotEqual>},
    {"ne", compared<Op::kNotEqual>},
    {">", compared<Op::kGreater>},
    {"gt", compared<Op::kGreater>},
    {"greaterthan", compared<Op::kGreater>},
    {">=", compared<Op::kGreaterEqual>},
    {"ge", compared<Op::kGreaterEqual>},
    {"<", compared<Op::kLess>},
    {"lt", compared<Op::kLess>},
    {"lessthan", compared<Op::kLess>},
    {"<=", compared<Op::kLessEqual>},
    {"le", compared<Op::kLessEqual>},
};

}  // namespace

const TestEntry* find_test(std::string_view name) {
  const auto* found = std::ranges::find_if(kTests, [&](const TestEntry& t) { return t.name == name; });
  return found == std::end(kTests) ? nullptr : found;
}

std::string test_names() {
  std::vector<std::string_view> names;
  for (const TestEntry& t : kTests) names.push_back(t.name);
  return fmt::format("{}", fmt::join(names, ", "));
}

}  // namespace deepinfer::jinja
