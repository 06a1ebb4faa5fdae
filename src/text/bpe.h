// Byte-pair encoding of one piece of text, by the ranks of the merges, as it was trained.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "deepinfer/result.h"
#include "text/flat_table.h"

namespace deepinfer {

struct BpeOptions {
  bool ignore_merges = false;  // a piece that is a token is that token, whatever the merges say
  std::optional<int32_t> unk;  // for bytes without a token; absent: such bytes vanish
  bool fuse_unk = false;       // one unk for a row of such bytes
};

struct BpeMerge {
  std::string left, right;  // raw bytes
};

// Immutable after loading: any number of threads may use one, each with a Scratch of its own.
class Bpe {
 public:
  // tokens[i] is spelled by raw bytes and has the id ids[i]; ids are not negative. kModel for a merge whose
  // parts or result are no tokens.
  static Result<Bpe> make(std::vector<std::string> tokens, std::vector<int32_t> ids,
                          const std::vector<BpeMerge>& merges, BpeOptions options);

  struct Scratch {
    struct Symbol {
      int32_t id, previous, next;
      uint32_t length;  // bytes; 0: merged away
    };
    struct Candidate {
      uint32_t rank;
      int32_t position, result;
      uint32_t length;  // of both symbols: a candidate of another length is stale
    };
    std::vector<Symbol> symbols;
    std::vector<Candidate> queue;
    std::vector<int32_t> ids;
    std::vector<uint32_t> ranks;
  };

  // Appends the ids of the piece: O(n log n) for n bytes.
  void encode(std::string_view piece, std::vector<int32_t>& out, Scratch& scratch) const;

 private:
  struct Merge {
    uint32_t rank;
    int32_t result;
  };

  Bpe() = default;
  const Merge* merge(int32_t left, int32_t right) const {
    return merges_.find(uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right));
  }
  Result<void> add_merges(const std::vector<BpeMerge>& merges);
  std::string_view spelling(int32_t index) const { return tokens_[static_cast<size_t>(index)]; }
  void first_ids(std::string_view piece, std::vector<int32_t>& ids) const;
  void merge_short(std::vector<int32_t>& ids, std::vector<uint32_t>& ranks) const;
  void merge_long(Scratch& scratch) const;
  void push_candidate(Scratch& scratch, int32_t position) const;

  std::vector<std::string> tokens_;
  std::vector<int32_t> ids_;
  BytesIndex index_;                    // positions in tokens_ by spelling
  std::array<int32_t, 256> byte_id_{};  // -1: no token
  FlatMap<Merge> merges_;               // by (left id, right id)
  BpeOptions options_;
};

}  // namespace deepinfer
