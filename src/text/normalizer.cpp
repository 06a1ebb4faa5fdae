#include "text/normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>

#include "base/check.h"
#include "text/utf8.h"

namespace deepinfer {
namespace {

bool is_ascii(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return static_cast<uint8_t>(c) < 0x80; });
}

uint8_t mark_class(utf8proc_int32_t code) {
  return static_cast<uint8_t>(utf8proc_get_property(code)->combining_class);
}

// The canonical order: marks between two starters by their class, those of one class as they came.
void sort_marks(std::vector<utf8proc_int32_t>& codes) {
  const auto starts = [](utf8proc_int32_t code) { return mark_class(code) == 0; };
  std::vector<utf8proc_int32_t> sorted;
  for (auto begin = codes.begin(); begin != codes.end();) {
    begin = std::find_if_not(begin, codes.end(), starts);
    const auto end = std::find_if(begin, codes.end(), starts);
    if (end - begin > 1) {
      std::array<size_t, 256> next = {};  // by class: how many are lower, then where its next mark goes
      for (auto it = begin; it != end; ++it)
        if (const uint8_t kind = mark_class(*it); kind < 255) ++next[kind + 1];
      for (size_t kind = 1; kind < next.size(); ++kind) next[kind] += next[kind - 1];
      sorted.resize(static_cast<size_t>(end - begin));
      for (auto it = begin; it != end; ++it) sorted[next[mark_class(*it)]++] = *it;
      std::copy(sorted.begin(), sorted.end(), begin);
    }
    begin = end;
  }
}

// utf8proc's enumeration is a set of bits.
utf8proc_option_t flags(int bits) {
  return static_cast<utf8proc_option_t>(bits);  // NOLINT(clang-analyzer-optin.core.EnumCastOutOfRange)
}

// Not utf8proc_map: it sorts combining marks by insertion, which a hostile text makes quadratic.
std::string to_form(UnicodeForm form, std::string_view text) {
  const bool compatible = form == UnicodeForm::kNfkc || form == UnicodeForm::kNfkd;
  const bool compose = form == UnicodeForm::kNfc || form == UnicodeForm::kNfkc;
  const auto decomposition = flags(UTF8PROC_DECOMPOSE | (compatible ? UTF8PROC_COMPAT : 0));
  std::vector<utf8proc_int32_t> codes;
  codes.reserve(text.size() + 1);
  std::array<utf8proc_int32_t, 32> parts;  // the longest decomposition, of U+FDFA, has 18
  int boundary = 0;
  while (!text.empty()) {
    const Utf8Step step = decode_utf8(text);
    text.remove_prefix(step.length);
    const auto count =
        utf8proc_decompose_char(static_cast<utf8proc_int32_t>(step.code), parts.data(),
                                static_cast<utf8proc_ssize_t>(parts.size()), decomposition, &boundary);
    DI_CHECK(count >= 0 && static_cast<size_t>(count) <= parts.size(), "U+{:04X} decomposes into {}",
             static_cast<uint32_t>(step.code), count);
    codes.insert(codes.end(), parts.begin(), parts.begin() + count);
  }
  sort_marks(codes);
  auto count = static_cast<utf8proc_ssize_t>(codes.size());
  if (compose) {
    count = utf8proc_normalize_utf32(codes.data(), count, flags(UTF8PROC_COMPOSE | UTF8PROC_STABLE));
    DI_CHECK(count >= 0, "utf8proc: {}", utf8proc_errmsg(count));
  }
  std::string out;
  out.reserve(codes.size());
  for (utf8proc_ssize_t i = 0; i < count; ++i)
    append_utf8(out, static_cast<char32_t>(codes[static_cast<size_t>(i)]));
  return out;
}

std::string replace_all(const ReplaceStep& step, std::string_view text) {
  std::string out;
  size_t done = 0;
  for (size_t at = text.find(step.from); at != std::string_view::npos; at = text.find(step.from, done)) {
    out.append(text, done, at - done).append(step.to);
    done = at + step.from.size();
  }
  return out.append(text, done);
}

}  // namespace

std::string Normalizer::apply(std::string_view text) const {
  std::string out(text);
  for (const NormalizerStep& step : steps_) {
    if (const auto* replace = std::get_if<ReplaceStep>(&step)) {
      out = replace_all(*replace, out);
    } else if (!is_ascii(out)) {
      out = to_form(std::get<UnicodeForm>(step), out);
    }
  }
  return out;
}

}  // namespace deepinfer
