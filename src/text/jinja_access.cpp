// Length, iteration, items, slices.
#include <fmt/format.h>

#include <algorithm>

#include "text/jinja_ops.h"

namespace deepinfer::jinja {

std::optional<size_t> length_of(const Value& v) {
  switch (v.kind) {
    case Kind::kUndefined:
      return 0;
    case Kind::kString:
      return count_code_points(*v.text);
    case Kind::kList:
    case Kind::kTuple:
      return as_list(v).items.size();
    case Kind::kDict:
      return as_dict(v).items.size();
    case Kind::kView:
      return static_cast<const ViewObject&>(*v.object).dict->items.size();
    case Kind::kRange:
      return static_cast<const RangeObject&>(*v.object).size();
    default:
      return std::nullopt;
  }
}

size_t require_length(const Value& v) {
  const auto length = length_of(v);
  if (!length) fail(fmt::format("object of type '{}' has no len()", type_name(v)));
  return *length;
}

bool is_iterable(const Value& v) {
  return v.kind == Kind::kUndefined || v.kind == Kind::kIterator || length_of(v).has_value();
}

Cursor::Cursor(Heap& heap, Value iterable) : heap_(&heap), value_(std::move(iterable)) {
  if (!is_iterable(value_)) fail(fmt::format("'{}' object is not iterable", type_name(value_)));
}

namespace {

Value view_item(Heap& heap, const ViewObject& view, size_t at) {
  const auto& [key, value] = view.dict->items[at];
  if (view.part == ViewObject::kKeys) return key;
  if (view.part == ViewObject::kValues) return value;
  return heap.list({key, value}, Kind::kTuple);
}

}  // namespace

bool Cursor::next(Value& out) {
  switch (value_.kind) {
    case Kind::kString: {
      if (at_ >= value_.bytes().size()) return false;
      const size_t end = at_ + decode_utf8(value_.bytes(), at_).size;
      TextBuilder builder;
      builder.append(*value_.text, at_, end);
      out = heap_->text(builder);
      at_ = end;
      return true;
    }
    case Kind::kIterator: {
      auto& iterator = static_cast<IteratorObject&>(*value_.object);
      if (iterator.at >= iterator.items.size()) {
        if (!iterator.failure.empty()) fail(std::exchange(iterator.failure, {}));
        return false;
      }
      out = iterator.items[iterator.at++];
      return true;
    }
    case Kind::kList:
    case Kind::kTuple:
      if (at_ >= as_list(value_).items.size()) return false;
      out = as_list(value_).items[at_++];
      return true;
    case Kind::kDict:
      if (at_ >= as_dict(value_).items.size()) return false;
      out = as_dict(value_).items[at_++].first;
      return true;
    case Kind::kView: {
      const auto& view = static_cast<const ViewObject&>(*value_.object);
      if (at_ >= view.dict->items.size()) return false;
      out = view_item(*heap_, view, at_++);
      return true;
    }
    case Kind::kRange: {
      const auto& range = static_cast<const RangeObject&>(*value_.object);
      if (at_ >= range.size()) return false;
      out = Value::integer(range.at(at_++));
      return true;
    }
    default:
      return false;
  }
}

std::vector<Value> collect(Heap& heap, const Value& iterable) {
  std::vector<Value> items;
  Cursor cursor(heap, iterable);
  for (Value v; cursor.next(v);) {
    heap.step();
    items.push_back(v);
  }
  return items;
}

namespace {

// A position of Python's -length..length-1, or nothing.
std::optional<size_t> index_in(const Value& key, size_t length) {
  if (!key.is_integral()) return std::nullopt;
  Int at = key.integral();
  if (at < 0) at += static_cast<Int>(length);
  if (at < 0 || at >= static_cast<Int>(length)) return std::nullopt;
  return static_cast<size_t>(at);
}

Value missing_element(Heap& heap, const Value& object, const Value& key) {
  if (key.is_string()) return Value::undefined(Missing::kAttribute, key.text, object.kind);
  TextBuilder name;
  print_repr(name, key);
  return Value::undefined(Missing::kElement, heap.text(name).text, object.kind);
}

}  // namespace

Value item_of(Heap& heap, const Value& object, const Value& key) {
  switch (object.kind) {
    case Kind::kUndefined:
      fail_undefined(object);
    case Kind::kDict:
      if (key.kind != Kind::kList && key.kind != Kind::kDict) {
        heap.step(1 + (key.is_string() ? 0 : as_dict(object).items.size() / 8));
        if (const Value* found = as_dict(object).find(heap, key)) return *found;
      }
      break;
    case Kind::kList:
    case Kind::kTuple:
      if (const auto at = index_in(key, as_list(object).items.size())) return as_list(object).items[*at];
      break;
    case Kind::kRange: {
      const auto& range = static_cast<const RangeObject&>(*object.object);
      if (const auto at = index_in(key, range.size())) return Value::integer(range.at(*at));
      break;
    }
    case Kind::kString:
      if (!key.is_integral()) break;
      if (!object.text->ascii) heap.copy_cost(object.bytes().size());
      if (const auto at = index_in(key, count_code_points(*object.text))) {
        const size_t begin = byte_offset(*object.text, *at);
        return heap.slice(object, begin, begin + decode_utf8(object.bytes(), begin).size);
      }
      break;
    default:
      break;
  }
  if (key.is_string() && object.kind != Kind::kNone) {
    const Value attribute = attribute_of(heap, object, key.text);
    if (!attribute.is_undefined()) return attribute;
  }
  return missing_element(heap, object, key);
}

namespace {

struct SliceRange {
  Int start = 0, step = 1;
  size_t count = 0;
};

Int slice_bound(const Value& v, Int fallback, Int low, Int high, Int length) {
  if (v.is_none()) return fallback;
  if (!v.is_integral()) fail("slice indices must be integers or None or have an __index__ method");
  const Int at = v.integral() < 0 ? v.integral() + length : v.integral();
  return std::clamp(at, low, high);
}

SliceRange slice_range(const Value& start, const Value& stop, const Value& step, size_t size) {
  SliceRange out;
  if (!step.is_none()) {
    if (!step.is_integral()) fail("slice indices must be integers or None or have an __index__ method");
    out.step = step.integral();
    if (out.step == 0) fail("slice step cannot be zero");
  }
  const auto length = static_cast<Int>(size);
  const bool forward = out.step > 0;
  const Int low = forward ? 0 : -1;
  const Int high = forward ? length : length - 1;
  out.start = slice_bound(start, forward ? low : high, low, high, length);
  const Int end = slice_bound(stop, forward ? high : low, low, high, length);
  const Int distance = forward ? end - out.start : out.start - end;
  const Int stride = forward ? out.step : -out.step;
  out.count = distance <= 0 ? 0 : static_cast<size_t>((distance - 1) / stride + 1);
  return out;
}

Value slice_string(Heap& heap, const Value& object, const SliceRange& range) {
  const Text& text = *object.text;
  if (range.step == 1) {
    const size_t begin = byte_offset(text, static_cast<size_t>(range.start));
    const size_t end = byte_offset(text, static_cast<size_t>(range.start) + range.count);
    return heap.slice(object, begin, std::max(begin, end));
  }
  heap.step(range.count);
  std::vector<size_t> starts;
  if (!text.ascii) {
    for (size_t at = 0; at < text.bytes.size(); at += decode_utf8(text.bytes, at).size) starts.push_back(at);
    starts.push_back(text.bytes.size());
  }
  TextBuilder builder;
  for (size_t i = 0; i < range.count; ++i) {
    const auto at = static_cast<size_t>(range.start + range.step * static_cast<Int>(i));
    text.ascii ? builder.append(text, at, at + 1) : builder.append(text, starts[at], starts[at + 1]);
  }
  Value out = heap.text(builder);
  out.markup = object.markup;
  return out;
}

}  // namespace

Value slice_of(Heap& heap, const Value& object, const Value& start, const Value& stop, const Value& step) {
  if (object.is_undefined()) fail_undefined(object);
  if (object.is_string()) {
    if (!object.text->ascii) heap.copy_cost(object.bytes().size());
    return slice_string(heap, object, slice_range(start, stop, step, count_code_points(*object.text)));
  }
  if (object.kind == Kind::kRange) {
    const auto& range = static_cast<const RangeObject&>(*object.object);
    const SliceRange slice = slice_range(start, stop, step, range.size());
    auto* out = heap.make<RangeObject>();
    out->start = range.start + range.step * slice.start;
    out->step = range.step * slice.step;
    out->stop = out->start + out->step * static_cast<Int>(slice.count);
    return Value::of(Kind::kRange, out);
  }
  if (object.kind != Kind::kList && object.kind != Kind::kTuple) {
    fail(object.kind == Kind::kDict ? "unhashable type: 'slice'"
                                    : fmt::format("'{}' object is not subscriptable", type_name(object)));
  }
  const auto& items = as_list(object).items;
  const SliceRange range = slice_range(start, stop, step, items.size());
  std::vector<Value> out;
  out.reserve(range.count);
  for (size_t i = 0; i < range.count; ++i) {
    out.push_back(items[static_cast<size_t>(range.start + range.step * static_cast<Int>(i))]);
  }
  Value list = heap.list(std::move(out), object.kind);
  list.tainted = object.tainted;
  return list;
}

}  // namespace deepinfer::jinja
