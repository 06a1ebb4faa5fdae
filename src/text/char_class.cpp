#include "text/char_class.h"

#include <utf8proc.h>

#include <algorithm>

#include "text/char_class_table.h"

namespace deepinfer {

CharClasses::CharClasses() {
  constexpr uint32_t kPage = kMask + 1;
  std::array<uint8_t, kPage> page;
  size_t row = 0;
  for (uint32_t start = 0; start < 0x110000; start += kPage) {
    for (uint32_t i = 0; i < kPage; ++i) {
      while (row + 1 < kCharClassTable.size() && kCharClassTable[row + 1] >> 4 <= start + i) ++row;
      page[i] = kCharClassTable[row] & 15;
    }
    // Most pages are equal to one of the last two (letters only, unassigned only).
    size_t at = cells_.size();
    for (size_t back = 1; back <= 2 && back * kPage <= cells_.size(); ++back) {
      const size_t earlier = cells_.size() - back * kPage;
      if (std::equal(page.begin(), page.end(), cells_.begin() + static_cast<ptrdiff_t>(earlier)))
        at = earlier;
    }
    if (at == cells_.size()) cells_.insert(cells_.end(), page.begin(), page.end());
    pages_[start >> kShift] = static_cast<uint32_t>(at);
  }
}

const CharClasses& CharClasses::get() {
  static const CharClasses classes;
  return classes;
}

bool is_word_char(char32_t code) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(code))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      // Join controls, and the letters in circles and squares, which are alphabetic symbols.
      return code == 0x200C || code == 0x200D || (code >= 0x24B6 && code <= 0x24E9) ||
             (code >= 0x1F130 && code <= 0x1F149) || (code >= 0x1F150 && code <= 0x1F169) ||
             (code >= 0x1F170 && code <= 0x1F189);
  }
}

}  // namespace deepinfer
