// What tokenizer.json calls the normalizer: the text is rewritten before it is cut into pieces.
#pragma once

#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace deepinfer {

enum class UnicodeForm : uint8_t { kNfc, kNfd, kNfkc, kNfkd };

struct ReplaceStep {
  std::string from, to;  // `from` is not empty
};

using NormalizerStep = std::variant<UnicodeForm, ReplaceStep>;

// Immutable: any number of threads may use one.
class Normalizer {
 public:
  explicit Normalizer(std::vector<NormalizerStep> steps = {}) : steps_(std::move(steps)) {}

  bool empty() const { return steps_.empty(); }

  // The text must be valid UTF-8. Linear in its length, also for long runs of combining marks.
  std::string apply(std::string_view text) const;

 private:
  std::vector<NormalizerStep> steps_;
};

}  // namespace deepinfer
