#include "text/jinja_interp.h"

#include <fmt/format.h>

#include <algorithm>

namespace deepinfer::jinja {

const Value* Scope::find(NameId name) const {
  for (const auto& [id, value] : variables) {
    if (id == name) return &value;
  }
  return nullptr;
}

void Scope::set(NameId name, Value value) {
  for (auto& [id, old] : variables) {
    if (id == name) {
      old = std::move(value);
      return;
    }
  }
  variables.emplace_back(name, std::move(value));
}

Interpreter::DepthGuard::DepthGuard(Interpreter& i) : interpreter(i) {
  if (++i.depth_ > i.heap_.limits().depth) {
    --i.depth_;
    fail_budget(fmt::format(
        "the chat template nests deeper than {} evaluations: a macro or loop that calls itself too often",
        i.heap_.limits().depth));
  }
  i.heap_.step();
}

// Makes `scope` the current one until the end of the block.
struct Interpreter::ScopeGuard {
  ScopeGuard(Interpreter& i, Scope* scope) : interpreter(i), outer(std::exchange(i.scope_, scope)) {}
  ~ScopeGuard() { interpreter.scope_ = outer; }
  Interpreter& interpreter;
  Scope* outer;
};

Interpreter::Interpreter(const Program& program, Heap& heap, int64_t now)
    : program_(program),
      heap_(heap),
      now_(now),
      globals_(program.names.size()),
      defined_(program.names.size()),
      loop_name_(static_cast<NameId>(program.names.size())) {
  for (NameId id = 0; id < program.names.size(); ++id) {
    const std::string& name = program.names[id]->bytes;
    ids_.emplace(name, id);
    if (name == "loop") loop_name_ = id;
    const Value builtin = find_builtin(name);
    if (!builtin.is_undefined()) define(name, builtin);
  }
}

void Interpreter::define(std::string_view name, Value value) {
  const auto found = ids_.find(name);
  if (found == ids_.end()) return;  // the template does not mention it
  globals_[found->second] = std::move(value);
  defined_[found->second] = true;
}

Text Interpreter::run() {
  TextBuilder out;
  out_ = &out;
  scope_ = new_scope(nullptr);
  exec_body(program_.body);
  return out.take();
}

Scope* Interpreter::new_scope(Scope* parent) {
  Scope* scope = nullptr;
  if (free_scopes_.empty()) {
    scope = heap_.make<Scope>();
  } else {
    scope = free_scopes_.back();
    free_scopes_.pop_back();
  }
  scope->parent = parent;
  return scope;
}

void Interpreter::release(Scope* scope) {
  if (scope->captured) return;
  scope->variables.clear();
  free_scopes_.push_back(scope);
}

// Something keeps a pointer to the current scope: it and those around it must not be used again.
void Interpreter::capture() {
  for (Scope* s = scope_; s != nullptr && !s->captured; s = s->parent) s->captured = true;
}

void Interpreter::write(const Value& v) {
  print(*out_, v);
  heap_.copy_cost(v.is_string() ? v.bytes().size() : 64);
  if (out_->size() > heap_.limits().output_bytes) {
    fail_budget(
        fmt::format("the chat template writes more than its {} bytes: shorten the messages or the template",
                    heap_.limits().output_bytes));
  }
}

Interpreter::Flow Interpreter::exec_body(const Body& body) {
  for (const StmtPtr& stmt : body) {
    const Flow flow = exec(*stmt);
    if (flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

Interpreter::Flow Interpreter::exec(const Stmt& stmt) {
  const DepthGuard guard(*this);
  if (stmt.kind != StmtKind::kText) where_ = stmt.where;
  switch (stmt.kind) {
    case StmtKind::kText:
      write(Value::string(stmt.text));
      return Flow::kNext;
    case StmtKind::kOutput:
      exec_output(stmt);
      return Flow::kNext;
    case StmtKind::kIf:
      return exec_if(stmt);
    case StmtKind::kFor:
      return exec_for(stmt, eval(*stmt.exprs[0]), 0);
    case StmtKind::kSet:
      assign(stmt.targets[0], eval(*stmt.exprs[0]));
      return Flow::kNext;
    case StmtKind::kSetBlock:
    case StmtKind::kFilterBlock:
      exec_set_block(stmt);
      return Flow::kNext;
    case StmtKind::kMacro: {
      auto* macro = heap_.make<MacroObject>();
      macro->definition = stmt.macro.get();
      macro->closure = scope_;
      capture();
      scope_->set(stmt.macro->id, Value::of(Kind::kMacro, macro));
      return Flow::kNext;
    }
    case StmtKind::kCallBlock:
      exec_call_block(stmt);
      return Flow::kNext;
    case StmtKind::kWith:
      return exec_with(stmt);
    case StmtKind::kBreak:
      return Flow::kBreak;
    case StmtKind::kContinue:
      return Flow::kContinue;
    case StmtKind::kGeneration:
      write(render(stmt.bodies[0], scope_));
      return Flow::kNext;
  }
  return Flow::kNext;
}

void Interpreter::exec_output(const Stmt& stmt) {
  for (const ExprPtr& e : stmt.exprs) write(eval(*e));
}

Interpreter::Flow Interpreter::exec_if(const Stmt& stmt) {
  for (size_t i = 0; i < stmt.exprs.size(); ++i) {
    if (truthy(eval(*stmt.exprs[i]))) return exec_body(stmt.bodies[i]);
  }
  return stmt.bodies.size() > stmt.exprs.size() ? exec_body(stmt.bodies.back()) : Flow::kNext;
}

Interpreter::Flow Interpreter::exec_for(const Stmt& stmt, const Value& iterable, int depth) {
  auto* loop = heap_.make<LoopObject>(heap_, iterable);
  loop->depth0 = depth;
  loop->scope = scope_;
  if (stmt.recursive || stmt.exprs[1] != nullptr) capture();
  if (stmt.recursive) loop->recursive = &stmt;
  if (stmt.exprs[1] != nullptr) {
    Scope* outer = scope_;
    loop->filter = [this, &stmt, outer](const Value& item) {
      Scope* scope = new_scope(outer);
      bool keep = false;
      {
        const ScopeGuard guard(*this, scope);
        assign(stmt.targets[0], item);
        keep = truthy(eval(*stmt.exprs[1]));
      }
      release(scope);
      return keep;
    };
  }
  bool empty = true;
  Flow flow = loop_body(stmt, *loop, empty);
  if (empty && stmt.bodies.size() > 1) {
    Scope* scope = new_scope(scope_);
    const ScopeGuard guard(*this, scope);
    flow = exec_body(stmt.bodies[1]);
    release(scope);
    return flow;
  }
  return Flow::kNext;
}

Interpreter::Flow Interpreter::loop_body(const Stmt& stmt, LoopObject& loop, bool& empty) {
  for (Value item; loop.next(item);) {
    heap_.step();
    Scope* scope = new_scope(scope_);
    Flow flow = Flow::kNext;
    {
      const ScopeGuard guard(*this, scope);
      if (loop_name_ < program_.names.size()) scope->set(loop_name_, Value::of(Kind::kLoop, &loop));
      assign(stmt.targets[0], item);
      flow = exec_body(stmt.bodies[0]);
    }
    release(scope);
    // As in Jinja, a pass that break or continue cut short does not keep the else away.
    if (flow == Flow::kNext) empty = false;
    if (flow == Flow::kBreak) break;
  }
  return Flow::kNext;
}

Value Interpreter::render(const Body& body, Scope* outer) {
  TextBuilder builder;
  TextBuilder* before = std::exchange(out_, &builder);
  Scope* scope = new_scope(outer);
  {
    const ScopeGuard guard(*this, scope);
    exec_body(body);
  }
  release(scope);
  out_ = before;
  return heap_.text(builder);
}

void Interpreter::exec_set_block(const Stmt& stmt) {
  Value text = render(stmt.bodies[0], scope_);
  if (!stmt.exprs.empty()) {
    const Value before = std::exchange(piped_, std::move(text));
    text = eval(*stmt.exprs[0]);
    piped_ = before;
  }
  stmt.kind == StmtKind::kSetBlock ? assign(stmt.targets[0], text) : write(text);
}

void Interpreter::exec_call_block(const Stmt& stmt) {
  auto* caller = heap_.make<MacroObject>();
  caller->definition = stmt.macro.get();
  caller->closure = scope_;
  capture();
  const Expr& target = *stmt.exprs[0];
  const Value callee = eval(*target.args[0]);
  CallArgs args = eval_args(*target.call);
  args.keywords.emplace_back(constant_text("caller"), Value::of(Kind::kMacro, caller));
  write(call(callee, std::move(args)));
}

Interpreter::Flow Interpreter::exec_with(const Stmt& stmt) {
  std::vector<Value> values;
  for (const ExprPtr& e : stmt.exprs) values.push_back(eval(*e));
  Scope* scope = new_scope(scope_);
  Flow flow = Flow::kNext;
  {
    const ScopeGuard guard(*this, scope);
    for (size_t i = 0; i < values.size(); ++i) assign(stmt.targets[i], values[i]);
    flow = exec_body(stmt.bodies[0]);
  }
  release(scope);
  return flow;
}

void Interpreter::assign(const Target& target, const Value& value) {
  if (target.kind == Target::kName) return scope_->set(target.name, value);
  if (target.kind == Target::kMember) {
    const Value object = eval_name(target.name);
    if (object.kind != Kind::kNamespace) fail("cannot assign attribute on non-namespace object");
    if (target.member->bytes.starts_with('_')) {
      fail(fmt::format(
          "chat templates cannot store underscore-prefixed attributes on a namespace, but got '{}'",
          target.member->bytes));
    }
    static_cast<NamespaceObject*>(object.object)->attributes.set(heap_, Value::string(target.member), value);
    return;
  }
  if (!is_iterable(value)) fail(fmt::format("cannot unpack non-iterable {} object", type_name(value)));
  Cursor cursor(heap_, value);
  std::vector<Value> items;
  for (Value v; items.size() <= target.items.size() && cursor.next(v);) items.push_back(v);
  if (items.size() > target.items.size()) {
    fail(fmt::format("too many values to unpack (expected {})", target.items.size()));
  }
  if (items.size() < target.items.size()) {
    fail(fmt::format("not enough values to unpack (expected {}, got {})", target.items.size(), items.size()));
  }
  for (size_t i = 0; i < items.size(); ++i) assign(target.items[i], items[i]);
}

bool LoopObject::advance(Value& out) {
  while (cursor.next(out)) {
    if (!filter || filter(out)) return true;
  }
  return false;
}

bool LoopObject::next(Value& out) {
  if (!ahead_.empty()) {
    out = std::move(ahead_.front());
    ahead_.pop_front();
  } else if (!advance(out)) {
    return false;
  }
  ++index0;
  previous = std::move(current);
  current = out;
  return true;
}

const Value* LoopObject::peek() {
  if (ahead_.empty()) {
    Value v;
    if (!advance(v)) return nullptr;
    ahead_.push_back(std::move(v));
  }
  return &ahead_.front();
}

size_t LoopObject::length() {
  if (length_) return *length_;
  const auto known = filter ? std::nullopt : length_of(source);
  if (known) {
    length_ = known;
  } else {
    for (Value v; advance(v);) ahead_.push_back(v);
    length_ = ahead_.size() + static_cast<size_t>(index0 + 1);
  }
  return *length_;
}

Value LoopObject::attribute(std::string_view name) {
  if (name == "index") return Value::integer(index0 + 1);
  if (name == "index0") return Value::integer(index0);
  if (name == "first") return Value::boolean(index0 == 0);
  if (name == "last") return Value::boolean(peek() == nullptr);
  if (name == "length") return Value::integer(static_cast<Int>(length()));
  if (name == "revindex") return Value::integer(static_cast<Int>(length()) - index0);
  if (name == "revindex0") return Value::integer(static_cast<Int>(length()) - index0 - 1);
  if (name == "depth") return Value::integer(depth0 + 1);
  if (name == "depth0") return Value::integer(depth0);
  if (name == "previtem") return index0 == 0 ? Value::hint("there is no previous item") : previous;
  if (name == "nextitem") {
    const Value* next = peek();
    return next == nullptr ? Value::hint("there is no next item") : *next;
  }
  return Value::undefined(Missing::kAttribute, constant_text(name), Kind::kLoop);
}

bool LoopObject::changed(Heap& heap, const std::vector<Value>& values) {
  bool same = last_changed_ && last_changed_->size() == values.size();
  for (size_t i = 0; same && i < values.size(); ++i) same = equal(heap, (*last_changed_)[i], values[i]);
  if (!same) last_changed_ = values;
  return !same;
}

}  // namespace deepinfer::jinja
