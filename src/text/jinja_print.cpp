// str(), repr() and json.dumps() of values, each byte with its taint.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "text/jinja_escape.h"
#include "text/jinja_ops.h"
#include "text/jinja_sort.h"

namespace deepinfer::jinja {

std::string repr_of_float(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  std::string out = fmt::format("{}", value);
  if (out.find_first_of(".e") == std::string::npos) out += ".0";
  return out;
}

namespace {

void check_nesting(int depth) {
  if (depth > kMaxNesting)
    fail(fmt::format("values nested deeper than {} levels cannot be printed", kMaxNesting));
}

void print_items(TextBuilder& out, const std::vector<Value>& items, bool tainted, int depth) {
  for (size_t i = 0; i < items.size(); ++i) {
    if (i > 0) out.append(", ", tainted);
    print_repr(out, items[i], depth + 1);
  }
}

void print_dict(TextBuilder& out, const DictObject& dict, bool tainted, int depth) {
  out.append("{", tainted);
  for (size_t i = 0; i < dict.items.size(); ++i) {
    if (i > 0) out.append(", ", tainted);
    print_repr(out, dict.items[i].first, depth + 1);
    out.append(": ", tainted);
    print_repr(out, dict.items[i].second, depth + 1);
  }
  out.append("}", tainted);
}

void print_view(TextBuilder& out, const Value& v, int depth) {
  const auto& view = static_cast<const ViewObject&>(*v.object);
  out.append(fmt::format("{}([", type_name(v)), v.tainted);
  bool first = true;
  for (const auto& [key, value] : view.dict->items) {
    if (!std::exchange(first, false)) out.append(", ", v.tainted);
    if (view.part == ViewObject::kItems) out.append("(", v.tainted);
    if (view.part != ViewObject::kValues) print_repr(out, key, depth + 1);
    if (view.part == ViewObject::kItems) out.append(", ", v.tainted);
    if (view.part != ViewObject::kKeys) print_repr(out, value, depth + 1);
    if (view.part == ViewObject::kItems) out.append(")", v.tainted);
  }
  out.append("])", v.tainted);
}

std::string repr_of_range(const RangeObject& range) {
  if (range.step == 1) return fmt::format("range({}, {})", range.start, range.stop);
  return fmt::format("range({}, {}, {})", range.start, range.stop, range.step);
}

}  // namespace

void print_repr(TextBuilder& out, const Value& v, int depth) {
  check_nesting(depth);
  switch (v.kind) {
    case Kind::kUndefined:
      return out.append("Undefined");
    case Kind::kNone:
      return out.append("None", v.tainted);
    case Kind::kBool:
      return out.append(v.b ? "True" : "False", v.tainted);
    case Kind::kInt:
      return out.append(fmt::format("{}", v.i), v.tainted);
    case Kind::kFloat:
      return out.append(repr_of_float(v.f), v.tainted);
    case Kind::kString:
      if (!v.markup) return append_repr(out, *v.text);
      out.append("Markup(");
      append_repr(out, *v.text);
      return out.append(")");
    case Kind::kList:
      out.append("[", v.tainted);
      print_items(out, as_list(v).items, v.tainted, depth);
      return out.append("]", v.tainted);
    case Kind::kTuple:
      out.append("(", v.tainted);
      print_items(out, as_list(v).items, v.tainted, depth);
      return out.append(as_list(v).items.size() == 1 ? ",)" : ")", v.tainted);
    case Kind::kDict:
      return print_dict(out, as_dict(v), v.tainted, depth);
    case Kind::kView:
      return print_view(out, v, depth);
    case Kind::kRange:
      return out.append(repr_of_range(static_cast<const RangeObject&>(*v.object)));
    case Kind::kNamespace:
      out.append("<Namespace ");
      print_dict(out, static_cast<const NamespaceObject&>(*v.object).attributes, false, depth + 1);
      return out.append(">");
    default:
      return out.append(fmt::format("<{} object>", type_name(v)));
  }
}

void print(TextBuilder& out, const Value& v) {
  if (v.is_undefined()) return;
  if (v.is_string()) return out.append(*v.text);
  print_repr(out, v);
}

Value to_string(Heap& heap, const Value& v) {
  if (v.is_string()) return v;
  TextBuilder builder;
  print(builder, v);
  return heap.text(builder);
}

Value escape_html(Heap& heap, const Value& v) {
  if (v.is_string() && v.markup) return v;
  const Value text = to_string(heap, v);
  TextBuilder builder;
  append_html(builder, *text.text);
  Value out = heap.text(builder);
  out.markup = true;
  return out;
}

namespace {

class JsonPrinter {
 public:
  JsonPrinter(TextBuilder& out, Heap& heap, const JsonOptions& options)
      : out_(out), heap_(heap), options_(options) {}

  void print(const Value& v, int depth) {
    check_nesting(depth);
    heap_.step();
    switch (v.kind) {
      case Kind::kNone:
      case Kind::kBool:
      case Kind::kInt:
      case Kind::kFloat:
        return out_.append(scalar(v), v.tainted);
      case Kind::kString:
        return append_json(out_, *v.text, options_.ensure_ascii);
      case Kind::kList:
      case Kind::kTuple:
        return list(v, depth);
      case Kind::kDict:
        return dict(v, depth);
      default:
        fail(fmt::format("Object of type {} is not JSON serializable", type_name(v)));
    }
  }

 private:
  static std::string scalar(const Value& v) {
    if (v.is_none()) return "null";
    if (v.kind == Kind::kBool) return v.b ? "true" : "false";
    if (v.kind == Kind::kInt) return fmt::format("{}", v.i);
    if (std::isnan(v.f)) return "NaN";
    if (std::isinf(v.f)) return v.f < 0 ? "-Infinity" : "Infinity";
    return repr_of_float(v.f);
  }

  void new_line(int depth, bool tainted) {
    if (!options_.indent) return;
    out_.append("\n", tainted);
    for (int i = 0; i < depth; ++i) out_.append(**options_.indent);
  }

  void list(const Value& v, int depth) {
    const auto& items = as_list(v).items;
    out_.append("[", v.tainted);
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) separator(*options_.item_separator, v.tainted);
      new_line(depth + 1, v.tainted);
      print(items[i], depth + 1);
    }
    if (!items.empty()) new_line(depth, v.tainted);
    out_.append("]", v.tainted);
  }

  void dict(const Value& v, int depth) {
    std::vector<const std::pair<Value, Value>*> items;
    for (const auto& item : as_dict(v).items) items.push_back(&item);
    if (options_.sort_keys) {
      heap_.step(items.size() * 4);
      stable_sort_by(items, [this](auto* a, auto* b) { return less(heap_, a->first, b->first); });
    }
    out_.append("{", v.tainted);
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) separator(*options_.item_separator, v.tainted);
      new_line(depth + 1, v.tainted);
      key(items[i]->first);
      separator(*options_.key_separator, v.tainted);
      print(items[i]->second, depth + 1);
    }
    if (!items.empty()) new_line(depth, v.tainted);
    out_.append("}", v.tainted);
  }

  void key(const Value& v) {
    if (v.is_string()) return append_json(out_, *v.text, options_.ensure_ascii);
    if (!v.is_none() && !v.is_number()) {
      fail(fmt::format("keys must be str, int, float, bool or None, not {}", type_name(v)));
    }
    out_.append(fmt::format("\"{}\"", scalar(v)), v.tainted);
  }

  void separator(const Text& text, bool tainted) {
    tainted ? out_.append(text.bytes, true) : out_.append(text);
  }

  TextBuilder& out_;
  Heap& heap_;
  const JsonOptions& options_;
};

}  // namespace

void print_json(TextBuilder& out, Heap& heap, const Value& v, const JsonOptions& options) {
  JsonPrinter(out, heap, options).print(v, 0);
}

}  // namespace deepinfer::jinja
