// Splitting by a regular expression of tokenizer.json, for patterns that have no scanner of their own.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "deepinfer/result.h"

namespace deepinfer {

struct TextMatch {
  size_t begin = 0, end = 0;  // bytes
};

// A compiled pattern. Immutable: any number of threads may use one. The syntax is Oniguruma's as far as
// pre-tokenizers use it; what would mean something else here is refused, not guessed.
class SplitRegex {
 public:
  static Result<SplitRegex> compile(std::string_view pattern);

  // All matches, none of them empty, from left to right. The text must be valid UTF-8. Throws InternalError
  // when the engine's own limits are exceeded.
  void find_all(std::string_view text, std::vector<TextMatch>& matches) const;

 private:
  struct Code;
  explicit SplitRegex(std::shared_ptr<const Code> code) : code_(std::move(code)) {}
  std::shared_ptr<const Code> code_;
};

}  // namespace deepinfer
