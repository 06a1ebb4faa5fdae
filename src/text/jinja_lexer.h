// Template source to tokens, with Jinja's rules for whitespace: trim_blocks and lstrip_blocks are on, as
// transformers sets them.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "text/jinja_value.h"

namespace deepinfer::jinja {

struct Position {
  int line = 1, column = 1;  // column in code points
};

// Thrown by lexer and parser, caught in chat_template.cpp.
struct SyntaxFailure {
  Position where;
  std::string message;
};

enum class TokenKind : uint8_t {
  kData,
  kVariableBegin,
  kVariableEnd,
  kBlockBegin,
  kBlockEnd,
  kName,
  kString,
  kInteger,
  kFloat,
  kOperator,
  kEnd,
};

struct Token {
  TokenKind kind = TokenKind::kEnd;
  std::string text;  // data, name, operator, or the value of a string
  Int integer = 0;
  double real = 0;
  Position where;
};

std::string describe(const Token& token);

// Throws SyntaxFailure. The last token is kEnd.
std::vector<Token> tokenize(std::string_view source);

}  // namespace deepinfer::jinja
