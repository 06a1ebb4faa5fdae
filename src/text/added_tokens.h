// Tokens that are found in the text itself, before any splitting: special ones and others that a model added.
#pragma once

#include <bitset>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/flat_table.h"
#include "text/tokenizer.h"

namespace deepinfer {

// With the flags of tokenizer.json.
struct AddedToken {
  std::string content;
  int32_t id = 0;
  bool special = false;
  bool single_word = false;             // not inside a word
  bool lstrip = false, rstrip = false;  // takes the white space before, behind
  bool normalized = false;              // is looked for in normalized text
};

// Sorted, without overlap, touching ranges joined, inside a text of `size` bytes.
std::vector<TextRange> tidy_ranges(std::span<const TextRange> ranges, size_t size);

// Immutable after loading: any number of threads may use one.
class AddedTokenMatcher {
 public:
  explicit AddedTokenMatcher(std::vector<AddedToken> tokens = {});

  bool empty() const { return tokens_.empty(); }

  struct Segment {
    size_t begin = 0, end = 0;  // bytes
    int32_t token = -1;         // -1: ordinary text
  };

  // The text as segments from left to right, none of them empty. The leftmost token wins, then the longest; a
  // special token only counts where its spelling lies wholly inside one of the tidy ranges.
  std::vector<Segment> split(std::string_view text, std::span<const TextRange> special) const;

 private:
  struct Candidate {
    int32_t index = -1;  // in tokens_; -1: none
    size_t length = 0;
  };

  void insert(int32_t index);
  Candidate longest_at(std::string_view text, size_t pos, TextRange range, size_t& skip) const;
  bool is_whole_word(std::string_view text, size_t begin, size_t end) const;

  std::vector<AddedToken> tokens_;
  std::vector<int32_t> nodes_;  // a trie with the root 0: the index in tokens_ that ends at the node, or -1
  FlatMap<uint32_t> children_;  // by (node << 8 | byte)
  std::bitset<256> first_;      // bytes that a token starts with
};

}  // namespace deepinfer
