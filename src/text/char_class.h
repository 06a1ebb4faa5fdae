// Unicode classes of code points as pre-tokenizers need them: Unicode 16, as in Hugging Face's tokenizers.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace deepinfer {

// Every code point has exactly one: general categories L, N, M, P, S, the property White_Space, or the rest.
enum class CharClass : uint8_t { kOther, kLetter, kNumber, kWhite, kMark, kPunctuation, kSymbol };

// Immutable: any number of threads may read it.
class CharClasses {
 public:
  static const CharClasses& get();  // unpacked from the ranges at the first call

  CharClass of(char32_t code) const {
    return static_cast<CharClass>(cells_[pages_[code >> kShift] | (code & kMask)]);
  }

 private:
  CharClasses();
  static constexpr uint32_t kShift = 8, kMask = 255;
  static constexpr std::size_t kPages = 0x110000 / 256;
  std::array<uint32_t, kPages> pages_{};  // where the page's cells start
  std::vector<uint8_t> cells_;
};

// What regular expressions call \w in the crates that tokenizers is built of.
bool is_word_char(char32_t code);

}  // namespace deepinfer
