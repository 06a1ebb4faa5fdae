// The parsed template. Built by the parser, then immutable: any number of threads may run it.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "text/jinja_lexer.h"
#include "text/jinja_value.h"

namespace deepinfer::jinja {

struct FilterEntry;
struct TestEntry;
struct Expr;
struct Stmt;
using ExprPtr = std::unique_ptr<Expr>;
using StmtPtr = std::unique_ptr<Stmt>;
using Body = std::vector<StmtPtr>;
using NameId = uint32_t;  // index into Program::names

enum class ExprKind : uint8_t {
  kConst,
  kName,
  kList,
  kTuple,
  kDict,   // args: key, value, key, value
  kUnary,  // op
  kBinary,
  kConcat,
  kAnd,
  kOr,
  kCompare,    // args[0] ops[0] args[1] ops[1] args[2]
  kCondition,  // args: test, then, else (may be null)
  kAttribute,  // args[0].text
  kItem,       // args[0][args[1]]
  kSlice,      // args: start, stop, step, each may be null; only as args[1] of kItem
  kCall,       // args[0](call)
  kFilter,     // args[0] | text(call)
  kTest,       // args[0] is text(call)
  kPiped,      // what a {% filter %} or {% set %} block rendered
};

enum class Op : uint8_t {
  kNot,
  kNegative,
  kPositive,
  kAdd,
  kSubtract,
  kMultiply,
  kDivide,
  kFloorDivide,
  kModulo,
  kPower,
  kEqual,
  kNotEqual,
  kLess,
  kLessEqual,
  kGreater,
  kGreaterEqual,
  kIn,
  kNotIn,
};

struct CallExpr {
  std::vector<ExprPtr> args;
  std::vector<std::pair<TextPtr, ExprPtr>> keywords;
  ExprPtr star, double_star;
};

struct Expr {
  ExprKind kind = ExprKind::kConst;
  Op op = Op::kAdd;
  int height = 1;  // of the tree below: bounds the recursion of whoever walks it
  Position where;
  NameId name = 0;
  Value constant;
  TextPtr text;
  std::vector<ExprPtr> args;
  std::vector<Op> ops;
  std::unique_ptr<CallExpr> call;
  const FilterEntry* filter = nullptr;  // null: unknown, an error when it is reached
  const TestEntry* test = nullptr;
};

struct Target {  // of set, for and with
  enum Kind : uint8_t { kName, kMember, kTuple } kind = kName;
  NameId name = 0;
  TextPtr member;
  std::vector<Target> items;
  Position where;
};

struct MacroDef {
  TextPtr name;
  NameId id = 0;
  std::vector<NameId> parameters;
  std::vector<TextPtr> parameter_names;
  std::vector<ExprPtr> defaults;  // of the last parameters
  bool uses_caller = false, uses_keywords = false, uses_varargs = false;
  Body body;
};

enum class StmtKind : uint8_t {
  kText,
  kOutput,    // exprs
  kIf,        // exprs[i] decides bodies[i]; one more body: else
  kFor,       // targets[0], exprs: iterable, test (may be null); bodies: loop, else
  kSet,       // targets[0] = exprs[0]
  kSetBlock,  // targets[0] = bodies[0], through exprs[0] if there is one
  kMacro,
  kCallBlock,    // exprs[0] is the call, macro the body
  kFilterBlock,  // exprs[0] over bodies[0]
  kWith,         // targets[i] = exprs[i] for bodies[0]
  kBreak,
  kContinue,
  kGeneration,  // bodies[0]
};

struct Stmt {
  StmtKind kind = StmtKind::kText;
  bool recursive = false;
  Position where;
  TextPtr text;
  std::vector<ExprPtr> exprs;
  std::vector<Target> targets;
  std::vector<Body> bodies;
  std::unique_ptr<MacroDef> macro;
};

struct Program {
  Body body;
  std::vector<TextPtr> names;  // by NameId
};

// Throws SyntaxFailure.
std::unique_ptr<Program> parse_program(std::string_view source);

}  // namespace deepinfer::jinja
