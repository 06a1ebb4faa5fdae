#include "text/jinja_lexer.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "text/jinja_escape.h"

namespace deepinfer::jinja {
namespace {

// \r\n and \r become \n, and one newline at the end goes away.
std::string normalize(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      out += source[i];
    } else {
      out += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(normalize(source)), rest_(source_) {}

  std::vector<Token> run() {
    while (at_ < source_.size()) root();
    push(TokenKind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  // Positions are asked for in rising order, so that the whole is walked once.
  Position position(size_t at) {
    for (; seen_ < at; ++seen_) {
      const auto c = static_cast<unsigned char>(source_[seen_]);
      if (c == '\n') {
        ++where_.line;
        where_.column = 1;
      } else if ((c & 0xC0U) != 0x80U) {
        ++where_.column;
      }
    }
    return where_;
  }

  [[noreturn]] void fail_at(size_t at, std::string message) {
    if (at < seen_) {
      seen_ = 0;
      where_ = {};
    }
    throw SyntaxFailure{position(at), std::move(message)};
  }

  Token& push(TokenKind kind, std::string text) {
    tokens_.push_back({kind, std::move(text), 0, 0, position(at_)});
    return tokens_.back();
  }

  bool starts(size_t at, std::string_view what) const {
    return rest_.substr(std::min(at, rest_.size())).starts_with(what);
  }

  size_t skip_space(size_t at) const {
    while (at < source_.size()) {
      const CodePoint c = decode_utf8(source_, at);
      if (!is_space(c.value)) break;
      at += c.size;
    }
    return at;
  }

  char sign_at(size_t at) const {
    return at < source_.size() && (source_[at] == '-' || source_[at] == '+') ? source_[at] : '\0';
  }

  void root();
  void data(size_t begin, size_t end, char sign, bool variable);
  bool raw_tag(size_t begin);
  void raw_body();
  void comment();
  void code(bool variable);
  bool code_end(bool variable);
  void code_token();
  bool number();
  void string_literal(char quote);
  void operator_token();
  size_t after_block_end(size_t at) const { return at < source_.size() && source_[at] == '\n' ? at + 1 : at; }

  std::string source_;
  std::string_view rest_;
  size_t at_ = 0;
  bool line_starting_ = true;  // the token before the data ended with a newline
  std::vector<Token> tokens_;
  std::string open_;  // closing brackets that are still to come
  size_t seen_ = 0;
  Position where_;
};

void Lexer::root() {
  size_t tag = at_;
  for (;; ++tag) {
    tag = source_.find('{', tag);
    if (tag == std::string::npos || tag + 1 >= source_.size()) {
      push(TokenKind::kData, source_.substr(at_));
      at_ = source_.size();
      return;
    }
    const char next = source_[tag + 1];
    if (next == '{' || next == '%' || next == '#') break;
  }
  const char kind = source_[tag + 1];
  const char sign = sign_at(tag + 2);
  data(at_, tag, sign, kind == '{');
  at_ = tag;
  if (kind == '%' && raw_tag(tag)) return raw_body();
  const size_t begin = tag;
  at_ = tag + 2 + (sign != '\0' ? 1 : 0);
  if (kind == '#') return comment();
  tokens_.push_back(
      {kind == '{' ? TokenKind::kVariableBegin : TokenKind::kBlockBegin, "", 0, 0, position(begin)});
  code(kind == '{');
}

// Text before a tag: a '-' eats all whitespace, otherwise what stands alone on the line of a block tag goes.
void Lexer::data(size_t begin, size_t end, char sign, bool variable) {
  size_t keep = end;
  if (sign == '-') {
    while (keep > begin) {
      const size_t previous = std::max(begin, previous_code_point(source_, keep));
      if (!is_space(decode_utf8(source_, previous).value)) break;
      keep = previous;
    }
  } else if (sign != '+' && !variable && end > begin) {
    const size_t newline = source_.rfind('\n', end - 1);
    const bool found = newline != std::string::npos && newline >= begin;
    const size_t line = found ? newline + 1 : begin;
    if ((found || line_starting_) && skip_space(line) >= end) keep = line;
  }
  if (keep > begin) push(TokenKind::kData, source_.substr(begin, keep - begin));
}

// {% raw %}: unlike other block tags it keeps the newline behind it.
bool Lexer::raw_tag(size_t begin) {
  size_t at = begin + 2;
  if (sign_at(at) != '\0') ++at;
  at = skip_space(at);
  if (!starts(at, "raw")) return false;
  at = skip_space(at + 3);
  if (starts(at, "-%}")) {
    at_ = skip_space(at + 3);
  } else if (starts(at, "%}")) {
    at_ = at + 2;
  } else {
    return false;
  }
  line_starting_ = source_[at_ - 1] == '\n';
  return true;
}

void Lexer::raw_body() {
  for (size_t tag = source_.find("{%", at_); tag != std::string::npos; tag = source_.find("{%", tag + 1)) {
    const char sign = sign_at(tag + 2);
    size_t at = skip_space(tag + 2 + (sign != '\0' ? 1 : 0));
    if (!starts(at, "endraw")) continue;
    at = skip_space(at + 6);
    size_t end = 0;
    if (starts(at, "+%}")) {
      end = at + 3;
    } else if (starts(at, "-%}")) {
      end = skip_space(at + 3);
    } else if (starts(at, "%}")) {
      end = after_block_end(at + 2);
    } else {
      continue;
    }
    data(at_, tag, sign, false);
    at_ = end;
    line_starting_ = source_[at_ - 1] == '\n';
    return;
  }
  fail_at(at_, "{% raw %} without its {% endraw %}");
}

void Lexer::comment() {
  const size_t end = source_.find("#}", at_);
  if (end == std::string::npos) fail_at(at_, "comment without its end: expected #}");
  const char before = end > at_ ? source_[end - 1] : '\0';
  if (before == '-') {
    at_ = skip_space(end + 2);
  } else {
    at_ = before == '+' ? end + 2 : after_block_end(end + 2);
  }
  line_starting_ = source_[at_ - 1] == '\n';
}

void Lexer::code(bool variable) {
  const size_t begin = at_;
  open_.clear();
  while (at_ < source_.size()) {
    at_ = skip_space(at_);
    if (at_ >= source_.size()) break;
    if (open_.empty() && code_end(variable)) return;
    code_token();
  }
  fail_at(begin, fmt::format("tag without its end: expected {}", variable ? "}}" : "%}"));
}

bool Lexer::code_end(bool variable) {
  const std::string_view end = variable ? "}}" : "%}";
  const char sign = sign_at(at_);
  const bool plus = sign == '+' && !variable;
  size_t at = at_ + (sign == '-' || plus ? 1 : 0);
  if (!starts(at, end)) return false;
  push(variable ? TokenKind::kVariableEnd : TokenKind::kBlockEnd, "");
  at += 2;
  if (sign == '-') {
    at = skip_space(at);
  } else if (!plus && !variable) {
    at = after_block_end(at);
  }
  at_ = at;
  line_starting_ = source_[at_ - 1] == '\n';
  return true;
}

void Lexer::code_token() {
  const CodePoint c = decode_utf8(source_, at_);
  if (c.value >= '0' && c.value <= '9' && number()) return;
  if (c.value == '"' || c.value == '\'') return string_literal(source_[at_]);
  if (!is_identifier_start(c.value)) return operator_token();
  size_t end = at_ + c.size;
  while (end < source_.size()) {
    const CodePoint next = decode_utf8(source_, end);
    if (!is_identifier_part(next.value)) break;
    end += next.size;
  }
  push(TokenKind::kName, source_.substr(at_, end - at_));
  at_ = end;
}

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

bool Lexer::number() {
  const bool after_dot = at_ > 0 && source_[at_ - 1] == '.';
  const size_t begin = at_;
  int base = 10;
  if (source_[at_] == '0' && at_ + 1 < source_.size()) {
    const char letter = static_cast<char>(source_[at_ + 1] | 0x20);
    base = letter == 'x' ? 16 : letter == 'o' ? 8 : letter == 'b' ? 2 : 10;
  }
  size_t at = base == 10 ? begin : begin + 2;
  const auto part = [&](size_t i) {
    const char c = i < source_.size() ? source_[i] : '\0';
    return base == 16 ? std::isxdigit(static_cast<unsigned char>(c)) != 0 : is_digit(c);
  };
  const auto digits = [&](size_t i) {
    while (part(i) || (i < source_.size() && source_[i] == '_' && part(i + 1))) ++i;
    return i;
  };
  at = digits(at);
  const size_t integer_end = at;
  if (base == 10 && !after_dot) {
    if (at + 1 < source_.size() && source_[at] == '.' && is_digit(source_[at + 1])) at = digits(at + 1);
    if (at < source_.size() && (source_[at] | 0x20) == 'e') {
      const size_t exponent = at + 1 + (sign_at(at + 1) != '\0' ? 1 : 0);
      if (part(exponent)) at = digits(exponent);
    }
  }
  std::string text = source_.substr(begin, at - begin);
  std::erase(text, '_');
  const bool real = at != integer_end;
  Token& token = push(real ? TokenKind::kFloat : TokenKind::kInteger, text);
  if (real) {
    std::from_chars(text.data(), text.data() + text.size(), token.real);
  } else {
    const char* first = text.data() + (base == 10 ? 0 : 2);
    int64_t value = 0;
    const auto [end, error] = std::from_chars(first, text.data() + text.size(), value, base);
    const bool zeros = base == 10 && text.size() > 1 && text[0] == '0' && value != 0;
    if (error != std::errc() || end != text.data() + text.size() || zeros) {
      fail_at(begin, fmt::format("number {}: expected an integer of 64 bits", text));
    }
    token.integer = value;
  }
  at_ = at;
  return true;
}

void Lexer::string_literal(char quote) {
  size_t end = at_ + 1;
  while (end < source_.size() && source_[end] != quote) end += source_[end] == '\\' ? 2 : 1;
  if (end >= source_.size()) fail_at(at_, fmt::format("string without its end: expected {}", quote));
  std::string value;
  if (const char* problem = unescape(std::string_view(source_).substr(at_ + 1, end - at_ - 1), value)) {
    fail_at(at_, problem);
  }
  push(TokenKind::kString, std::move(value));
  at_ = end + 1;
}

void Lexer::operator_token() {
  static constexpr std::string_view kOperators[] = {"//", "**", "==", "!=", ">=", "<=", "+", "-", "/",
                                                    "*",  "%",  "~",  "[",  "]",  "(",  ")", "{", "}",
                                                    ">",  "<",  "=",  ".",  ":",  "|",  ",", ";"};
  const auto* found = std::find_if(std::begin(kOperators), std::end(kOperators),
                                   [&](std::string_view op) { return starts(at_, op); });
  if (found == std::end(kOperators)) {
    const size_t size = decode_utf8(source_, at_).size;
    fail_at(at_, fmt::format("unexpected character '{}' in a tag", source_.substr(at_, size)));
  }
  const char c = (*found)[0];
  if (c == '{') open_ += '}';
  if (c == '(') open_ += ')';
  if (c == '[') open_ += ']';
  if (c == '}' || c == ')' || c == ']') {
    if (open_.empty()) fail_at(at_, fmt::format("unexpected '{}'", c));
    if (open_.back() != c) fail_at(at_, fmt::format("unexpected '{}', expected '{}'", c, open_.back()));
    open_.pop_back();
  }
  push(TokenKind::kOperator, std::string(*found));
  at_ += found->size();
}

}  // namespace

std::string describe(const Token& token) {
  switch (token.kind) {
    case TokenKind::kData:
      return "text";
    case TokenKind::kVariableBegin:
      return "'{{'";
    case TokenKind::kVariableEnd:
      return "'}}'";
    case TokenKind::kBlockBegin:
      return "'{%'";
    case TokenKind::kBlockEnd:
      return "'%}'";
    case TokenKind::kString:
      return "a string";
    case TokenKind::kEnd:
      return "the end of the template";
    default:
      return fmt::format("'{}'", token.text);
  }
}

std::vector<Token> tokenize(std::string_view source) {
  return Lexer(source).run();
}

}  // namespace deepinfer::jinja
