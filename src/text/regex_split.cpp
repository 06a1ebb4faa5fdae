#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/regex_split.h"

#include <pcre2.h>

#include <array>
#include <optional>

#include "base/check.h"

namespace deepinfer {
namespace {

constexpr uint32_t kOptions = PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C;

struct CodeFree {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
};
using CodePtr = std::unique_ptr<pcre2_code, CodeFree>;

CodePtr compile_raw(std::string_view pattern, int& error, size_t& offset) {
  return CodePtr(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), kOptions, &error,
                               &offset, nullptr));
}

// Puts a pattern of Oniguruma into PCRE2's words where the two differ in meaning.
class Translator {
 public:
  explicit Translator(std::string_view pattern) : pattern_(pattern) {}

  Result<std::string> run() {
    while (pos_ < pattern_.size()) {
      const char c = pattern_[pos_];
      if (c == '\\') {
        DI_TRY(escape());
      } else if (c == '[') {
        DI_TRY(open_class());
      } else if (c == ']' && in_class_) {
        in_class_ = false;
        take(1);
      } else if (in_class_ && pattern_.substr(pos_).starts_with("&&")) {
        return refuse("the class intersection &&");
      } else {
        take(1);
      }
    }
    return std::move(out_);
  }

 private:
  Error refuse(std::string_view what) const {
    return make_error(ErrorCode::kModel, "regular expression {}: {} at byte {} is not supported", pattern_,
                      what, pos_);
  }

  void take(size_t count) {
    out_ += pattern_.substr(pos_, count);
    pos_ += count;
  }

  void replace(size_t count, std::string_view with) {
    out_ += with;
    pos_ += count;
  }

  Result<void> open_class() {
    if (in_class_) {
      if (!pattern_.substr(pos_).starts_with("[:")) return refuse("a class inside a class");
      const size_t end = pattern_.find(":]", pos_);
      if (end == std::string_view::npos) return refuse("an open [: class");
      take(end + 2 - pos_);
      return {};
    }
    in_class_ = true;
    take(1);
    if (pos_ < pattern_.size() && pattern_[pos_] == '^') take(1);
    if (pos_ < pattern_.size() && pattern_[pos_] == ']') return refuse("an empty class");
    return {};
  }

  Result<void> escape() {
    if (pos_ + 1 >= pattern_.size()) return refuse("a backslash at the end");
    constexpr std::string_view kWord = R"(\p{Alphabetic}\p{M}\p{Nd}\p{Pc})";
    switch (pattern_[pos_ + 1]) {
      case 's':
        replace(2, R"(\p{White_Space})");
        break;
      case 'S':
        replace(2, R"(\P{White_Space})");
        break;
      case 'd':
        replace(2, R"(\p{Nd})");
        break;
      case 'D':
        replace(2, R"(\P{Nd})");
        break;
      case 'w':
        replace(2, in_class_ ? std::string(kWord) : fmt::format("[{}]", kWord));
        break;
      case 'W':
        if (in_class_) return refuse("\\W in a class");
        replace(2, fmt::format("[^{}]", kWord));
        break;
      case 'p':
      case 'P':
        return property();
      case 'h':
      case 'H':
      case 'R':
      case 'X':
      case 'K':
      case 'G':
      case 'y':
      case 'Y':
      case 'O':
      case 'N':
        return refuse(pattern_.substr(pos_, 2));
      default:
        take(2);
    }
    return {};
  }

  // \p{Han} is a script here, not a script extension as PCRE2 would have it.
  Result<void> property() {
    const size_t open = pos_ + 2;
    if (open >= pattern_.size() || pattern_[open] != '{') return refuse("a property without braces");
    const size_t close = pattern_.find('}', open);
    if (close == std::string_view::npos) return refuse("an open property");
    std::string_view name = pattern_.substr(open + 1, close - open - 1);
    std::string_view negation;
    if (name.starts_with('^')) {
      negation = "^";
      name.remove_prefix(1);
    }
    const std::string head = fmt::format("{}{{{}", pattern_.substr(pos_, 2), negation);
    if (const auto category = category_of(name)) {
      replace(close + 1 - pos_, fmt::format("{}{}}}", head, *category));
      return {};
    }
    int error = 0;
    size_t offset = 0;
    const bool script = compile_raw(fmt::format(R"(\p{{sc:{}}})", name), error, offset) != nullptr;
    replace(close + 1 - pos_, fmt::format("{}{}{}}}", head, script ? "sc:" : "", name));
    return {};
  }

  static std::optional<std::string_view> category_of(std::string_view name) {
    struct Long {
      std::string_view name, category;
    };
    static constexpr std::array kLong = {
        Long{"Letter", "L"}, Long{"Mark", "M"},      Long{"Number", "N"}, Long{"Punctuation", "P"},
        Long{"Symbol", "S"}, Long{"Separator", "Z"}, Long{"Other", "C"},
    };
    if (name.size() <= 2) return name;
    for (const Long& entry : kLong)
      if (entry.name == name) return entry.category;
    return std::nullopt;
  }

  std::string_view pattern_;
  std::string out_;
  size_t pos_ = 0;
  bool in_class_ = false;
};

struct MatchDataFree {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};

std::string message_of(int error) {
  std::array<char, 256> text{};
  pcre2_get_error_message(error, reinterpret_cast<PCRE2_UCHAR*>(text.data()), text.size());
  return text.data();
}

}  // namespace

struct SplitRegex::Code {
  CodePtr code;
  std::string pattern;
};

Result<SplitRegex> SplitRegex::compile(std::string_view pattern) {
  DI_ASSIGN(const std::string translated, Translator(pattern).run());
  int error = 0;
  size_t offset = 0;
  CodePtr code = compile_raw(translated, error, offset);
  if (!code) {
    return make_error(ErrorCode::kModel, "regular expression {}: {} at byte {}", translated,
                      message_of(error), offset);
  }
  // Where the processor or the kernel forbids JIT, the interpreter does the same more slowly.
  pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);
  return SplitRegex(std::make_shared<const Code>(Code{std::move(code), std::string(pattern)}));
}

void SplitRegex::find_all(std::string_view text, std::vector<TextMatch>& matches) const {
  const std::unique_ptr<pcre2_match_data, MatchDataFree> data(
      pcre2_match_data_create_from_pattern(code_->code.get(), nullptr));
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  size_t pos = 0;
  while (pos < text.size()) {
    const int found =
        pcre2_match(code_->code.get(), subject, text.size(), pos, PCRE2_NO_UTF_CHECK, data.get(), nullptr);
    if (found == PCRE2_ERROR_NOMATCH) return;
    DI_CHECK(found >= 0, "regular expression {} on {} bytes: {}", code_->pattern, text.size(),
             message_of(found));
    const size_t* range = pcre2_get_ovector_pointer(data.get());
    if (range[1] > range[0]) {
      matches.push_back({range[0], range[1]});
      pos = range[1];
    } else {  // an empty match: go on behind the next character
      pos = range[1] + 1;
      while (pos < text.size() && static_cast<uint8_t>(text[pos]) >> 6 == 2) ++pos;
    }
  }
}

}  // namespace deepinfer
