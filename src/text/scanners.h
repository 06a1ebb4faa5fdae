// The splitting patterns of the best known vocabularies, as scanners written by hand: they give exactly the
// matches of the regular expression, in one pass.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace deepinfer {

enum class ScanPattern : uint8_t {
  kGpt2,         // 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
  kLlama3,       // (?i:'s|...)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|...
  kQwen2,        // the same with \p{N}
  kDigits,       // each \p{N} alone
  kDigitGroups,  // runs of \p{N}
};

// The pattern whose regular expression this is, in one of the spellings found in tokenizer.json files.
std::optional<ScanPattern> known_regex(std::string_view regex);

// Cuts the text, which is valid UTF-8, into pieces that together are the text.
void scan(ScanPattern pattern, std::string_view text, std::vector<std::string_view>& pieces);

}  // namespace deepinfer
