#include "text/jinja_ops.h"

#include <fmt/format.h>

#include <cmath>

namespace deepinfer::jinja {

bool truthy(const Value& v) {
  switch (v.kind) {
    case Kind::kUndefined:
    case Kind::kNone:
      return false;
    case Kind::kBool:
      return v.b;
    case Kind::kInt:
      return v.i != 0;
    case Kind::kFloat:
      return v.f != 0;
    default:
      break;
  }
  const auto length = length_of(v);
  return !length || *length != 0;
}

namespace {

void check_nesting(int depth) {
  if (depth > kMaxNesting) fail(fmt::format("values nested deeper than {} levels", kMaxNesting));
}

bool equal_items(Heap& heap, const std::vector<Value>& a, const std::vector<Value>& b, int depth) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (!equal(heap, a[i], b[i], depth + 1)) return false;
  }
  return true;
}

bool equal_dicts(Heap& heap, const DictObject& a, const DictObject& b, int depth) {
  if (a.items.size() != b.items.size()) return false;
  for (const auto& [key, value] : a.items) {
    const Value* other = b.find(heap, key);
    if (other == nullptr || !equal(heap, value, *other, depth + 1)) return false;
  }
  return true;
}

}  // namespace

bool equal(Heap& heap, const Value& a, const Value& b, int depth) {
  check_nesting(depth);
  heap.step();
  if (a.is_number() && b.is_number()) {
    if (a.kind == Kind::kFloat || b.kind == Kind::kFloat) return a.number() == b.number();
    return a.integral() == b.integral();
  }
  if (a.kind != b.kind) return false;
  switch (a.kind) {
    case Kind::kUndefined:
    case Kind::kNone:
      return true;
    case Kind::kString:
      return a.bytes() == b.bytes();
    case Kind::kList:
    case Kind::kTuple:
      return a.object == b.object || equal_items(heap, as_list(a).items, as_list(b).items, depth);
    case Kind::kDict:
      return a.object == b.object || equal_dicts(heap, as_dict(a), as_dict(b), depth);
    case Kind::kRange: {
      const auto& x = static_cast<const RangeObject&>(*a.object);
      const auto& y = static_cast<const RangeObject&>(*b.object);
      if (x.size() != y.size() || x.size() == 0) return x.size() == y.size();
      return x.start == y.start && (x.size() == 1 || x.step == y.step);
    }
    case Kind::kFunction:
      return a.detail == b.detail;
    default:
      return a.object == b.object;
  }
}

bool less(Heap& heap, const Value& a, const Value& b, int depth) {
  check_nesting(depth);
  heap.step();
  if (a.is_undefined()) fail_undefined(a);
  if (b.is_undefined()) fail_undefined(b);
  if (a.is_number() && b.is_number()) {
    if (a.kind == Kind::kFloat || b.kind == Kind::kFloat) return a.number() < b.number();
    return a.integral() < b.integral();
  }
  if (a.is_string() && b.is_string()) return a.bytes() < b.bytes();  // UTF-8 sorts like code points
  if (a.kind == b.kind && (a.kind == Kind::kList || a.kind == Kind::kTuple)) {
    const auto& x = as_list(a).items;
    const auto& y = as_list(b).items;
    for (size_t i = 0; i < x.size() && i < y.size(); ++i) {
      if (!equal(heap, x[i], y[i], depth + 1)) return less(heap, x[i], y[i], depth + 1);
    }
    return x.size() < y.size();
  }
  fail(fmt::format("'<' not supported between instances of '{}' and '{}'", type_name(a), type_name(b)));
}

bool contains(Heap& heap, const Value& container, const Value& item) {
  if (container.is_string()) {
    if (item.is_undefined()) fail("'in <string>' requires string as left operand, not Undefined");
    if (!item.is_string()) {
      fail(fmt::format("'in <string>' requires string as left operand, not {}", type_name(item)));
    }
    heap.copy_cost(container.bytes().size());
    return container.bytes().find(item.bytes()) != std::string::npos;
  }
  if (container.kind == Kind::kDict) {
    check_hashable(item);
    heap.step(1 + as_dict(container).items.size() / 64);
    return as_dict(container).find(heap, item) != nullptr;
  }
  if (!is_iterable(container)) {
    fail(fmt::format("argument of type '{}' is not iterable", type_name(container)));
  }
  Cursor cursor(heap, container);
  for (Value v; cursor.next(v);) {
    heap.step();
    if (equal(heap, v, item)) return true;
  }
  return false;
}

bool compare(Heap& heap, Op op, const Value& a, const Value& b) {
  switch (op) {
    case Op::kEqual:
      return equal(heap, a, b);
    case Op::kNotEqual:
      return !equal(heap, a, b);
    case Op::kLess:
      return less(heap, a, b);
    case Op::kGreater:
      return less(heap, b, a);
    case Op::kLessEqual:
      return less(heap, a, b) || equal(heap, a, b);
    case Op::kGreaterEqual:
      return less(heap, b, a) || equal(heap, a, b);
    case Op::kIn:
      return contains(heap, b, a);
    default:
      return !contains(heap, b, a);
  }
}

void check_hashable(const Value& key) {
  if (key.kind == Kind::kList || key.kind == Kind::kDict)
    fail(fmt::format("unhashable type: '{}'", type_name(key)));
}

namespace {

const char* symbol(Op op) {
  switch (op) {
    case Op::kAdd:
      return "+";
    case Op::kSubtract:
      return "-";
    case Op::kMultiply:
      return "*";
    case Op::kDivide:
      return "/";
    case Op::kFloorDivide:
      return "//";
    case Op::kModulo:
      return "%";
    default:
      return "** or pow()";
  }
}

[[noreturn]] void fail_operands(Op op, const Value& a, const Value& b) {
  fail(fmt::format("unsupported operand type(s) for {}: '{}' and '{}'", symbol(op), type_name(a),
                   type_name(b)));
}

[[noreturn]] void fail_overflow() {
  fail("integer overflow: the template computes a number of more than 128 bits");
}

Int floor_divide(Int a, Int b) {
  if (b == 0) fail("integer division or modulo by zero");
  const Int quotient = a / b;
  return a % b != 0 && ((a < 0) != (b < 0)) ? quotient - 1 : quotient;
}

Value power(Int base, Int exponent) {
  if (exponent < 0) {
    if (base == 0) fail("0.0 cannot be raised to a negative power");
    return Value::real(std::pow(static_cast<double>(base), static_cast<double>(exponent)));
  }
  Int out = 1;
  for (; exponent != 0; exponent /= 2) {
    if (exponent % 2 != 0 && __builtin_mul_overflow(out, base, &out)) fail_overflow();
    if (exponent > 1 && __builtin_mul_overflow(base, base, &base)) fail_overflow();
  }
  return Value::integer(out);
}

Value integer_arithmetic(Op op, Int a, Int b) {
  Int out = 0;
  switch (op) {
    case Op::kAdd:
      if (__builtin_add_overflow(a, b, &out)) fail_overflow();
      return Value::integer(out);
    case Op::kSubtract:
      if (__builtin_sub_overflow(a, b, &out)) fail_overflow();
      return Value::integer(out);
    case Op::kMultiply:
      if (__builtin_mul_overflow(a, b, &out)) fail_overflow();
      return Value::integer(out);
    case Op::kDivide:
      if (b == 0) fail("division by zero");
      return Value::real(static_cast<double>(a) / static_cast<double>(b));
    case Op::kFloorDivide:
    case Op::kModulo: {
      if (b == -1) return op == Op::kModulo ? Value::integer(0) : integer_arithmetic(Op::kSubtract, 0, a);
      const Int quotient = floor_divide(a, b);
      return Value::integer(op == Op::kFloorDivide ? quotient : a - quotient * b);
    }
    default:
      return power(a, b);
  }
}

double float_arithmetic(Op op, double a, double b) {
  switch (op) {
    case Op::kAdd:
      return a + b;
    case Op::kSubtract:
      return a - b;
    case Op::kMultiply:
      return a * b;
    case Op::kPower:
      if (a == 0 && b < 0) fail("0.0 cannot be raised to a negative power");
      return std::pow(a, b);
    default:
      break;
  }
  if (b == 0) fail(op == Op::kDivide ? "float division by zero" : "float floor division or modulo by zero");
  if (op == Op::kDivide) return a / b;
  double remainder = std::fmod(a, b);
  double quotient = (a - remainder) / b;
  if (remainder != 0 && (b < 0) != (remainder < 0)) {
    remainder += b;
    quotient -= 1;
  }
  if (op == Op::kModulo) return remainder == 0 ? std::copysign(0.0, b) : remainder;
  return quotient == 0 ? std::copysign(0.0, a / b) : std::round(quotient);
}

Value add_strings(Heap& heap, const Value& a, const Value& b) {
  if (a.markup != b.markup) {
    Value out = add_strings(heap, a.markup ? a : escape_html(heap, a), b.markup ? b : escape_html(heap, b));
    out.markup = true;
    return out;
  }
  TextBuilder builder;
  builder.append(*a.text);
  builder.append(*b.text);
  Value out = heap.text(builder);
  out.markup = a.markup;
  return out;
}

// "ab" * 3, [1] * 3
Value repeat(Heap& heap, const Value& sequence, Int count) {
  const size_t size = sequence.is_string() ? sequence.bytes().size() : as_list(sequence).items.size();
  const size_t each = sequence.is_string() ? 1 : sizeof(Value);
  const auto times = static_cast<size_t>(count < 0 || size == 0 ? 0 : count);
  if (count > 0 && size > 0 && (count > Int{1} << 40 || times > heap.limits().live_bytes / (size * each))) {
    fail(fmt::format("repeating a sequence gives more than the template's {} bytes",
                     heap.limits().live_bytes));
  }
  heap.step(times * size / 8);
  if (sequence.is_string()) {
    TextBuilder builder;
    for (size_t i = 0; i < times; ++i) builder.append(*sequence.text);
    Value out = heap.text(builder);
    out.markup = sequence.markup;
    return out;
  }
  std::vector<Value> items;
  for (size_t i = 0; i < times; ++i) {
    items.insert(items.end(), as_list(sequence).items.begin(), as_list(sequence).items.end());
  }
  Value out = heap.list(std::move(items), sequence.kind);
  out.tainted = sequence.tainted;
  return out;
}

bool is_sequence(const Value& v) {
  return v.is_string() || v.kind == Kind::kList || v.kind == Kind::kTuple;
}

}  // namespace

Value arithmetic(Heap& heap, Op op, const Value& a, const Value& b) {
  if (op == Op::kModulo && a.is_string()) return format_percent(heap, a, b);
  if (a.is_undefined()) fail_undefined(a);
  if (b.is_undefined()) fail_undefined(b);
  Value out;
  if (a.is_number() && b.is_number()) {
    out = a.is_integral() && b.is_integral() ? integer_arithmetic(op, a.integral(), b.integral())
                                             : Value::real(float_arithmetic(op, a.number(), b.number()));
    out.tainted = a.tainted || b.tainted;
    return out;
  }
  if (op == Op::kAdd && a.is_string() && b.is_string()) return add_strings(heap, a, b);
  if (op == Op::kAdd && a.kind == b.kind && (a.kind == Kind::kList || a.kind == Kind::kTuple)) {
    std::vector<Value> items;
    items.reserve(as_list(a).items.size() + as_list(b).items.size());
    items = as_list(a).items;
    items.insert(items.end(), as_list(b).items.begin(), as_list(b).items.end());
    out = heap.list(std::move(items), a.kind);
    out.tainted = a.tainted || b.tainted;
    return out;
  }
  if (op == Op::kMultiply && is_sequence(a) && b.is_integral()) return repeat(heap, a, b.integral());
  if (op == Op::kMultiply && is_sequence(b) && a.is_integral()) return repeat(heap, b, a.integral());
  if (op == Op::kAdd && a.is_string()) {
    fail(fmt::format("can only concatenate str (not \"{}\") to str", type_name(b)));
  }
  fail_operands(op, a, b);
}

Value unary(Op op, const Value& a) {
  if (op == Op::kNot) return Value::boolean(!truthy(a));
  if (a.is_undefined()) fail_undefined(a);
  if (!a.is_number()) {
    fail(fmt::format("bad operand type for unary {}: '{}'", op == Op::kNegative ? "-" : "+", type_name(a)));
  }
  Value out = a;
  if (op == Op::kNegative) {
    out = a.kind == Kind::kFloat ? Value::real(-a.f) : integer_arithmetic(Op::kSubtract, 0, a.integral());
  } else if (a.kind == Kind::kBool) {
    out = Value::integer(a.integral());
  }
  out.tainted = a.tainted;
  return out;
}

}  // namespace deepinfer::jinja
