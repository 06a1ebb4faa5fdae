// Filters over sequences and mappings.
#include <fmt/format.h>

#include <algorithm>
#include <functional>

#include "text/jinja_builtins.h"
#include "text/jinja_sort.h"

namespace deepinfer::jinja {
namespace {

// "a.b.0": the way from an item to what a filter looks at. None stands for the item itself.
std::vector<Value> attribute_path(Heap& heap, const Value& attribute) {
  std::vector<Value> path;
  if (attribute.is_none() || attribute.is_undefined()) return path;
  if (!attribute.is_string()) return {attribute};
  const std::string& bytes = attribute.bytes();
  for (size_t begin = 0; begin <= bytes.size();) {
    const size_t dot = std::min(bytes.find('.', begin), bytes.size());
    const std::string_view part = std::string_view(bytes).substr(begin, dot - begin);
    const bool digits = !part.empty() && part.size() < 18 &&
                        std::ranges::all_of(part, [](char c) { return c >= '0' && c <= '9'; });
    if (digits) {
      Int index = 0;
      for (const char c : part) index = index * 10 + (c - '0');
      path.push_back(Value::integer(index));
    } else {
      path.push_back(heap.slice(attribute, begin, dot));
    }
    begin = dot + 1;
  }
  return path;
}

Value follow(Heap& heap, Value item, const std::vector<Value>& path, const Value& fallback) {
  for (const Value& part : path) {
    item = item_of(heap, item, part);
    if (item.is_undefined() && !fallback.is_none() && !fallback.is_undefined()) item = fallback;
  }
  return item;
}

Value fold_case(Heap& heap, const Value& v, bool case_sensitive) {
  return !case_sensitive && v.is_string() ? mapped_case(heap, v, CaseMap::kLower) : v;
}

// Sorts by key, stable; reverse keeps the order of equal items too.
void sort_by(Heap& heap, std::vector<std::pair<Value, Value>>& keyed, bool reverse) {
  if (reverse) std::ranges::reverse(keyed);
  stable_sort_by(keyed, [&heap](const auto& a, const auto& b) { return less(heap, a.first, b.first); });
  if (reverse) std::ranges::reverse(keyed);
}

std::vector<Value> seconds(std::vector<std::pair<Value, Value>>& keyed) {
  std::vector<Value> out;
  out.reserve(keyed.size());
  for (auto& [key, value] : keyed) out.push_back(std::move(value));
  return out;
}

// A generator of Python: it fails when it is read up to where making it failed, and never if it is not.
template <class Make>
Value generator(Heap& heap, const Make& make) {
  std::vector<Value> items;
  std::string failure;
  try {
    make(items);
  } catch (const Failure& f) {
    if (f.budget) throw;
    failure = f.message;
  }
  Value out = heap.iterator(std::move(items));
  static_cast<IteratorObject&>(*out.object).failure = std::move(failure);
  return out;
}

Value length_filter(Heap&, const Value& input, const CallArgs& call) {
  const BoundArgs args("length", call, {});
  return Value::integer(static_cast<Int>(require_length(input)));
}

Value join_filter(Heap& heap, const Value& input, const CallArgs& call) {
  const BoundArgs args("join", call, {"d", "attribute"});
  const std::vector<Value> path = attribute_path(heap, args[1]);
  std::vector<Value> strings;
  for (const Value& item : collect(heap, input)) {
    strings.push_back(to_string(heap, follow(heap, item, path, Value::none())));
  }
  const Value separator = args.has(0) ? to_string(heap, args[0]) : heap.text("", false);
  return join(heap, *separator.text, strings);
}

Value first_filter(Heap& heap, const Value& input, const CallArgs& call) {
  const BoundArgs args("first", call, {});
  Cursor cursor(heap, input);
  Value out;
  return cursor.next(out) ? out : Value::hint("No first item, sequence was empty.");
}

Value last_filter(Heap& heap, const Value& input, const CallArgs& call) {
  const BoundArgs args("last", call, {});
  if (input.kind == Kind::kIterator) fail(fmt::format("'{}' object is not reversible", type_name(input)));
  if (input.is_undefined()) return Value::hint("No last item, sequence was empty.");
  if (input.is_string()) return item_of(heap, input, Value::integer(-1));
  const std::vector<Value> items = collect(heap, input);
  return items.empty() ? Value::hint("No last item, sequence was empty.") : items.back();
}

Value list_filter(Heap& heap, const Value& input, const CallArgs& call) {
  const BoundArgs args("list", call, {});
  Value out = heap.list(collect(heap, input));
  out.tainted = input.tainted;
  return out;
}

Value reverse_filter(Heap& heap, const Value& input, const CallArgs& call) {
  const BoundArgs args("reverse", call, {});
  if (input.is_string()) {
    return slice_of(heap, input, Value::none(), Value::none(), Value::integer(-1));
  }
  if (!is_iterable(input)) fail("argument must be iterable");
  std::vector<Value> items = collect(heap, input);
  std::ranges::reverse(items);
  if (input.kind == Kind::kIterator) return heap.list(std::move(items));
  return heap.iterator(std::move(items), "list_reverseiterator");
}

Value default_filter(Heap& heap, const Value& input, const CallArgs& call) {
  const BoundArgs args("default", call, {"default_value", "boolean"});
  if (!input.is_undefined() && !(args.flag(1) && !truthy(input))) return input;
  return args.has(0) ? args[0] : heap.text("", false);
}

Value items_filter(Heap& heap, const Value& input, const CallArgs& call) {
  const BoundArgs args("items", call, {});
  return generator(heap, [&](std::vector<Value>& out) {
    if (input.is_undefined()) return;
    if (input.kind != Kind::kDict) fail("Can only get item pairs from a mapping.");
    for (const auto& [key, value] : as_dict(input).items)
      out.push_back(heap.list({key, value}, Kind::kTuple));
  });
}

Value dictsort_filter(Heap& heap, const Value& input, const CallArgs& call) {
  const BoundArgs args("dictsort", call, {"case_sensitive", "by", "reverse"});
  const std::string by = args.has(1) && args[1].is_string() ? args[1].bytes() : args.has(1) ? "" : "key";
  if (by != "key" && by != "value") fail("You can only sort by either \"key\" or \"value\"");
  if (input.is_undefined()) fail_undefined(input);
  if (input.kind != Kind::kDict) fail(fmt::format("'{}' object has no attribute 'items'", type_name(input)));
  std::vector<std::pair<Value, Value>> keyed;
  for (const auto& [key, value] : as_dict(input).items) {
    keyed.emplace_back(fold_case(heap, by == "key" ? key : value, args.flag(0)),
                       heap.list({key, value}, Kind::kTuple));
  }
  sort_by(heap, keyed, args.flag(2));
  Value out = heap.list(seconds(keyed));
  out.tainted = input.tainted;
  return out;
}

Value sort_filter(Heap& heap, const Value& input, const CallArgs& call) {
  const BoundArgs args("sort", call, {"reverse", "case_sensitive", "attribute"});
  std::vector<std::vector<Value>> paths;
  if (args.has(2) && args[2].is_string()) {
    CallArgs comma;
    comma.args.push_back(Value::string(constant_text(",")));
    const Value parts = find_method(Kind::kString, "split")->run(heap, args[2], comma);
    for (const Value& part : as_list(parts).items) paths.push_back(attribute_path(heap, part));
  } else {
    paths.push_back(attribute_path(heap, args[2]));
  }
  std::vector<std::pair<Value, Value>> keyed;
  for (const Value& item : collect(heap, input)) {
    std::vector<Value> key;
    for (const auto& path : paths)
      key.push_back(fold_case(heap, follow(heap, item, path, Value::none()), args.flag(1)));
    keyed.emplace_back(heap.list(std::move(key)), item);
  }
  sort_by(heap, keyed, args.flag(0));
  Value out = heap.list(seconds(keyed));
  out.tainted = input.tainted;
  return out;
}

Value unique_filter(Heap& heap, const Value& input, const CallArgs& call) {
  const BoundArgs args("unique", call, {"case_sensitive", "attribute"});
  return generator(heap, [&](std::vector<Value>& out) {
    const std::vector<Value> path = attribute_path(heap, args[1]);
    auto* seen = heap.dict();
    for (const Value& item : collect(heap, input)) {
      const Value key = fold_case(heap, follow(heap, item, path, Value::none()), args.flag(0));
      check_hashable(key);
      if (seen->find(heap, key) != nullptr) continue;
      seen->set(heap, key, Value::none());
      out.push_back(item);
    }
  });
}

template <bool maximum>
Value extreme_filter(Heap& heap, const Value& input, const CallArgs& call) {
  const BoundArgs args(maximum ? "max" : "min", call, {"case_sensitive", "attribute"});
  const std::vector<Value> path = attribute_path(heap, args[1]);
  const std::vector<Value> items = collect(heap, input);
  if (items.empty()) return Value::hint("No aggregated item, sequence was empty.");
  const auto key_of = [&](const Value& v) {
    return fold_case(heap, follow(heap, v, path, Value::none()), args.flag(0));
  };
  size_t best = 0;
  Value best_key = key_of(items[0]);
  for (size_t i = 1; i < items.size(); ++i) {
    const Value key = key_of(items[i]);
    if (maximum ? less(heap, best_key, key) : less(heap, key, best_key)) {
      best = i;
      best_key = key;
    }
  }
  return items[best];
}

Value map_filter(Heap& heap, const Value& input, const CallArgs& call) {
  return generator(heap, [&](std::vector<Value>& out) {
    if (!truthy(input)) return;
    if (call.args.empty()) {
      const BoundArgs args("map", call, {"attribute", "default"});
      if (!args.has(0)) fail("map requires a filter argument");
      const std::vector<Value> path = attribute_path(heap, args[0]);
      for (const Value& item : collect(heap, input)) out.push_back(follow(heap, item, path, args[1]));
      return;
    }
    CallArgs rest;
    rest.args.assign(call.args.begin() + 1, call.args.end());
    rest.keywords = call.keywords;
    for (const Value& item : collect(heap, input))
      out.push_back(apply_filter(heap, call.args[0], item, rest));
  });
}

template <bool keep, bool by_attribute>
void select_into(Heap& heap, const Value& input, const CallArgs& call, std::vector<Value>& out) {
  if (!truthy(input)) return;
  const size_t offset = by_attribute ? 1 : 0;
  if (call.args.size() < offset) fail("Missing parameter for attribute name");
  const std::vector<Value> path = by_attribute ? attribute_path(heap, call.args[0]) : std::vector<Value>();
  const TestEntry* test = nullptr;
  CallArgs rest;
  const std::vector<Value> items = collect(heap, input);
  if (call.args.size() > offset && !items.empty()) {
    const Value& name = call.args[offset];
    test = find_test(require_string(name, "select").bytes);
    if (test == nullptr) fail(fmt::format("No test named '{}'.", name.bytes()));
    rest.args.assign(call.args.begin() + static_cast<ptrdiff_t>(offset) + 1, call.args.end());
    rest.keywords = call.keywords;
  }
  for (const Value& item : items) {
    const Value subject = follow(heap, item, path, Value::none());
    const bool accepted = test != nullptr ? test->run(heap, subject, rest) : truthy(subject);
    if (accepted == keep) out.push_back(item);
  }
}

template <bool keep, bool by_attribute>
Value select_filter(Heap& heap, const Value& input, const CallArgs& call) {
  return generator(heap,
                   [&](std::vector<Value>& out) { select_into<keep, by_attribute>(heap, input, call, out); });
}

void batch_into(Heap& heap, const Value& input, const BoundArgs& args, std::vector<Value>& out) {
  const Int size = args.integer(0, 1);
  std::vector<Value> row;
  for (const Value& item : collect(heap, input)) {
    if (static_cast<Int>(row.size()) == size) out.push_back(heap.list(std::exchange(row, {})));
    row.push_back(item);
  }
  if (row.empty()) return;
  const bool fill = args.has(1) && !args[1].is_none() && size > static_cast<Int>(row.size());
  if (fill) heap.charge(static_cast<size_t>(std::min(size, Int{1} << 40)) * sizeof(Value));
  while (fill && static_cast<Int>(row.size()) < size) row.push_back(args[1]);
  out.push_back(heap.list(std::move(row)));
}

Value batch_filter(Heap& heap, const Value& input, const CallArgs& call) {
  const BoundArgs args("batch", call, {"linecount", "fill_with"}, 1);
  return generator(heap, [&](std::vector<Value>& out) { batch_into(heap, input, args, out); });
}

void slice_into(Heap& heap, const Value& input, const BoundArgs& args, std::vector<Value>& out) {
  const std::vector<Value> items = collect(heap, input);
  const Int slices = args.integer(0, 1);
  if (slices == 0) fail("integer division or modulo by zero");
  if (slices > 100'000) fail("slice: expected at most 100000 slices");
  const auto count = static_cast<size_t>(std::max(slices, Int{0}));
  const size_t each = count == 0 ? 0 : items.size() / count;
  const size_t extra = count == 0 ? 0 : items.size() % count;
  size_t begin = 0;
  for (size_t i = 0; i < count; ++i) {
    const size_t end = begin + each + (i < extra ? 1 : 0);
    std::vector<Value> part(items.begin() + static_cast<ptrdiff_t>(begin),
                            items.begin() + static_cast<ptrdiff_t>(end));
    if (args.has(1) && !args[1].is_none() && i >= extra) part.push_back(args[1]);
    out.push_back(heap.list(std::move(part)));
    begin = end;
  }
}

Value slice_filter(Heap& heap, const Value& input, const CallArgs& call) {
  const BoundArgs args("slice", call, {"slices", "fill_with"}, 1);
  return generator(heap, [&](std::vector<Value>& out) { slice_into(heap, input, args, out); });
}

Value groupby_filter(Heap& heap, const Value& input, const CallArgs& call) {
  const BoundArgs args("groupby", call, {"attribute", "default", "case_sensitive"}, 1);
  const std::vector<Value> path = attribute_path(heap, args[0]);
  const bool exact = args.flag(2);
  std::vector<std::pair<Value, Value>> keyed;
  for (const Value& item : collect(heap, input)) {
    keyed.emplace_back(fold_case(heap, follow(heap, item, path, args[1]), exact), item);
  }
  sort_by(heap, keyed, false);
  std::vector<Value> groups;
  for (size_t i = 0; i < keyed.size();) {
    std::vector<Value> members;
    const size_t begin = i;
    while (i < keyed.size() && equal(heap, keyed[begin].first, keyed[i].first))
      members.push_back(keyed[i++].second);
    const Value key = exact ? keyed[begin].first : follow(heap, keyed[begin].second, path, args[1]);
    Value group = heap.list({key, heap.list(std::move(members))}, Kind::kTuple);
    group.detail = 1;
    groups.push_back(group);
  }
  return heap.list(std::move(groups));
}

Value attr_filter(Heap& heap, const Value& input, const CallArgs& call) {
  const BoundArgs args("attr", call, {"name"}, 1);
  require_string(args[0], "attr");
  if (input.kind == Kind::kDict && find_method(Kind::kDict, args[0].bytes()) == nullptr) {
    return Value::undefined(Missing::kAttribute, args[0].text, Kind::kDict);  // never an item
  }
  return attribute_of(heap, input, args[0].text);
}

constexpr FilterEntry kFilters[] = {
    {"length", length_filter},
    {"count", length_filter},
    {"join", join_filter},
    {"first", first_filter},
    {"last", last_filter},
    {"list", list_filter},
    {"reverse", reverse_filter},
    {"default", default_filter},
    {"d", default_filter},
    {"items", items_filter},
    {"dictsort", dictsort_filter},
    {"sort", sort_filter},
    {"unique", unique_filter},
    {"min", extreme_filter<false>},
    {"max", extreme_filter<true>},
    {"map", map_filter},
    {"select", select_filter<true, false>},
    {"reject", select_filter<false, false>},
    {"selectattr", select_filter<true, true>},
    {"rejectattr", select_filter<false, true>},
    {"batch", batch_filter},
    {"slice", slice_filter},
    {"groupby", groupby_filter},
    {"attr", attr_filter},
};

}  // namespace

std::span<const FilterEntry> list_filters() {
  return kFilters;
}

}  // namespace deepinfer::jinja
