#include <fmt/format.h>

#include <algorithm>

#include "text/jinja_parser.h"

namespace deepinfer::jinja {

ExprPtr Parser::make(ExprKind kind, Position where) const {
  auto node = std::make_unique<Expr>();
  node->kind = kind;
  node->where = where;
  return node;
}

void Parser::add(Expr& parent, ExprPtr child) const {
  if (child != nullptr) parent.height = std::max(parent.height, child->height + 1);
  if (parent.height > kMaxHeight) {
    fail_at(parent.where, fmt::format("expression of more than {} operators in a row: split it", kMaxHeight));
  }
  parent.args.push_back(std::move(child));
}

void Parser::set_call(Expr& parent, std::unique_ptr<CallExpr> call) const {
  int height = parent.height;
  for (const ExprPtr& arg : call->args) height = std::max(height, arg->height + 1);
  for (const auto& [name, arg] : call->keywords) height = std::max(height, arg->height + 1);
  if (call->star) height = std::max(height, call->star->height + 1);
  if (call->double_star) height = std::max(height, call->double_star->height + 1);
  parent.height = height;
  parent.call = std::move(call);
}

ExprPtr Parser::binary(Op op, ExprPtr left, ExprPtr right, Position where) const {
  ExprPtr node = make(ExprKind::kBinary, where);
  node->op = op;
  add(*node, std::move(left));
  add(*node, std::move(right));
  return node;
}

ExprPtr Parser::parse_expression(bool condition) {
  const DepthGuard guard(*this);
  return condition ? parse_condition() : parse_or();
}

ExprPtr Parser::parse_condition() {
  const size_t unknown_before = unknown_.size();
  ExprPtr node = parse_or();
  while (is_name("if")) {
    const Position where = next().where;
    ExprPtr out = make(ExprKind::kCondition, where);
    add(*out, parse_or());
    add(*out, std::move(node));
    if (skip_name("else")) {
      const DepthGuard guard(*this);
      add(*out, parse_condition());
    } else {
      add(*out, nullptr);
    }
    for (size_t i = unknown_before; i < unknown_.size(); ++i) unknown_[i].soft = true;
    node = std::move(out);
  }
  return node;
}

ExprPtr Parser::parse_or() {
  ExprPtr left = parse_and();
  while (is_name("or")) {
    ExprPtr node = make(ExprKind::kOr, next().where);
    add(*node, std::move(left));
    add(*node, parse_and());
    left = std::move(node);
  }
  return left;
}

ExprPtr Parser::parse_and() {
  ExprPtr left = parse_not();
  while (is_name("and")) {
    ExprPtr node = make(ExprKind::kAnd, next().where);
    add(*node, std::move(left));
    add(*node, parse_not());
    left = std::move(node);
  }
  return left;
}

ExprPtr Parser::parse_not() {
  if (!is_name("not")) return parse_compare();
  const DepthGuard guard(*this);
  ExprPtr node = make(ExprKind::kUnary, next().where);
  node->op = Op::kNot;
  add(*node, parse_not());
  return node;
}

ExprPtr Parser::parse_compare() {
  static constexpr std::pair<std::string_view, Op> kOps[] = {{"==", Op::kEqual},  {"!=", Op::kNotEqual},
                                                             {"<", Op::kLess},    {"<=", Op::kLessEqual},
                                                             {">", Op::kGreater}, {">=", Op::kGreaterEqual}};
  const Position where = current().where;
  ExprPtr first = parse_sum();
  ExprPtr node;
  for (;;) {
    Op op = Op::kEqual;
    const auto* found = std::ranges::find_if(kOps, [&](const auto& entry) { return is_op(entry.first); });
    if (found != std::end(kOps)) {
      op = found->second;
      next();
    } else if (skip_name("in")) {
      op = Op::kIn;
    } else if (is_name("not") && look().kind == TokenKind::kName && look().text == "in") {
      next();
      next();
      op = Op::kNotIn;
    } else {
      break;
    }
    if (node == nullptr) {
      node = make(ExprKind::kCompare, where);
      add(*node, std::move(first));
    }
    node->ops.push_back(op);
    add(*node, parse_sum());
  }
  return node != nullptr ? std::move(node) : std::move(first);
}

ExprPtr Parser::parse_sum() {
  ExprPtr left = parse_concat();
  while (is_op("+") || is_op("-")) {
    const Token op = next();
    left = binary(op.text == "+" ? Op::kAdd : Op::kSubtract, std::move(left), parse_concat(), op.where);
  }
  return left;
}

ExprPtr Parser::parse_concat() {
  ExprPtr first = parse_product();
  if (!is_op("~")) return first;
  ExprPtr node = make(ExprKind::kConcat, current().where);
  add(*node, std::move(first));
  while (skip_op("~")) add(*node, parse_product());
  return node;
}

ExprPtr Parser::parse_product() {
  static constexpr std::pair<std::string_view, Op> kOps[] = {
      {"*", Op::kMultiply}, {"/", Op::kDivide}, {"//", Op::kFloorDivide}, {"%", Op::kModulo}};
  ExprPtr left = parse_power();
  for (;;) {
    const auto* found = std::ranges::find_if(kOps, [&](const auto& entry) { return is_op(entry.first); });
    if (found == std::end(kOps)) return left;
    const Position where = next().where;
    left = binary(found->second, std::move(left), parse_power(), where);
  }
}

ExprPtr Parser::parse_power() {
  ExprPtr left = parse_unary();
  while (is_op("**")) {
    const Position where = next().where;
    left = binary(Op::kPower, std::move(left), parse_unary(), where);
  }
  return left;
}

ExprPtr Parser::parse_unary(bool filters) {
  ExprPtr node;
  if (is_op("-") || is_op("+")) {
    const DepthGuard guard(*this);
    const Token op = next();
    node = make(ExprKind::kUnary, op.where);
    node->op = op.text == "-" ? Op::kNegative : Op::kPositive;
    add(*node, parse_unary(false));
  } else {
    node = parse_primary();
  }
  node = parse_postfix(std::move(node));
  return filters ? parse_filters(std::move(node)) : std::move(node);
}

ExprPtr Parser::parse_name() {
  const Token token = next();
  ExprPtr node = make(ExprKind::kConst, token.where);
  const std::string& name = token.text;
  if (name == "true" || name == "True" || name == "false" || name == "False") {
    node->constant = Value::boolean(name == "true" || name == "True");
  } else if (name == "none" || name == "None") {
    node->constant = Value::none();
  } else {
    node->kind = ExprKind::kName;
    node->name = intern(name);
    for (MacroDef* macro : macros_) {
      macro->uses_caller |= name == "caller";
      macro->uses_keywords |= name == "kwargs";
      macro->uses_varargs |= name == "varargs";
    }
  }
  return node;
}

ExprPtr Parser::parse_primary() {
  const Token& token = current();
  ExprPtr node = make(ExprKind::kConst, token.where);
  if (token.kind == TokenKind::kName) return parse_name();
  if (token.kind == TokenKind::kString) {
    std::string value;
    while (current().kind == TokenKind::kString) value += next().text;
    node->constant = Value::string(constant_text(value));
  } else if (token.kind == TokenKind::kInteger) {
    node->constant = Value::integer(next().integer);
  } else if (token.kind == TokenKind::kFloat) {
    node->constant = Value::real(next().real);
  } else if (skip_op("(")) {
    node = parse_tuple(true, true);
    expect_op(")");
  } else if (is_op("[")) {
    return parse_list();
  } else if (is_op("{")) {
    return parse_dict();
  } else {
    fail_here(fmt::format("got {}, expected an expression", describe(token)));
  }
  return node;
}

ExprPtr Parser::parse_list() {
  ExprPtr node = make(ExprKind::kList, next().where);
  while (!is_op("]")) {
    if (!node->args.empty()) expect_op(",");
    if (is_op("]")) break;
    add(*node, parse_expression());
  }
  next();
  return node;
}

ExprPtr Parser::parse_dict() {
  ExprPtr node = make(ExprKind::kDict, next().where);
  while (!is_op("}")) {
    if (!node->args.empty()) expect_op(",");
    if (is_op("}")) break;
    add(*node, parse_expression());
    expect_op(":");
    add(*node, parse_expression());
  }
  next();
  return node;
}

ExprPtr Parser::parse_tuple(bool condition, bool parentheses) {
  const Position where = current().where;
  ExprPtr node = make(ExprKind::kTuple, where);
  bool is_tuple = false;
  for (;;) {
    if (!node->args.empty()) expect_op(",");
    const TokenKind kind = current().kind;
    if (kind == TokenKind::kVariableEnd || kind == TokenKind::kBlockEnd || is_op(")")) break;
    add(*node, parse_expression(condition));
    if (!is_op(",")) break;
    is_tuple = true;
  }
  if (is_tuple) return node;
  if (!node->args.empty()) return std::move(node->args[0]);
  if (!parentheses) fail_here(fmt::format("got {}, expected an expression", describe(current())));
  return node;
}

ExprPtr Parser::parse_postfix(ExprPtr node) {
  for (;;) {
    if (is_op(".") || is_op("[")) {
      node = parse_subscript(std::move(node));
    } else if (is_op("(")) {
      node = parse_call(std::move(node));
    } else {
      return node;
    }
  }
}

ExprPtr Parser::parse_filters(ExprPtr node) {
  for (;;) {
    if (is_op("|")) {
      node = parse_filter(std::move(node), false);
    } else if (is_name("is")) {
      node = parse_test(std::move(node));
    } else if (is_op("(")) {
      node = parse_call(std::move(node));
    } else {
      return node;
    }
  }
}

ExprPtr Parser::parse_subscript(ExprPtr node) {
  const Token token = next();
  ExprPtr out = make(ExprKind::kItem, token.where);
  add(*out, std::move(node));
  if (token.text == ".") {
    const Token name = next();
    if (name.kind == TokenKind::kName) {
      out->kind = ExprKind::kAttribute;
      out->text = program_->names[intern(name.text)];
      return out;
    }
    if (name.kind != TokenKind::kInteger) {
      fail_at(name.where, fmt::format("got {}, expected a name or number after '.'", describe(name)));
    }
    ExprPtr index = make(ExprKind::kConst, name.where);
    index->constant = Value::integer(name.integer);
    add(*out, std::move(index));
    return out;
  }
  ExprPtr index = is_op("]") ? make(ExprKind::kTuple, token.where) : parse_subscribed();
  if (is_op(",")) {
    ExprPtr tuple = make(ExprKind::kTuple, token.where);
    add(*tuple, std::move(index));
    while (skip_op(",")) add(*tuple, parse_subscribed());
    index = std::move(tuple);
  }
  expect_op("]");
  add(*out, std::move(index));
  return out;
}

ExprPtr Parser::parse_subscribed() {
  const Position where = current().where;
  ExprPtr first;
  if (!is_op(":")) {
    first = parse_expression();
    if (!is_op(":")) return first;
  }
  ExprPtr node = make(ExprKind::kSlice, where);
  add(*node, std::move(first));
  for (int i = 0; i < 2; ++i) {
    const bool colon = skip_op(":");
    add(*node, colon && !is_op(":") && !is_op("]") && !is_op(",") ? parse_expression() : nullptr);
  }
  return node;
}

}  // namespace deepinfer::jinja
