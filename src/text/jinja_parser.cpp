#include "text/jinja_parser.h"

#include <fmt/format.h>

#include <algorithm>

namespace deepinfer::jinja {

Parser::DepthGuard::DepthGuard(Parser& p) : parser(p) {
  if (++parser.depth_ > kMaxDepth) {
    parser.fail_here(fmt::format("nested deeper than {} levels: simplify the template", kMaxDepth));
  }
}

Token Parser::next() {
  Token token = current();
  if (at_ + 1 < tokens_.size()) ++at_;
  return token;
}

bool Parser::is_op(std::string_view op) const {
  return current().kind == TokenKind::kOperator && current().text == op;
}

bool Parser::is_name(std::string_view name) const {
  return current().kind == TokenKind::kName && current().text == name;
}

bool Parser::skip_op(std::string_view op) {
  if (!is_op(op)) return false;
  next();
  return true;
}

bool Parser::skip_name(std::string_view name) {
  if (!is_name(name)) return false;
  next();
  return true;
}

void Parser::expect_op(std::string_view op) {
  if (!skip_op(op)) fail_here(fmt::format("got {}, expected '{}'", describe(current()), op));
}

std::string Parser::expect_name() {
  if (current().kind != TokenKind::kName)
    fail_here(fmt::format("got {}, expected a name", describe(current())));
  return next().text;
}

void Parser::expect_block_end() {
  if (current().kind != TokenKind::kBlockEnd)
    fail_here(fmt::format("got {}, expected '%}}'", describe(current())));
  next();
}

void Parser::fail_here(std::string message) const {
  fail_at(current().where, std::move(message));
}

void Parser::fail_at(Position where, std::string message) {
  throw SyntaxFailure{where, std::move(message)};
}

NameId Parser::intern(std::string_view name) {
  const auto [entry, fresh] =
      ids_.try_emplace(std::string(name), static_cast<NameId>(program_->names.size()));
  if (fresh) program_->names.push_back(constant_text(name));
  return entry->second;
}

void Parser::unknown(Position where, std::string message) {
  unknown_.push_back({where, std::move(message), soft_});
}

std::unique_ptr<Program> Parser::run() {
  program_->body = parse_body({});
  for (const Unknown& u : unknown_) {
    if (!u.soft) fail_at(u.where, u.message);
  }
  return std::move(program_);
}

Body Parser::parse_body(std::initializer_list<std::string_view> ends) {
  const DepthGuard guard(*this);
  Body body;
  for (;;) {
    const Token token = next();
    if (token.kind == TokenKind::kEnd) {
      if (ends.size() == 0) return body;
      fail_at(token.where,
              fmt::format("the template ends, expected {{% {} %}}", fmt::join(ends, " %} or {% ")));
    }
    if (token.kind == TokenKind::kData) {
      auto stmt = std::make_unique<Stmt>();
      stmt->text = constant_text(token.text);
      body.push_back(std::move(stmt));
    } else if (token.kind == TokenKind::kVariableBegin) {
      auto stmt = std::make_unique<Stmt>();
      stmt->kind = StmtKind::kOutput;
      stmt->where = token.where;
      stmt->exprs.push_back(parse_tuple());
      if (current().kind != TokenKind::kVariableEnd) {
        fail_here(fmt::format("got {}, expected '}}}}'", describe(current())));
      }
      next();
      body.push_back(std::move(stmt));
    } else {
      if (current().kind == TokenKind::kName && std::ranges::find(ends, current().text) != ends.end())
        return body;
      body.push_back(parse_statement());
      expect_block_end();
    }
  }
}

Body Parser::parse_statements(std::initializer_list<std::string_view> ends) {
  skip_op(":");
  expect_block_end();
  return parse_body(ends);
}

// A body that is a scope of its own: an if around it does not excuse unknown filters in it.
Body Parser::parse_hard(std::initializer_list<std::string_view> ends) {
  const bool soft = std::exchange(soft_, false);
  Body body = parse_statements(ends);
  soft_ = soft;
  return body;
}

void Parser::fail_tag(const Token& tag) const {
  static constexpr std::string_view kRefused[] = {"include", "import", "from",
                                                  "extends", "block",  "autoescape"};
  static constexpr const char* kTags =
      "for, if, set, macro, call, filter, with, print, break, continue, generation, raw";
  const bool refused = std::ranges::find(kRefused, tag.text) != std::end(kRefused);
  fail_at(tag.where, fmt::format("{} tag '{}': a chat template stands alone and may use {}",
                                 refused ? "unsupported" : "unknown or misplaced", tag.text, kTags));
}

StmtPtr Parser::parse_statement() {
  if (current().kind != TokenKind::kName)
    fail_here(fmt::format("got {}, expected a tag", describe(current())));
  const Token tag = next();
  const std::string& name = tag.text;
  if (name == "for") return parse_for(tag.where);
  if (name == "if") return parse_if(tag.where);
  if (name == "set") return parse_set(tag.where);
  if (name == "macro") return parse_macro(tag.where);
  if (name == "call") return parse_call_block(tag.where);
  if (name == "filter") return parse_filter_block(tag.where);
  if (name == "with") return parse_with(tag.where);
  if (name == "print") return parse_print(tag.where);
  if (name == "break") return parse_loop_control(tag.where, StmtKind::kBreak);
  if (name == "continue") return parse_loop_control(tag.where, StmtKind::kContinue);
  if (name == "generation") {
    auto stmt = std::make_unique<Stmt>();
    stmt->kind = StmtKind::kGeneration;
    stmt->where = tag.where;
    const int loops = std::exchange(loops_, 0);
    stmt->bodies.push_back(parse_hard({"endgeneration"}));
    loops_ = loops;
    next();
    return stmt;
  }
  fail_tag(tag);
}

StmtPtr Parser::parse_loop_control(Position where, StmtKind kind) {
  if (loops_ == 0) fail_at(where, "break or continue outside of a for loop");
  auto stmt = std::make_unique<Stmt>();
  stmt->kind = kind;
  stmt->where = where;
  return stmt;
}

StmtPtr Parser::parse_for(Position where) {
  auto stmt = std::make_unique<Stmt>();
  stmt->kind = StmtKind::kFor;
  stmt->where = where;
  ++fors_;
  stmt->targets.push_back(parse_target(true, false));
  if (!skip_name("in")) fail_here(fmt::format("got {}, expected 'in'", describe(current())));
  stmt->exprs.push_back(parse_tuple(false));
  const bool soft = std::exchange(soft_, false);
  stmt->exprs.push_back(skip_name("if") ? parse_expression() : nullptr);
  stmt->recursive = skip_name("recursive");
  ++loops_;
  stmt->bodies.push_back(parse_statements({"endfor", "else"}));
  --loops_;
  if (next().text == "else") {
    stmt->bodies.push_back(parse_statements({"endfor"}));
    next();
  }
  soft_ = soft;
  --fors_;
  return stmt;
}

StmtPtr Parser::parse_if(Position where) {
  auto stmt = std::make_unique<Stmt>();
  stmt->kind = StmtKind::kIf;
  stmt->where = where;
  const bool soft = std::exchange(soft_, true);
  for (;;) {
    stmt->exprs.push_back(parse_tuple(false));
    stmt->bodies.push_back(parse_statements({"elif", "else", "endif"}));
    const Token tag = next();
    if (tag.text == "elif") continue;
    if (tag.text == "else") {
      stmt->bodies.push_back(parse_statements({"endif"}));
      next();
    }
    break;
  }
  soft_ = soft;
  return stmt;
}

StmtPtr Parser::parse_set(Position where) {
  auto stmt = std::make_unique<Stmt>();
  stmt->where = where;
  stmt->targets.push_back(parse_target(true, true));
  if (skip_op("=")) {
    stmt->kind = StmtKind::kSet;
    stmt->exprs.push_back(parse_tuple());
    return stmt;
  }
  stmt->kind = StmtKind::kSetBlock;
  const bool soft = std::exchange(soft_, false);
  if (is_op("|")) stmt->exprs.push_back(parse_filter(make(ExprKind::kPiped, where), false));
  const int loops = std::exchange(loops_, 0);
  stmt->bodies.push_back(parse_statements({"endset"}));
  loops_ = loops;
  soft_ = soft;
  next();
  return stmt;
}

void Parser::parse_signature(MacroDef& macro) {
  expect_op("(");
  while (!is_op(")")) {
    if (!macro.parameters.empty()) expect_op(",");
    const Position where = current().where;
    const std::string name = expect_name();
    const NameId id = intern(name);
    if (std::ranges::find(macro.parameters, id) != macro.parameters.end()) {
      fail_at(where, fmt::format("parameter '{}' stands twice", name));
    }
    macro.parameters.push_back(id);
    macro.parameter_names.push_back(program_->names[id]);
    if (skip_op("=")) {
      macro.defaults.push_back(parse_expression());
    } else if (!macro.defaults.empty()) {
      fail_here("a parameter without default follows one with a default");
    }
  }
  next();
}

void Parser::finish_macro(MacroDef& macro, std::string_view end) {
  macros_.push_back(&macro);
  const int loops = std::exchange(loops_, 0);
  macro.body = parse_hard({end});
  loops_ = loops;
  macros_.pop_back();
  next();
}

StmtPtr Parser::parse_macro(Position where) {
  auto stmt = std::make_unique<Stmt>();
  stmt->kind = StmtKind::kMacro;
  stmt->where = where;
  stmt->macro = std::make_unique<MacroDef>();
  stmt->macro->id = intern(expect_name());
  stmt->macro->name = program_->names[stmt->macro->id];
  parse_signature(*stmt->macro);
  finish_macro(*stmt->macro, "endmacro");
  return stmt;
}

StmtPtr Parser::parse_call_block(Position where) {
  auto stmt = std::make_unique<Stmt>();
  stmt->kind = StmtKind::kCallBlock;
  stmt->where = where;
  stmt->macro = std::make_unique<MacroDef>();
  stmt->macro->name = constant_text("caller");
  if (is_op("(")) parse_signature(*stmt->macro);
  stmt->exprs.push_back(parse_expression());
  if (stmt->exprs[0]->kind != ExprKind::kCall) fail_at(where, "{% call %}: expected a call of a macro");
  finish_macro(*stmt->macro, "endcall");
  return stmt;
}

StmtPtr Parser::parse_filter_block(Position where) {
  auto stmt = std::make_unique<Stmt>();
  stmt->kind = StmtKind::kFilterBlock;
  stmt->where = where;
  const bool soft = std::exchange(soft_, false);
  stmt->exprs.push_back(parse_filter(make(ExprKind::kPiped, where), true));
  const int loops = std::exchange(loops_, 0);
  stmt->bodies.push_back(parse_statements({"endfilter"}));
  loops_ = loops;
  soft_ = soft;
  next();
  return stmt;
}

StmtPtr Parser::parse_with(Position where) {
  auto stmt = std::make_unique<Stmt>();
  stmt->kind = StmtKind::kWith;
  stmt->where = where;
  while (current().kind != TokenKind::kBlockEnd) {
    if (!stmt->targets.empty()) expect_op(",");
    stmt->targets.push_back(parse_target(true, false));
    expect_op("=");
    stmt->exprs.push_back(parse_expression());
  }
  stmt->bodies.push_back(parse_hard({"endwith"}));
  next();
  return stmt;
}

StmtPtr Parser::parse_print(Position where) {
  auto stmt = std::make_unique<Stmt>();
  stmt->kind = StmtKind::kOutput;
  stmt->where = where;
  while (current().kind != TokenKind::kBlockEnd) {
    if (!stmt->exprs.empty()) expect_op(",");
    stmt->exprs.push_back(parse_expression());
  }
  return stmt;
}

Target Parser::parse_target_item(bool members) {
  const DepthGuard guard(*this);
  if (skip_op("(")) {
    Target inner = parse_target(true, members);
    expect_op(")");
    return inner;
  }
  Target target;
  target.where = current().where;
  const std::string name = expect_name();
  static constexpr std::string_view kConstants[] = {"true", "false", "none", "True", "False", "None"};
  if (std::ranges::find(kConstants, name) != std::end(kConstants)) {
    fail_at(target.where, fmt::format("cannot assign to '{}'", name));
  }
  if (name == "loop" && fors_ > 0 && !(members && is_op("."))) {
    fail_at(target.where, "cannot assign to 'loop' inside of a for loop");
  }
  target.name = intern(name);
  if (members && skip_op(".")) {
    target.kind = Target::kMember;
    target.member = constant_text(expect_name());
  }
  return target;
}

Target Parser::parse_target(bool tuple, bool members) {
  Target first = parse_target_item(members);
  if (!tuple || !is_op(",")) return first;
  Target out;
  out.kind = Target::kTuple;
  out.where = first.where;
  out.items.push_back(std::move(first));
  while (skip_op(",")) {
    if (current().kind == TokenKind::kBlockEnd || is_op(")")) break;
    out.items.push_back(parse_target_item(members));
  }
  return out;
}

std::unique_ptr<Program> parse_program(std::string_view source) {
  return Parser(tokenize(source)).run();
}

}  // namespace deepinfer::jinja
