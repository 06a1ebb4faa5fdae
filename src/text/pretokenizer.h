// Cuts normalized text into the pieces that are encoded one by one.
#pragma once

#include <deque>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "text/regex_split.h"
#include "text/scanners.h"

namespace deepinfer {

// What becomes of a match of the pattern, in the words of tokenizer.json.
enum class SplitBehavior : uint8_t {
  kRemoved,
  kIsolated,
  kMergedWithPrevious,
  kMergedWithNext,
  kContiguous,
};

struct SplitStep {
  std::variant<std::string, SplitRegex> pattern;  // a plain string, or a regular expression
  SplitBehavior behavior = SplitBehavior::kIsolated;
  bool invert = false;  // what does not match is the match
};

struct PrefixSpaceStep {};  // a space before each piece that has none

using PreTokenizerStep = std::variant<ScanPattern, SplitStep, PrefixSpaceStep>;

// Immutable: any number of threads may use one.
class PreTokenizer {
 public:
  explicit PreTokenizer(std::vector<PreTokenizerStep> steps = {}) : steps_(std::move(steps)) {}

  // Pieces point into the text or into `storage`. The text must be valid UTF-8. None of the pieces is empty.
  void split(std::string_view text, std::vector<std::string_view>& pieces,
             std::deque<std::string>& storage) const;

 private:
  std::vector<PreTokenizerStep> steps_;
};

}  // namespace deepinfer
