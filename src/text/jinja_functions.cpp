// The global functions of a template.
#include <fmt/format.h>

#include <algorithm>
#include <ctime>

#include "text/jinja_builtins.h"

namespace deepinfer::jinja {
namespace {

constexpr size_t kMaxRange = 100'000;  // Jinja's own limit

struct Named {
  std::string_view name;
  Builtin builtin;
};
constexpr Named kBuiltins[] = {
    {"range", Builtin::kRange},
    {"namespace", Builtin::kNamespace},
    {"dict", Builtin::kDict},
    {"raise_exception", Builtin::kRaiseException},
    {"strftime_now", Builtin::kStrftimeNow},
};

Value make_range(Heap& heap, const CallArgs& call) {
  const BoundArgs args("range", call, {"start", "stop", "step"}, 1);
  auto* range = heap.make<RangeObject>();
  range->start = args.has(1) ? args.integer(0, 0) : 0;
  range->stop = args.has(1) ? args.integer(1, 0) : args.integer(0, 0);
  range->step = args.integer(2, 1);
  constexpr Int kBound = Int{1} << 64;
  for (const Int v : {range->start, range->stop, range->step}) {
    if (v > kBound || v < -kBound) fail("range(): expected numbers of 64 bits");
  }
  if (range->step == 0) fail("range() arg 3 must not be zero");
  if (range->size() > kMaxRange) {
    fail(fmt::format("Range too big. The sandbox blocks ranges larger than MAX_RANGE ({}).", kMaxRange));
  }
  return Value::of(Kind::kRange, range);
}

// dict(mapping or pairs, key=value, ...)
void fill_dict(Heap& heap, DictObject& dict, const CallArgs& call, const char* function) {
  if (call.args.size() > 1)
    fail(fmt::format("{} expected at most 1 argument, got {}", function, call.args.size()));
  if (!call.args.empty()) {
    const Value& source = call.args[0];
    if (source.kind == Kind::kDict) {
      for (const auto& [key, value] : as_dict(source).items) dict.set(heap, key, value);
    } else {
      for (const Value& pair : collect(heap, source)) {
        const std::vector<Value> items = collect(heap, pair);
        if (items.size() != 2) fail("dictionary update sequence element: expected 2 items");
        check_hashable(items[0]);
        dict.set(heap, items[0], items[1]);
      }
    }
  }
  for (const auto& [name, value] : call.keywords) dict.set(heap, Value::string(name), value);
}

Value make_namespace(Heap& heap, const CallArgs& call) {
  auto* out = heap.make<NamespaceObject>();
  fill_dict(heap, out->attributes, call, "namespace");
  for (const auto& [key, value] : out->attributes.items) {
    if (key.is_string() && key.bytes().starts_with('_')) {
      fail(fmt::format(
          "chat templates cannot store underscore-prefixed attributes on a namespace, but got '{}'",
          key.bytes()));
    }
  }
  return Value::of(Kind::kNamespace, out);
}

Value strftime_now(Heap& heap, const CallArgs& call, int64_t now) {
  const BoundArgs args("strftime_now", call, {"format"}, 1);
  const Text& format = require_string(args[0], "strftime_now");
  if (format.bytes.size() > 1024) fail("strftime_now: expected a format of at most 1024 bytes");
  const auto seconds = static_cast<std::time_t>(now);
  std::tm local{};
  if (localtime_r(&seconds, &local) == nullptr) fail("strftime_now: the time is out of range");
  std::string pattern;  // what Python fills in by itself: no microseconds, no zone
  for (size_t i = 0; i < format.bytes.size(); ++i) {
    const char next = format.bytes[i] == '%' && i + 1 < format.bytes.size() ? format.bytes[i + 1] : '\0';
    if (next == '\0') {
      pattern += format.bytes[i];
      continue;
    }
    ++i;
    if (next == 'f') {
      pattern += "000000";
    } else if (next != 'z' && next != 'Z') {
      pattern += {'%', next};
    }
  }
  std::string buffer(64 + pattern.size() * 64, '\0');
  buffer.resize(std::strftime(buffer.data(), buffer.size(), pattern.c_str(), &local));
  return heap.text(buffer, !format.untrusted.empty());
}

}  // namespace

Value find_builtin(std::string_view name) {
  const auto* found = std::ranges::find_if(kBuiltins, [&](const Named& b) { return b.name == name; });
  if (found == std::end(kBuiltins)) return Value();
  Value out = Value::of(Kind::kFunction, nullptr);
  out.detail = static_cast<uint8_t>(found->builtin);
  return out;
}

Value call_builtin(Heap& heap, Builtin builtin, const CallArgs& call, int64_t now) {
  switch (builtin) {
    case Builtin::kRange:
      return make_range(heap, call);
    case Builtin::kNamespace:
      return make_namespace(heap, call);
    case Builtin::kDict: {
      DictObject* dict = heap.dict();
      fill_dict(heap, *dict, call, "dict");
      return Value::of(Kind::kDict, dict);
    }
    case Builtin::kRaiseException: {
      const BoundArgs args("raise_exception", call, {"message"}, 1);
      throw Failure{to_string(heap, args[0]).bytes(), true};
    }
    case Builtin::kStrftimeNow:
      return strftime_now(heap, call, now);
  }
  return Value();
}

}  // namespace deepinfer::jinja
