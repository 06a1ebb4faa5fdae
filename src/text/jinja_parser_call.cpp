// Calls, filters and tests.
#include <fmt/format.h>

#include <algorithm>

#include "text/jinja_builtins.h"
#include "text/jinja_parser.h"

namespace deepinfer::jinja {

std::unique_ptr<CallExpr> Parser::parse_call_args() {
  const Position where = current().where;
  expect_op("(");
  auto call = std::make_unique<CallExpr>();
  bool comma = false;
  const auto ensure = [&](bool ok) {
    if (!ok) fail_at(where, "invalid order of arguments in a call");
  };
  while (!is_op(")")) {
    if (comma) {
      expect_op(",");
      if (is_op(")")) break;
    }
    comma = true;
    if (skip_op("*")) {
      ensure(!call->star && !call->double_star);
      call->star = parse_expression();
    } else if (skip_op("**")) {
      ensure(!call->double_star);
      call->double_star = parse_expression();
    } else if (current().kind == TokenKind::kName && look().kind == TokenKind::kOperator &&
               look().text == "=") {
      ensure(!call->double_star);
      const TextPtr name = program_->names[intern(next().text)];
      next();
      call->keywords.emplace_back(name, parse_expression());
    } else {
      ensure(!call->star && !call->double_star && call->keywords.empty());
      call->args.push_back(parse_expression());
    }
  }
  next();
  return call;
}

ExprPtr Parser::parse_call(ExprPtr node) {
  static constexpr std::string_view kRefused[] = {"cycler", "joiner", "lipsum"};
  if (node->kind == ExprKind::kName &&
      std::ranges::find(kRefused, program_->names[node->name]->bytes) != std::end(kRefused)) {
    fail_at(node->where, fmt::format("unsupported function '{}': supported are range, namespace, dict, "
                                     "raise_exception and strftime_now",
                                     program_->names[node->name]->bytes));
  }
  ExprPtr out = make(ExprKind::kCall, current().where);
  add(*out, std::move(node));
  set_call(*out, parse_call_args());
  return out;
}

ExprPtr Parser::parse_filter(ExprPtr node, bool start_inline) {
  while (start_inline || is_op("|")) {
    if (!start_inline) next();
    start_inline = false;
    const Position where = current().where;
    std::string name = expect_name();
    while (skip_op(".")) name += "." + expect_name();
    ExprPtr out = make(ExprKind::kFilter, where);
    out->text = constant_text(name);
    out->filter = find_filter(name);
    if (out->filter == nullptr) {
      if (is_refused_filter(name)) {
        fail_at(where, fmt::format("unsupported filter '{}': supported are {}", name, filter_names()));
      }
      unknown(where, fmt::format("no filter named '{}': supported are {}", name, filter_names()));
    }
    add(*out, std::move(node));
    set_call(*out, is_op("(") ? parse_call_args() : std::make_unique<CallExpr>());
    node = std::move(out);
  }
  return node;
}

ExprPtr Parser::parse_test(ExprPtr node) {
  const Position where = next().where;
  const bool negated = skip_name("not");
  std::string name = expect_name();
  while (skip_op(".")) name += "." + expect_name();
  ExprPtr out = make(ExprKind::kTest, where);
  out->text = constant_text(name);
  out->test = find_test(name);
  if (out->test == nullptr)
    unknown(where, fmt::format("no test named '{}': supported are {}", name, test_names()));
  add(*out, std::move(node));
  const TokenKind kind = current().kind;
  const bool operand = kind == TokenKind::kName || kind == TokenKind::kString ||
                       kind == TokenKind::kInteger || kind == TokenKind::kFloat || is_op("[") || is_op("{");
  if (is_op("(")) {
    set_call(*out, parse_call_args());
  } else {
    auto call = std::make_unique<CallExpr>();
    if (operand && !is_name("else") && !is_name("or") && !is_name("and")) {
      if (is_name("is")) fail_here("tests cannot be chained with 'is'");
      call->args.push_back(parse_postfix(parse_primary()));
    }
    set_call(*out, std::move(call));
  }
  if (!negated) return out;
  ExprPtr inverse = make(ExprKind::kUnary, where);
  inverse->op = Op::kNot;
  add(*inverse, std::move(out));
  return inverse;
}

}  // namespace deepinfer::jinja
