#include "text/scanners.h"

#include <array>
#include <limits>

#include "text/char_class.h"
#include "text/utf8.h"

namespace deepinfer {
namespace {

// \p{L} and so on of the next character, with its length. `length` 0: the end of the text.
struct Next {
  CharClass kind = CharClass::kOther;
  uint8_t length = 0;
  char first = 0;  // the byte, for the few ASCII characters that patterns name

  bool is(CharClass wanted) const { return length > 0 && kind == wanted; }
  bool newline() const { return length > 0 && (first == '\r' || first == '\n'); }
  // [^\s\p{L}\p{N}]
  bool other() const {
    return length > 0 && kind != CharClass::kWhite && kind != CharClass::kLetter &&
           kind != CharClass::kNumber;
  }
};

class Scanner {
 public:
  explicit Scanner(std::string_view text) : text_(text) {}

  void run(ScanPattern pattern, std::vector<std::string_view>& pieces) {
    while (pos_ < text_.size()) {
      const size_t end = end_of_match(pattern);
      pieces.push_back(text_.substr(pos_, end - pos_));
      pos_ = end;
    }
  }

 private:
  Next at(size_t pos) const {
    if (pos >= text_.size()) return {};
    const char first = text_[pos];
    const auto byte = static_cast<uint8_t>(first);
    if (byte < 0x80) return {classes_.of(byte), 1, first};
    const Utf8Step step = decode_utf8(text_.substr(pos, 4));
    return {classes_.of(step.code), step.length, first};
  }

  size_t end_of_match(ScanPattern pattern) const {
    switch (pattern) {
      case ScanPattern::kGpt2:
        return gpt2();
      case ScanPattern::kLlama3:
        return llama3(3);
      case ScanPattern::kQwen2:
        return llama3(1);
      case ScanPattern::kDigits:
        return digits(1);
      case ScanPattern::kDigitGroups:
        return digits(kAll);
    }
    return text_.size();
  }

  // The end of a run of one class from pos on, at most `limit` characters.
  size_t run_of(CharClass kind, size_t pos, size_t limit = kAll) const {
    for (Next next = at(pos); limit > 0 && next.is(kind); next = at(pos), --limit) pos += next.length;
    return pos;
  }

  size_t run_of_other(size_t pos) const {
    for (Next next = at(pos); next.other(); next = at(pos)) pos += next.length;
    return pos;
  }

  size_t gpt2() const {
    if (const size_t end = contraction(false)) return end;
    Next next = at(pos_);
    const size_t start = pos_ + (next.first == ' ');
    if (start > pos_) next = at(start);
    if (next.is(CharClass::kLetter)) return run_of(CharClass::kLetter, start + next.length);
    if (next.is(CharClass::kNumber)) return run_of(CharClass::kNumber, start + next.length);
    if (next.other()) return run_of_other(start + next.length);
    return white(run_of(CharClass::kWhite, pos_));
  }

  size_t llama3(size_t digits_at_once) const {
    if (const size_t end = contraction(true)) return end;
    const Next first = at(pos_);
    if (first.is(CharClass::kLetter)) return run_of(CharClass::kLetter, pos_ + first.length);
    if (first.is(CharClass::kNumber)) return run_of(CharClass::kNumber, pos_, digits_at_once);
    const Next second = at(pos_ + first.length);
    if (!first.newline() && second.is(CharClass::kLetter))
      return run_of(CharClass::kLetter, pos_ + first.length + second.length);
    if (first.other() || (first.first == ' ' && second.other())) {
      size_t end = run_of_other(pos_ + first.length);
      while (at(end).newline()) ++end;
      return end;
    }
    const size_t end = run_of(CharClass::kWhite, pos_);
    for (size_t i = end; i > pos_; --i)  // \s*[\r\n]+ ends with the last line break of the run
      if (text_[i - 1] == '\r' || text_[i - 1] == '\n') return i;
    return white(end);
  }

  // \s+(?!\S)|\s+ for the run of white space up to `end`: the last one stays for the word that follows.
  size_t white(size_t end) const {
    if (end == text_.size()) return end;
    size_t last = end - 1;
    while (static_cast<uint8_t>(text_[last]) >> 6 == 2) --last;
    return last > pos_ ? last : end;
  }

  // 's 't 're 've 'm 'll 'd; 0: none. Without regard to case U+017F, the long s, is an s too.
  size_t contraction(bool any_case) const {
    if (text_[pos_] != '\'') return 0;
    const std::string_view rest = text_.substr(pos_ + 1, 2);
    if (rest.empty()) return 0;
    const auto lower = [any_case](char c) { return any_case && c >= 'A' && c <= 'Z' ? char(c + 32) : c; };
    const char a = lower(rest[0]), b = rest.size() > 1 ? lower(rest[1]) : '\0';
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return pos_ + 2;
    if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) return pos_ + 3;
    if (any_case && rest == "\xC5\xBF") return pos_ + 3;
    return 0;
  }

  size_t digits(size_t limit) const {
    if (at(pos_).is(CharClass::kNumber)) return run_of(CharClass::kNumber, pos_, limit);
    size_t end = pos_;
    for (Next next = at(end); next.length > 0 && next.kind != CharClass::kNumber; next = at(end))
      end += next.length;
    return end;
  }

  static constexpr size_t kAll = std::numeric_limits<size_t>::max();
  std::string_view text_;
  const CharClasses& classes_ = CharClasses::get();
  size_t pos_ = 0;
};

struct KnownRegex {
  std::string_view regex;
  ScanPattern pattern;
};

constexpr std::array kKnown = {
    KnownRegex{R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)",
               ScanPattern::kGpt2},
    KnownRegex{R"('(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)",
               ScanPattern::kGpt2},
    KnownRegex{
        R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
        ScanPattern::kLlama3},
    KnownRegex{
        R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
        ScanPattern::kQwen2},
    KnownRegex{R"(\p{N})", ScanPattern::kDigits},
};

}  // namespace

std::optional<ScanPattern> known_regex(std::string_view regex) {
  for (const KnownRegex& known : kKnown)
    if (known.regex == regex) return known.pattern;
  return std::nullopt;
}

void scan(ScanPattern pattern, std::string_view text, std::vector<std::string_view>& pieces) {
  Scanner(text).run(pattern, pieces);
}

}  // namespace deepinfer
