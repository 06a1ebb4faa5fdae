// Tokens to a Program, by recursive descent with bounded depth. Internal: use parse_program (jinja_ast.h).
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "text/jinja_ast.h"

namespace deepinfer::jinja {

class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}
  std::unique_ptr<Program> run();

 private:
  // Nested tags and brackets; a chain of operators adds to the height of its tree instead.
  static constexpr int kMaxDepth = 100;
  static constexpr int kMaxHeight = 250;

  struct DepthGuard {
    explicit DepthGuard(Parser& p);
    ~DepthGuard() { --parser.depth_; }
    Parser& parser;
  };

  // tokens
  const Token& current() const { return tokens_[at_]; }
  const Token& look() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  Token next();
  bool is_op(std::string_view op) const;
  bool is_name(std::string_view name) const;
  bool skip_op(std::string_view op);
  bool skip_name(std::string_view name);
  void expect_op(std::string_view op);
  std::string expect_name();
  void expect_block_end();
  [[noreturn]] void fail_here(std::string message) const;
  [[noreturn]] static void fail_at(Position where, std::string message);

  // statements: jinja_parser.cpp
  Body parse_body(std::initializer_list<std::string_view> ends);  // the end tag is the current token
  Body parse_statements(std::initializer_list<std::string_view> ends);
  Body parse_hard(std::initializer_list<std::string_view> ends);
  StmtPtr parse_statement();
  StmtPtr parse_for(Position where);
  StmtPtr parse_if(Position where);
  StmtPtr parse_set(Position where);
  StmtPtr parse_macro(Position where);
  StmtPtr parse_call_block(Position where);
  StmtPtr parse_filter_block(Position where);
  StmtPtr parse_with(Position where);
  StmtPtr parse_print(Position where);
  StmtPtr parse_loop_control(Position where, StmtKind kind);
  void parse_signature(MacroDef& macro);
  void finish_macro(MacroDef& macro, std::string_view end);
  Target parse_target(bool tuple, bool members);
  Target parse_target_item(bool members);
  [[noreturn]] void fail_tag(const Token& tag) const;

  // expressions: jinja_parser_expr.cpp
  ExprPtr parse_expression(bool condition = true);
  ExprPtr parse_condition();
  ExprPtr parse_or();
  ExprPtr parse_and();
  ExprPtr parse_not();
  ExprPtr parse_compare();
  ExprPtr parse_sum();
  ExprPtr parse_concat();
  ExprPtr parse_product();
  ExprPtr parse_power();
  ExprPtr parse_unary(bool filters = true);
  ExprPtr parse_primary();
  ExprPtr parse_name();
  ExprPtr parse_list();
  ExprPtr parse_dict();
  ExprPtr parse_tuple(bool condition = true, bool parentheses = false);
  ExprPtr parse_postfix(ExprPtr node);
  ExprPtr parse_filters(ExprPtr node);
  ExprPtr parse_subscript(ExprPtr node);
  ExprPtr parse_subscribed();
  ExprPtr parse_call(ExprPtr node);
  ExprPtr parse_filter(ExprPtr node, bool start_inline);
  ExprPtr parse_test(ExprPtr node);
  std::unique_ptr<CallExpr> parse_call_args();

  // nodes
  ExprPtr make(ExprKind kind, Position where) const;
  ExprPtr binary(Op op, ExprPtr left, ExprPtr right, Position where) const;
  void add(Expr& parent, ExprPtr child) const;  // keeps the height
  void set_call(Expr& parent, std::unique_ptr<CallExpr> call) const;
  NameId intern(std::string_view name);
  void unknown(Position where, std::string message);

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;
  int loops_ = 0;  // around the current statement, inside the current macro
  int fors_ = 0;   // around the current token, wherever
  bool soft_ = false;
  // Unknown filters and tests are errors at once, except where an if decides whether they are reached.
  struct Unknown {
    Position where;
    std::string message;
    bool soft;
  };
  std::vector<Unknown> unknown_;
  std::vector<MacroDef*> macros_;  // that the current token is inside of
  std::unordered_map<std::string, NameId> ids_;
  std::unique_ptr<Program> program_ = std::make_unique<Program>();
};

}  // namespace deepinfer::jinja
