// Strings of the template interpreter: UTF-8 text that knows which of its bytes came from the request.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace deepinfer::jinja {

// Immutable once shared. `untrusted` is sorted, disjoint and without neighbours that touch.
struct Text {
  std::string bytes;
  std::vector<TextRange> untrusted;
  bool ascii = true;       // then code points are bytes
  size_t* live = nullptr;  // where the bytes are counted while the text lives; null for constants

  Text() = default;
  Text(Text&&) = default;
  Text& operator=(Text&&) = delete;
  Text(const Text&) = delete;
  ~Text() {
    if (live != nullptr) *live -= charged;
  }
  size_t charged = 0;
};
using TextPtr = std::shared_ptr<const Text>;

// Grows a text piece by piece and keeps the ranges normalized. Throws Failure beyond kMaxBytes: a value that
// holds itself many times can print as far more than it is.
class TextBuilder {
 public:
  static constexpr size_t kMaxBytes = size_t{64} << 20;

  void append(std::string_view bytes, bool untrusted = false);
  void append(const Text& text) { append(text, 0, text.bytes.size()); }
  void append(const Text& text, size_t begin, size_t end);  // bytes [begin, end) of text
  size_t size() const { return text_.bytes.size(); }
  const std::string& bytes() const { return text_.bytes; }
  Text take();  // and is empty again

 private:
  void make_room(size_t bytes) const;
  void mark(size_t begin, size_t end);
  Text text_;
};

bool is_ascii(std::string_view bytes);
TextPtr constant_text(std::string_view bytes);  // trusted, not counted

struct CodePoint {
  char32_t value = 0;
  uint32_t size = 1;  // bytes
};
// An invalid byte counts as one code point U+FFFD of one byte, so that every text can be walked.
CodePoint decode_utf8(std::string_view bytes, size_t at);
void append_utf8(std::string& out, char32_t value);
size_t previous_code_point(std::string_view bytes, size_t end);  // where the one that ends at `end` begins

size_t count_code_points(const Text& text);
// The byte where code point `index` begins; size() for everything past the end.
size_t byte_offset(const Text& text, size_t index);

// Python's str.isspace, also what a regular expression's \s matches.
bool is_space(char32_t c);
bool is_line_break(char32_t c);  // where str.splitlines cuts
bool is_alpha(char32_t c);
bool is_decimal(char32_t c);
bool is_identifier_start(char32_t c);
bool is_identifier_part(char32_t c);
bool is_upper(char32_t c);
bool is_lower(char32_t c);
bool is_printable(char32_t c);  // repr shows it as it is

enum class CaseMap : uint8_t { kUpper, kLower, kCapitalize, kTitle, kSwap, kFold };
std::string map_case(std::string_view bytes, CaseMap map);

}  // namespace deepinfer::jinja
