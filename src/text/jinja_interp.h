// Runs a Program. One interpreter renders once, on one thread.
#pragma once

#include <deque>
#include <functional>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "text/jinja_ast.h"
#include "text/jinja_builtins.h"
#include "text/jinja_ops.h"

namespace deepinfer::jinja {

// Variables of one loop pass, macro call or block. Reused for the next pass unless a macro was defined in it.
struct Scope : Object {
  Scope* parent = nullptr;
  std::vector<std::pair<NameId, Value>> variables;
  bool captured = false;

  const Value* find(NameId name) const;  // here only
  void set(NameId name, Value value);
};

struct MacroObject : Object {
  const MacroDef* definition = nullptr;
  Scope* closure = nullptr;
};

// The `loop` of a for: reads ahead only when the template asks for something that needs it.
struct LoopObject : Object {
  LoopObject(Heap& heap, const Value& iterable) : cursor(heap, iterable), source(iterable) {}

  Cursor cursor;
  Value source;
  std::function<bool(const Value&)> filter;  // of `for x in y if ...`
  Int index0 = -1;
  int depth0 = 0;
  const Stmt* recursive = nullptr;
  Scope* scope = nullptr;  // around the for
  Value previous, current;

  bool next(Value& out);
  const Value* peek();  // null at the end
  size_t length();
  Value attribute(std::string_view name);
  bool changed(Heap& heap, const std::vector<Value>& values);

 private:
  bool advance(Value& out);
  std::deque<Value> ahead_;
  std::optional<size_t> length_;
  std::optional<std::vector<Value>> last_changed_;
};

class Interpreter {
 public:
  Interpreter(const Program& program, Heap& heap, int64_t now);

  void define(std::string_view name, Value value);
  Text run();  // throws Failure

  Position where() const { return where_; }  // of what was evaluated last

 private:
  enum class Flow : uint8_t { kNext, kBreak, kContinue };

  struct DepthGuard {
    explicit DepthGuard(Interpreter& i);
    ~DepthGuard() { --interpreter.depth_; }
    Interpreter& interpreter;
  };
  struct ScopeGuard;

  // statements: jinja_interp.cpp
  Flow exec_body(const Body& body);
  Flow exec(const Stmt& stmt);
  void exec_output(const Stmt& stmt);
  Flow exec_if(const Stmt& stmt);
  Flow exec_for(const Stmt& stmt, const Value& iterable, int depth);
  Flow loop_body(const Stmt& stmt, LoopObject& loop, bool& empty);
  void exec_set_block(const Stmt& stmt);
  void exec_call_block(const Stmt& stmt);
  Flow exec_with(const Stmt& stmt);
  Value render(const Body& body, Scope* scope);  // into a string
  void assign(const Target& target, const Value& value);
  void write(const Value& v);

  // expressions: jinja_eval.cpp
  Value eval(const Expr& e);
  Value eval_or_none(const ExprPtr& e);
  Value eval_name(NameId name);
  Value eval_concat(const Expr& e);
  Value eval_compare(const Expr& e);
  Value eval_collection(const Expr& e);
  Value eval_item(const Expr& e);
  Value eval_call(const Expr& e);
  Value eval_filter(const Expr& e);
  Value eval_test(const Expr& e);
  CallArgs eval_args(const CallExpr& call);
  Value call(const Value& callee, CallArgs args);
  Value call_macro(const MacroObject& macro, CallArgs args);
  void bind_macro(const MacroDef& macro, CallArgs& args, Scope& scope);
  Value call_loop(LoopObject& loop, const CallArgs& args);

  Scope* new_scope(Scope* parent);
  void release(Scope* scope);
  void capture();

  const Program& program_;
  Heap& heap_;
  int64_t now_;
  std::vector<Value> globals_;  // by NameId; undefined where there is none
  std::vector<bool> defined_;
  std::unordered_map<std::string_view, NameId> ids_;
  Scope* scope_ = nullptr;
  std::vector<Scope*> free_scopes_;
  TextBuilder* out_ = nullptr;
  Value piped_;
  int depth_ = 0;
  NameId loop_name_ = 0;  // names_.size() when no one asks for `loop`
  Position where_;
};

}  // namespace deepinfer::jinja
