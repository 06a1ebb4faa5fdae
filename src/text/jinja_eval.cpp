#include <fmt/format.h>

#include <algorithm>

#include "text/jinja_interp.h"

namespace deepinfer::jinja {

Value Interpreter::eval(const Expr& e) {
  if (e.kind == ExprKind::kConst) return e.constant;
  const DepthGuard guard(*this);
  where_ = e.where;
  switch (e.kind) {
    case ExprKind::kName:
      return eval_name(e.name);
    case ExprKind::kList:
    case ExprKind::kTuple:
    case ExprKind::kDict:
      return eval_collection(e);
    case ExprKind::kUnary:
      return unary(e.op, eval(*e.args[0]));
    case ExprKind::kBinary: {
      const Value left = eval(*e.args[0]);
      const Value right = eval(*e.args[1]);
      where_ = e.where;
      return arithmetic(heap_, e.op, left, right);
    }
    case ExprKind::kConcat:
      return eval_concat(e);
    case ExprKind::kAnd:
    case ExprKind::kOr: {
      Value left = eval(*e.args[0]);
      return truthy(left) == (e.kind == ExprKind::kOr) ? left : eval(*e.args[1]);
    }
    case ExprKind::kCompare:
      return eval_compare(e);
    case ExprKind::kCondition:
      if (truthy(eval(*e.args[0]))) return eval(*e.args[1]);
      if (e.args[2] != nullptr) return eval(*e.args[2]);
      return Value::hint("the inline if-expression evaluated to false and no else section was defined.");
    case ExprKind::kAttribute: {
      const Value object = eval(*e.args[0]);
      where_ = e.where;
      return attribute_of(heap_, object, e.text);
    }
    case ExprKind::kItem:
      return eval_item(e);
    case ExprKind::kCall:
      return eval_call(e);
    case ExprKind::kFilter:
      return eval_filter(e);
    case ExprKind::kTest:
      return eval_test(e);
    case ExprKind::kPiped:
      return piped_;
    case ExprKind::kSlice:
    case ExprKind::kConst:
      break;
  }
  fail("a slice cannot stand inside a tuple of indices");
}

Value Interpreter::eval_or_none(const ExprPtr& e) {
  return e == nullptr ? Value::none() : eval(*e);
}

Value Interpreter::eval_name(NameId name) {
  for (const Scope* scope = scope_; scope != nullptr; scope = scope->parent) {
    if (const Value* found = scope->find(name)) return *found;
  }
  if (defined_[name]) return globals_[name];
  return Value::undefined(Missing::kName, program_.names[name]);
}

Value Interpreter::eval_concat(const Expr& e) {
  TextBuilder builder;
  for (const ExprPtr& part : e.args) print(builder, eval(*part));
  return heap_.text(builder);
}

Value Interpreter::eval_compare(const Expr& e) {
  Value left = eval(*e.args[0]);
  for (size_t i = 0; i < e.ops.size(); ++i) {
    Value right = eval(*e.args[i + 1]);
    where_ = e.where;
    if (!compare(heap_, e.ops[i], left, right)) return Value::boolean(false);
    left = std::move(right);
  }
  return Value::boolean(true);
}

Value Interpreter::eval_collection(const Expr& e) {
  if (e.kind == ExprKind::kDict) {
    DictObject* dict = heap_.dict();
    for (size_t i = 0; i < e.args.size(); i += 2) {
      Value key = eval(*e.args[i]);
      check_hashable(key);
      dict->set(heap_, std::move(key), eval(*e.args[i + 1]));
    }
    return Value::of(Kind::kDict, dict);
  }
  std::vector<Value> items;
  items.reserve(e.args.size());
  for (const ExprPtr& item : e.args) items.push_back(eval(*item));
  return heap_.list(std::move(items), e.kind == ExprKind::kList ? Kind::kList : Kind::kTuple);
}

Value Interpreter::eval_item(const Expr& e) {
  const Value object = eval(*e.args[0]);
  const Expr& index = *e.args[1];
  if (index.kind != ExprKind::kSlice) {
    const Value key = eval(index);
    where_ = e.where;
    return item_of(heap_, object, key);
  }
  const Value start = eval_or_none(index.args[0]);
  const Value stop = eval_or_none(index.args[1]);
  const Value step = eval_or_none(index.args[2]);
  where_ = e.where;
  return slice_of(heap_, object, start, stop, step);
}

CallArgs Interpreter::eval_args(const CallExpr& call) {
  CallArgs out;
  out.args.reserve(call.args.size());
  for (const ExprPtr& arg : call.args) out.args.push_back(eval(*arg));
  for (const auto& [name, arg] : call.keywords) {
    for (const auto& [other, value] : out.keywords) {
      if (other->bytes == name->bytes) fail(fmt::format("keyword argument repeated: {}", name->bytes));
    }
    out.keywords.emplace_back(name, eval(*arg));
  }
  if (call.star) {
    for (const Value& v : collect(heap_, eval(*call.star))) out.args.push_back(v);
  }
  if (call.double_star) {
    const Value more = eval(*call.double_star);
    if (more.kind != Kind::kDict)
      fail(fmt::format("argument after ** must be a mapping, not {}", type_name(more)));
    for (const auto& [key, value] : as_dict(more).items) {
      if (!key.is_string()) fail("keywords must be strings");
      out.keywords.emplace_back(key.text, value);
    }
  }
  return out;
}

Value Interpreter::eval_call(const Expr& e) {
  const Expr& target = *e.args[0];
  if (target.kind == ExprKind::kAttribute) {  // a method, without making an object of it
    const Value self = eval(*target.args[0]);
    if (const MethodEntry* method = find_method(self.kind, target.text->bytes)) {
      const CallArgs args = eval_args(*e.call);
      where_ = e.where;
      return method->run(heap_, self, args);
    }
    const Value callee = attribute_of(heap_, self, target.text);
    CallArgs args = eval_args(*e.call);
    where_ = e.where;
    return call(callee, std::move(args));
  }
  const Value callee = eval(target);
  CallArgs args = eval_args(*e.call);
  where_ = e.where;
  return call(callee, std::move(args));
}

Value Interpreter::call(const Value& callee, CallArgs args) {
  switch (callee.kind) {
    case Kind::kUndefined:
      fail_undefined(callee);
    case Kind::kFunction:
      return call_builtin(heap_, static_cast<Builtin>(callee.detail), args, now_);
    case Kind::kMethod: {
      const auto& method = static_cast<const MethodObject&>(*callee.object);
      return method.entry->run(heap_, method.self, args);
    }
    case Kind::kMacro:
      return call_macro(static_cast<const MacroObject&>(*callee.object), std::move(args));
    case Kind::kLoop:
      return call_loop(static_cast<LoopObject&>(*callee.object), args);
    default:
      fail(fmt::format("'{}' object is not callable", type_name(callee)));
  }
}

Value Interpreter::call_loop(LoopObject& loop, const CallArgs& args) {
  const BoundArgs bound("loop", args, {"iterable"}, 1);
  if (loop.recursive == nullptr) {
    fail("The loop must have the 'recursive' marker to be called recursively.");
  }
  TextBuilder builder;
  TextBuilder* before = std::exchange(out_, &builder);
  Scope* outer = std::exchange(scope_, loop.scope);
  exec_for(*loop.recursive, bound[0], loop.depth0 + 1);
  scope_ = outer;
  out_ = before;
  return heap_.text(builder);
}

// The arguments of the call become the first variables of the macro's scope.
void Interpreter::bind_macro(const MacroDef& macro, CallArgs& args, Scope& scope) {
  const size_t count = macro.parameters.size();
  const size_t first_default = count - macro.defaults.size();
  const auto take = [&args](std::string_view name) -> std::optional<Value> {
    const auto found =
        std::ranges::find_if(args.keywords, [&](const auto& k) { return k.first->bytes == name; });
    if (found == args.keywords.end()) return std::nullopt;
    Value value = found->second;
    args.keywords.erase(found);
    return value;
  };
  std::vector<std::optional<Value>> given(count);
  for (size_t i = 0; i < count; ++i) {
    given[i] = i < args.args.size() ? std::optional(args.args[i]) : take(macro.parameter_names[i]->bytes);
  }
  const bool explicit_caller =
      std::ranges::any_of(macro.parameter_names, [](const TextPtr& n) { return n->bytes == "caller"; });
  if (macro.uses_caller && !explicit_caller) {
    const auto caller = take("caller");
    scope.set(ids_.at("caller"), caller ? *caller : Value::hint("No caller defined"));
  }
  if (macro.uses_keywords) {
    DictObject* dict = heap_.dict();
    for (const auto& [name, value] : args.keywords) dict->set(heap_, Value::string(name), value);
    scope.set(ids_.at("kwargs"), Value::of(Kind::kDict, dict));
  } else if (!args.keywords.empty()) {
    fail(fmt::format("macro '{}' takes no keyword argument '{}'", macro.name->bytes,
                     args.keywords[0].first->bytes));
  }
  if (macro.uses_varargs) {
    std::vector<Value> more;
    for (size_t i = count; i < args.args.size(); ++i) more.push_back(args.args[i]);
    scope.set(ids_.at("varargs"), heap_.list(std::move(more), Kind::kTuple));
  } else if (args.args.size() > count) {
    fail(fmt::format("macro '{}' takes not more than {} argument(s)", macro.name->bytes, count));
  }
  for (size_t i = 0; i < count; ++i) {
    Value value;
    if (given[i]) {
      value = *given[i];
    } else if (i >= first_default) {
      value = eval(*macro.defaults[i - first_default]);
    } else {
      value = Value::hint(fmt::format("parameter '{}' was not provided", macro.parameter_names[i]->bytes));
    }
    scope.set(macro.parameters[i], value);
  }
}

Value Interpreter::call_macro(const MacroObject& macro, CallArgs args) {
  const DepthGuard guard(*this);
  Scope* scope = new_scope(macro.closure);
  Scope* outer = std::exchange(scope_, scope);
  bind_macro(*macro.definition, args, *scope);
  TextBuilder builder;
  TextBuilder* before = std::exchange(out_, &builder);
  exec_body(macro.definition->body);
  out_ = before;
  scope_ = outer;
  release(scope);
  return heap_.text(builder);
}

Value Interpreter::eval_filter(const Expr& e) {
  if (e.filter == nullptr) fail(fmt::format("no filter named '{}'", e.text->bytes));
  const Value input = eval(*e.args[0]);
  const CallArgs args = eval_args(*e.call);
  where_ = e.where;
  return e.filter->run(heap_, input, args);
}

Value Interpreter::eval_test(const Expr& e) {
  if (e.test == nullptr) fail(fmt::format("no test named '{}'", e.text->bytes));
  const Value input = eval(*e.args[0]);
  const CallArgs args = eval_args(*e.call);
  where_ = e.where;
  return Value::boolean(e.test->run(heap_, input, args));
}

}  // namespace deepinfer::jinja
