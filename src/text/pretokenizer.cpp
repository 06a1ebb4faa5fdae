#include "text/pretokenizer.h"

namespace deepinfer {
namespace {

struct Part {
  TextMatch range;
  bool match = false;
};

std::vector<TextMatch> matches_of(const SplitStep& step, std::string_view text) {
  std::vector<TextMatch> matches;
  if (const auto* regex = std::get_if<SplitRegex>(&step.pattern)) {
    regex->find_all(text, matches);
    return matches;
  }
  const auto& needle = std::get<std::string>(step.pattern);
  if (needle.empty()) return matches;
  for (size_t at = text.find(needle); at != std::string_view::npos;
       at = text.find(needle, at + needle.size()))
    matches.push_back({at, at + needle.size()});
  return matches;
}

// The whole text in order, each part a match or not.
std::vector<Part> parts_of(const SplitStep& step, std::string_view text) {
  std::vector<Part> parts;
  size_t done = 0;
  for (const TextMatch& match : matches_of(step, text)) {
    if (match.begin > done) parts.push_back({{done, match.begin}, step.invert});
    parts.push_back({match, !step.invert});
    done = match.end;
  }
  if (done < text.size()) parts.push_back({{done, text.size()}, step.invert});
  return parts;
}

// Whether this part continues the piece before it.
bool joins(SplitBehavior behavior, const Part& before, const Part& part) {
  switch (behavior) {
    case SplitBehavior::kContiguous:
      return before.match == part.match;
    case SplitBehavior::kMergedWithPrevious:
      return part.match && !before.match;
    case SplitBehavior::kMergedWithNext:
      return before.match && !part.match;
    case SplitBehavior::kRemoved:
    case SplitBehavior::kIsolated:
      return false;
  }
  return false;
}

void apply(const SplitStep& step, std::string_view text, std::vector<std::string_view>& pieces) {
  const std::vector<Part> parts = parts_of(step, text);
  for (size_t i = 0; i < parts.size();) {
    size_t end = i + 1;
    while (end < parts.size() && joins(step.behavior, parts[end - 1], parts[end])) ++end;
    const size_t begin = parts[i].range.begin;
    if (step.behavior != SplitBehavior::kRemoved || !parts[i].match)
      pieces.push_back(text.substr(begin, parts[end - 1].range.end - begin));
    i = end;
  }
}

}  // namespace

void PreTokenizer::split(std::string_view text, std::vector<std::string_view>& pieces,
                         std::deque<std::string>& storage) const {
  pieces.clear();
  if (text.empty()) return;
  pieces.push_back(text);
  std::vector<std::string_view> before;
  for (const PreTokenizerStep& step : steps_) {
    before.swap(pieces);
    pieces.clear();
    for (const std::string_view piece : before) {
      if (const auto* pattern = std::get_if<ScanPattern>(&step)) {
        scan(*pattern, piece, pieces);
      } else if (const auto* split = std::get_if<SplitStep>(&step)) {
        apply(*split, piece, pieces);
      } else if (piece.starts_with(' ')) {
        pieces.push_back(piece);
      } else {
        pieces.push_back(storage.emplace_back(" ").append(piece));
      }
    }
  }
}

}  // namespace deepinfer
