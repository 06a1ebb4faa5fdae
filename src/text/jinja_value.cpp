#include "text/jinja_value.h"

#include <fmt/format.h>

#include "text/jinja_ops.h"

namespace deepinfer::jinja {

Value Value::boolean(bool value) {
  Value v = make(Kind::kBool);
  v.b = value;
  return v;
}

Value Value::integer(Int value) {
  Value v = make(Kind::kInt);
  v.i = value;
  return v;
}

Value Value::real(double value) {
  Value v = make(Kind::kFloat);
  v.f = value;
  return v;
}

Value Value::string(TextPtr text) {
  Value v = make(Kind::kString);
  v.text = std::move(text);
  return v;
}

Value Value::of(Kind kind, Object* object) {
  Value v = make(kind);
  v.object = object;
  return v;
}

Value Value::undefined(Missing why, TextPtr what, Kind owner) {
  Value v;
  v.detail = static_cast<uint8_t>(why);
  v.text = std::move(what);
  v.i = static_cast<Int>(owner);
  return v;
}

Value Value::hint(std::string_view message) {
  return undefined(Missing::kHint, constant_text(message));
}

namespace {

constexpr size_t kIndexFrom = 9;  // below that a walk over the keys is faster

}  // namespace

std::optional<size_t> DictObject::position(std::string_view key) const {
  if (!index_.empty()) {
    const auto found = index_.find(key);
    return found == index_.end() ? std::nullopt : std::optional(found->second);
  }
  for (size_t i = 0; i < items.size(); ++i) {
    if (items[i].first.is_string() && items[i].first.bytes() == key) return i;
  }
  return std::nullopt;
}

std::optional<size_t> DictObject::position(Heap& heap, const Value& key) const {
  if (key.is_string()) return position(std::string_view(key.bytes()));
  for (size_t i = 0; i < items.size(); ++i) {
    if (!items[i].first.is_string() && equal(heap, items[i].first, key)) return i;
  }
  return std::nullopt;
}

const Value* DictObject::find(Heap& heap, const Value& key) const {
  const auto at = position(heap, key);
  return at ? &items[*at].second : nullptr;
}

const Value* DictObject::find(std::string_view key) const {
  const auto at = position(key);
  return at ? &items[*at].second : nullptr;
}

void DictObject::set(Heap& heap, Value key, Value value) {
  heap.charge(2 * sizeof(Value));
  if (const auto at = position(heap, key)) {
    items[*at].second = std::move(value);
    return;
  }
  items.emplace_back(std::move(key), std::move(value));
  if (items.size() < kIndexFrom) return;
  const size_t from = index_.empty() ? 0 : items.size() - 1;
  for (size_t i = from; i < items.size(); ++i) {
    if (items[i].first.is_string()) index_.emplace(items[i].first.bytes(), i);
  }
}

size_t RangeObject::size() const {
  if (step > 0) return start < stop ? static_cast<size_t>((stop - start + step - 1) / step) : 0;
  return start > stop ? static_cast<size_t>((start - stop - step - 1) / -step) : 0;
}

void Heap::step(uint64_t count) {
  if (count > steps_left_) {
    steps_left_ = 0;
    fail_budget(
        fmt::format("the chat template took more than its {} steps: shorten the messages or the template",
                    limits_.steps));
  }
  steps_left_ -= count;
}

void Heap::charge(size_t bytes) {
  if (bytes > limits_.live_bytes - live_) {
    fail_budget(fmt::format(
        "the chat template needs more than its {} bytes of memory: shorten the messages or the template",
        limits_.live_bytes));
  }
  live_ += bytes;
}

Value Heap::text(Text&& text) {
  copy_cost(text.bytes.size());
  const size_t bytes = sizeof(Text) + text.bytes.capacity() + text.untrusted.capacity() * sizeof(TextRange);
  charge(bytes);
  text.live = &live_;
  text.charged = bytes;
  auto shared = std::make_shared<Text>(std::move(text));
  text.live = nullptr;
  return Value::string(std::move(shared));
}

Value Heap::text(std::string_view bytes, bool untrusted) {
  TextBuilder builder;
  builder.append(bytes, untrusted);
  return text(builder);
}

Value Heap::slice(const Value& string, size_t begin, size_t end) {
  if (begin == 0 && end == string.bytes().size()) return string;
  TextBuilder builder;
  builder.append(*string.text, begin, end);
  Value out = text(builder);
  out.markup = string.markup;
  return out;
}

Value Heap::list(std::vector<Value> items, Kind kind) {
  step(1 + items.size() / 8);
  charge(items.capacity() * sizeof(Value));
  auto* object = make<ListObject>();
  object->items = std::move(items);
  return Value::of(kind, object);
}

Value Heap::iterator(std::vector<Value> items, const char* type) {
  step(1 + items.size() / 8);
  charge(items.capacity() * sizeof(Value));
  auto* object = make<IteratorObject>();
  object->items = std::move(items);
  object->type = type;
  return Value::of(Kind::kIterator, object);
}

DictObject* Heap::dict() {
  return make<DictObject>();
}

namespace {

const char* kind_name(Kind kind) {
  static constexpr const char* kNames[] = {
      "Undefined", "NoneType",   "bool",      "int",      "float",
      "str",       "list",       "tuple",     "dict",     "dict_view",
      "range",     "generator",  "Namespace", "function", "builtin_function_or_method",
      "Macro",     "LoopContext"};
  return kNames[static_cast<size_t>(kind)];
}

}  // namespace

const char* type_name(const Value& v) {
  if (v.kind == Kind::kView) {
    static constexpr const char* kNames[] = {"dict_keys", "dict_values", "dict_items"};
    return kNames[static_cast<const ViewObject*>(v.object)->part];
  }
  if (v.kind == Kind::kIterator) return static_cast<const IteratorObject*>(v.object)->type;
  return kind_name(v.kind);
}

std::string undefined_message(const Value& v) {
  const std::string_view what = v.text ? std::string_view(v.text->bytes) : std::string_view();
  const auto owner = static_cast<Kind>(static_cast<int>(v.i));
  const std::string object = owner == Kind::kNone ? "None" : fmt::format("{} object", kind_name(owner));
  switch (static_cast<Missing>(v.detail)) {
    case Missing::kName:
      return fmt::format("'{}' is undefined", what);
    case Missing::kAttribute:
      return fmt::format("'{}' has no attribute '{}'", object, what);
    case Missing::kElement:
      return fmt::format("{} has no element {}", object, what);
    case Missing::kUnsafe:
      return fmt::format("access to attribute '{}' of '{}' object is unsafe.", what, kind_name(owner));
    case Missing::kHint:
      break;
  }
  return std::string(what);
}

void fail(std::string message) {
  throw Failure{std::move(message)};
}

void fail_budget(std::string message) {
  throw Failure{std::move(message), false, true};
}

void fail_undefined(const Value& v) {
  fail(undefined_message(v));
}

}  // namespace deepinfer::jinja
