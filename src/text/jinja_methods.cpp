// Methods of strings, lists and mappings, and what object.name gives. An allow-list: nothing else is
// reachable.
#include <fmt/format.h>

#include <algorithm>

#include "text/jinja_builtins.h"
#include "text/jinja_interp.h"
#include "text/jinja_str_methods.h"

namespace deepinfer::jinja {
namespace {

constexpr Int kAll = Int{1} << 62;

Value list_index(Heap& heap, const Value& self, const CallArgs& call) {
  const BoundArgs args("index", call, {"value", "start", "stop"}, 1);
  const auto& items = as_list(self).items;
  const auto size = static_cast<Int>(items.size());
  const auto clamp = [size](Int i) { return std::clamp(i < 0 ? i + size : i, Int{0}, size); };
  for (Int i = clamp(args.integer(1, 0)); i < clamp(args.integer(2, kAll)); ++i) {
    if (equal(heap, items[static_cast<size_t>(i)], args[0])) return Value::integer(i);
  }
  fail("value is not in list");
}

Value list_count(Heap& heap, const Value& self, const CallArgs& call) {
  const BoundArgs args("count", call, {"value"}, 1);
  Int count = 0;
  for (const Value& v : as_list(self).items) count += equal(heap, v, args[0]) ? 1 : 0;
  return Value::integer(count);
}

Value same(Heap&, const Value& self, const CallArgs& call) {
  const BoundArgs args("copy", call, {});  // containers never change: a copy is the same
  return self;
}

Value view(Heap& heap, const Value& self, ViewObject::Part part) {
  auto* object = heap.make<ViewObject>();
  object->part = part;
  object->dict = &as_dict(self);
  Value out = Value::of(Kind::kView, object);
  out.tainted = self.tainted;
  return out;
}

Value dict_keys(Heap& heap, const Value& self, const CallArgs& call) {
  const BoundArgs args("keys", call, {});
  return view(heap, self, ViewObject::kKeys);
}

Value dict_values(Heap& heap, const Value& self, const CallArgs& call) {
  const BoundArgs args("values", call, {});
  return view(heap, self, ViewObject::kValues);
}

Value dict_items(Heap& heap, const Value& self, const CallArgs& call) {
  const BoundArgs args("items", call, {});
  return view(heap, self, ViewObject::kItems);
}

Value dict_get(Heap& heap, const Value& self, const CallArgs& call) {
  const BoundArgs args("get", call, {"key", "default"}, 1);
  check_hashable(args[0]);
  const Value* found = as_dict(self).find(heap, args[0]);
  if (found != nullptr) return *found;
  return args.has(1) ? args[1] : Value::none();
}

Value loop_cycle(Heap&, const Value& self, const CallArgs& call) {
  if (call.args.empty()) fail("no items for cycling given");
  const auto& loop = static_cast<const LoopObject&>(*self.object);
  return call.args[static_cast<size_t>(loop.index0 % static_cast<Int>(call.args.size()))];
}

Value loop_changed(Heap& heap, const Value& self, const CallArgs& call) {
  return Value::boolean(static_cast<LoopObject&>(*self.object).changed(heap, call.args));
}

constexpr MethodEntry kMethods[] = {
    {Kind::kList, "index", list_index},   {Kind::kList, "count", list_count},
    {Kind::kList, "copy", same},          {Kind::kTuple, "index", list_index},
    {Kind::kTuple, "count", list_count},  {Kind::kDict, "keys", dict_keys},
    {Kind::kDict, "values", dict_values}, {Kind::kDict, "items", dict_items},
    {Kind::kDict, "get", dict_get},       {Kind::kDict, "copy", same},
    {Kind::kLoop, "cycle", loop_cycle},   {Kind::kLoop, "changed", loop_changed},
};

// Methods that change their object: the sandbox that templates are written for gives something undefined.
bool is_mutator(Kind kind, std::string_view name) {
  static constexpr std::string_view kList[] = {"append", "clear", "pop",    "reverse",
                                               "insert", "sort",  "extend", "remove"};
  static constexpr std::string_view kDict[] = {"clear", "pop", "popitem", "setdefault", "update"};
  if (kind == Kind::kList) return std::ranges::find(kList, name) != std::end(kList);
  return kind == Kind::kDict && std::ranges::find(kDict, name) != std::end(kDict);
}

// What Python has and templates have no use for: an error is clearer than something undefined.
bool is_unsupported(const Value& v, std::string_view name) {
  static constexpr std::string_view kString[] = {"encode",      "expandtabs",   "translate", "maketrans",
                                                 "isprintable", "isidentifier", "istitle",   "format_map"};
  static constexpr std::string_view kNumber[] = {
      "real",      "imag",     "numerator",  "denominator", "bit_length", "is_integer",      "hex",
      "conjugate", "to_bytes", "from_bytes", "fromhex",     "bit_count",  "as_integer_ratio"};
  if (v.is_string()) return std::ranges::find(kString, name) != std::end(kString);
  if (v.is_number()) return std::ranges::find(kNumber, name) != std::end(kNumber);
  return v.kind == Kind::kDict && name == "fromkeys";
}

}  // namespace

const MethodEntry* find_method(Kind owner, std::string_view name) {
  if (owner == Kind::kString) return find_string_method(name);
  const auto* found =
      std::ranges::find_if(kMethods, [&](const auto& m) { return m.owner == owner && m.name == name; });
  return found == std::end(kMethods) ? nullptr : found;
}

Value attribute_of(Heap& heap, const Value& object, const TextPtr& name) {
  const std::string& bytes = name->bytes;
  if (object.is_undefined()) fail_undefined(object);
  if (bytes.starts_with("__") || is_mutator(object.kind, bytes)) {
    return Value::undefined(Missing::kUnsafe, name, object.kind);
  }
  if (const MethodEntry* entry = find_method(object.kind, bytes)) {
    auto* method = heap.make<MethodObject>();
    method->self = object;
    method->entry = entry;
    return Value::of(Kind::kMethod, method);
  }
  if (is_unsupported(object, bytes)) {
    fail(fmt::format("'{}' of '{}' is not supported in chat templates", bytes, type_name(object)));
  }
  const Value* found = nullptr;
  if (object.kind == Kind::kDict) {
    heap.step();
    found = as_dict(object).find(bytes);
  } else if (object.kind == Kind::kNamespace) {
    found = static_cast<const NamespaceObject&>(*object.object).attributes.find(bytes);
  } else if (object.kind == Kind::kLoop) {
    return static_cast<LoopObject&>(*object.object).attribute(bytes);
  } else if (object.kind == Kind::kTuple && object.detail == 1 && (bytes == "grouper" || bytes == "list")) {
    return as_list(object).items[bytes == "list" ? 1 : 0];
  } else if (object.kind == Kind::kMacro && bytes == "name") {
    return Value::string(static_cast<const MacroObject&>(*object.object).definition->name);
  }
  return found != nullptr ? *found : Value::undefined(Missing::kAttribute, name, object.kind);
}

BoundArgs::BoundArgs(const char* function, const CallArgs& call, std::initializer_list<const char*> names,
                     size_t required)
    : function_(function), values_(names.size()) {
  if (call.args.size() > names.size()) {
    fail(fmt::format("{}() takes at most {} arguments, got {}", function, names.size(), call.args.size()));
  }
  for (size_t i = 0; i < call.args.size(); ++i) values_[i] = &call.args[i];
  for (const auto& [name, value] : call.keywords) {
    const auto* found = std::ranges::find_if(names, [&](const char* n) { return n == name->bytes; });
    if (found == names.end())
      fail(fmt::format("{}() got an unexpected keyword argument '{}'", function, name->bytes));
    const auto at = static_cast<size_t>(found - names.begin());
    if (values_[at] != nullptr) {
      fail(fmt::format("{}() got multiple values for argument '{}'", function, name->bytes));
    }
    values_[at] = &value;
  }
  for (size_t i = 0; i < required; ++i) {
    if (values_[i] == nullptr) fail(fmt::format("{}() misses its argument '{}'", function, names.begin()[i]));
  }
}

const Value& BoundArgs::operator[](size_t i) const {
  static const Value kUndefined{};
  return values_[i] == nullptr ? kUndefined : *values_[i];
}

Int BoundArgs::integer(size_t i, Int fallback) const {
  if (!has(i)) return fallback;
  if (!values_[i]->is_integral()) {
    if (values_[i]->is_undefined()) fail_undefined(*values_[i]);
    fail(fmt::format("{}(): '{}' object cannot be interpreted as an integer", function_,
                     type_name(*values_[i])));
  }
  return values_[i]->integral();
}

}  // namespace deepinfer::jinja
