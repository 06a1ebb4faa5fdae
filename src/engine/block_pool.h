// The blocks of the KV cache: who holds which, and which of the free ones still hold a known prefix.
//
// Layers of a group share a block table; all groups take blocks from one pool. A full block may be published
// under a key, a chained SHA-256 over its tokens and all that stand before: then a later sequence with the
// same beginning takes a reference instead of computing it again. A published block whose last user left
// stays findable until the pool needs it, least recently used first.
//
// Each block is in one state: in use (references > 0), cached (none, published), blank (none, not published),
// untouched (never used). Owner: the scheduler. One thread.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "tensor/kv_cache.h"

namespace deepinfer {

using BlockKey = std::array<uint8_t, 32>;

// Keys of blocks. Not for several threads at once.
class BlockHasher {
 public:
  BlockHasher();
  ~BlockHasher();
  BlockHasher(const BlockHasher&) = delete;

  // The parent of the first block: prefixes are shared only under equal extra keys (cache_salt).
  BlockKey root(std::string_view extra);
  BlockKey next(const BlockKey& parent, std::span<const int32_t> tokens);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// [groups] block ids in order of position, all of equal length; -1 where a window group freed a block.
using BlockTables = std::vector<std::vector<int32_t>>;

class BlockPool {
 public:
  // touched_first: reuse cached blocks before blocks that were never used, once there are enough of them
  // (ModelRunner::Info).
  BlockPool(std::vector<KvGroupSpec> groups, int block_size, int64_t num_blocks, bool touched_first);

  int block_size() const { return block_size_; }
  int64_t total_blocks() const { return static_cast<int64_t>(blocks_.size()); }
  int64_t free_blocks() const { return total_blocks() - used_; }
  int64_t cached_blocks() const { return cached_; }  // free ones that hold a known prefix
  // Changes whenever a block became free: what failed to fit may fit now.
  uint64_t free_epoch() const { return free_epoch_; }

  // Takes the longest prefix that all groups hold into `tables` (empty before), where window groups need only
  // what the next token looks back on. Returns its blocks.
  int64_t match_prefix(std::span<const BlockKey> keys, BlockTables& tables);

  // Blocks that grow() would take, and the largest number of positions <= wanted that it could hold.
  int64_t missing(const BlockTables& tables, int64_t positions) const;
  int64_t growable(const BlockTables& tables, int64_t wanted) const;
  // Adds blocks until `positions` fit. All or nothing: false when too few are free.
  bool grow(BlockTables& tables, int64_t positions);

  // Block `index` is full and computed: later prefixes may find it. A key that is known already keeps its
  // block.
  void publish(const BlockTables& tables, int64_t index, const BlockKey& key);

  // Window groups give back what the token at `position` and later ones do not look back on.
  void trim(BlockTables& tables, int64_t position);

  // Gives all back, the last block first, so that the beginning of a prefix stays cached longest. Returns how
  // many the tables held.
  int64_t release(BlockTables& tables);

  // Forgets every key.
  void reset_cache();

  // Most blocks that a sequence of `positions` holds at once when `chunk` tokens are computed in a step.
  int64_t peak_blocks(int64_t positions, int64_t chunk) const;
  // The largest number of positions whose peak fits into the whole pool.
  int64_t max_positions(int64_t limit, int64_t chunk) const;

  // Throws InternalError unless references are exactly those of `users` and every block is in one state.
  void check_invariants(std::span<const BlockTables* const> users) const;
  // True when nobody else may see what is written to the block.
  bool writable(int32_t block) const;

 private:
  struct Block {
    int32_t references = 0;
    int32_t previous = 0, next = 0;  // in the list of cached blocks
    int32_t group = -1;              // published under (key, group); -1: not published
    BlockKey key{};
  };
  struct Entry {
    BlockKey key;
    int32_t group;
    bool operator==(const Entry&) const = default;
  };
  struct EntryHash {
    size_t operator()(const Entry& entry) const;
  };

  int32_t allocate();
  bool may_touch_more() const;
  int32_t find(const BlockKey& key, int32_t group) const;
  void take(int32_t block);
  void give(int32_t block);
  void forget(int32_t block);
  void link_newest(int32_t block);
  void unlink(int32_t block);
  int32_t first_needed_block(const KvGroupSpec& group, int64_t position) const;
  void check_lists() const;

  std::vector<KvGroupSpec> groups_;
  int block_size_;
  bool touched_first_;
  std::vector<Block> blocks_;
  Block list_;  // previous: newest, next: oldest; its index is total_blocks()
  int64_t cached_ = 0;
  std::vector<int32_t> blank_;  // last in, first out
  int64_t untouched_ = 0;       // first block that was never used
  int64_t used_ = 0, most_used_ = 0;
  uint64_t free_epoch_ = 0;
  std::unordered_map<Entry, int32_t, EntryHash> published_;
};

}  // namespace deepinfer
