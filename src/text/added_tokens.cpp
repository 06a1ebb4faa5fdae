#include "text/added_tokens.h"

#include <algorithm>

#include "text/char_class.h"
#include "text/utf8.h"

namespace deepinfer {
namespace {

// The last code point of a text that is not empty.
Utf8Step decode_last(std::string_view text) {
  size_t start = text.size() - 1;
  while (start > 0 && text.size() - start < 4 && static_cast<uint8_t>(text[start]) >> 6 == 2) --start;
  Utf8Step step = decode_utf8(text.substr(start));
  if (!step.valid || step.length != text.size() - start) step = {kReplacement, 1, false, false};
  return step;
}

bool is_white(const Utf8Step& step) {
  return step.valid && CharClasses::get().of(step.code) == CharClass::kWhite;
}

size_t white_from(std::string_view text, size_t pos) {
  while (pos < text.size()) {
    const Utf8Step step = decode_utf8(text.substr(pos));
    if (!is_white(step)) break;
    pos += step.length;
  }
  return pos;
}

size_t white_before(std::string_view text, size_t pos, size_t limit) {
  while (pos > limit) {
    const Utf8Step step = decode_last(text.substr(0, pos));
    if (!is_white(step)) break;
    pos -= step.length;
  }
  return std::max(pos, limit);
}

}  // namespace

std::vector<TextRange> tidy_ranges(std::span<const TextRange> ranges, size_t size) {
  std::vector<TextRange> sorted;
  for (const TextRange& range : ranges)
    if (range.begin < std::min(range.end, size)) sorted.push_back({range.begin, std::min(range.end, size)});
  std::sort(sorted.begin(), sorted.end(), [](auto a, auto b) { return a.begin < b.begin; });
  std::vector<TextRange> out;
  for (const TextRange& range : sorted) {
    if (!out.empty() && range.begin <= out.back().end) {
      out.back().end = std::max(out.back().end, range.end);
    } else {
      out.push_back(range);
    }
  }
  return out;
}

AddedTokenMatcher::AddedTokenMatcher(std::vector<AddedToken> tokens)
    : tokens_(std::move(tokens)), nodes_(1, -1) {
  for (size_t i = 0; i < tokens_.size(); ++i)
    if (!tokens_[i].content.empty()) insert(static_cast<int32_t>(i));
}

void AddedTokenMatcher::insert(int32_t index) {
  const std::string& content = tokens_[static_cast<size_t>(index)].content;
  first_.set(static_cast<uint8_t>(content[0]));
  uint32_t node = 0;
  for (const char byte : content) {
    const uint64_t key = uint64_t{node} << 8 | static_cast<uint8_t>(byte);
    if (const uint32_t* child = children_.find(key)) {
      node = *child;
    } else {
      const auto next = static_cast<uint32_t>(nodes_.size());
      nodes_.push_back(-1);
      children_.put(key, next);
      node = next;
    }
  }
  nodes_[node] = index;
}

// `skip` is where to go on when there is none: past the spelling of a special token that lies in ordinary
// text, as Hugging Face's tokenizers do, else one byte on.
AddedTokenMatcher::Candidate AddedTokenMatcher::longest_at(std::string_view text, size_t pos, TextRange range,
                                                           size_t& skip) const {
  Candidate best;
  skip = pos + 1;
  uint32_t node = 0;
  for (size_t i = pos; i < text.size(); ++i) {
    const uint32_t* child = children_.find(uint64_t{node} << 8 | static_cast<uint8_t>(text[i]));
    if (!child) break;
    node = *child;
    const int32_t index = nodes_[node];
    if (index < 0) continue;
    const size_t end = i + 1;
    if (!tokens_[static_cast<size_t>(index)].special || (pos >= range.begin && end <= range.end)) {
      best = {index, end - pos};
    } else if (end <= range.begin || range.end <= pos) {
      best = {};
      skip = end;
    }
  }
  return best;
}

bool AddedTokenMatcher::is_whole_word(std::string_view text, size_t begin, size_t end) const {
  const auto is_word = [](const Utf8Step& step) { return step.valid && is_word_char(step.code); };
  if (begin > 0 && is_word(decode_last(text.substr(0, begin)))) return false;
  return end == text.size() || !is_word(decode_utf8(text.substr(end)));
}

std::vector<AddedTokenMatcher::Segment> AddedTokenMatcher::split(std::string_view text,
                                                                 std::span<const TextRange> special) const {
  std::vector<Segment> segments;
  size_t done = 0, range = 0;
  for (size_t pos = 0; pos < text.size();) {
    if (!first_[static_cast<uint8_t>(text[pos])]) {
      ++pos;
      continue;
    }
    while (range < special.size() && special[range].end <= pos) ++range;
    const TextRange here = range < special.size() ? special[range] : TextRange{text.size(), text.size()};
    size_t skip = 0;
    const Candidate found = longest_at(text, pos, here, skip);
    if (found.index < 0) {
      pos = skip;
      continue;
    }
    const AddedToken& token = tokens_[static_cast<size_t>(found.index)];
    size_t begin = pos, end = pos + found.length;
    pos = end;
    if (token.single_word && !is_whole_word(text, begin, end)) continue;
    if (token.lstrip) begin = white_before(text, begin, done);
    if (token.rstrip) end = white_from(text, end);
    if (begin > done) segments.push_back({done, begin, -1});
    segments.push_back({begin, end, token.id});
    done = pos = end;
  }
  if (done < text.size()) segments.push_back({done, text.size(), -1});
  return segments;
}

}  // namespace deepinfer
