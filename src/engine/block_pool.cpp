#include "engine/block_pool.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"

namespace deepinfer {
namespace {

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

}  // namespace

BlockPool::BlockPool(std::vector<KvGroupSpec> groups, int block_size, int64_t num_blocks, bool touched_first)
    : groups_(std::move(groups)), block_size_(block_size), touched_first_(touched_first) {
  DI_CHECK(!groups_.empty() && block_size > 0 && num_blocks > 0 && num_blocks < INT32_MAX,
           "block pool of {} groups, {} blocks of {}", groups_.size(), num_blocks, block_size);
  blocks_.resize(static_cast<size_t>(num_blocks));
  blank_.reserve(blocks_.size());
  list_.previous = list_.next = static_cast<int32_t>(num_blocks);
}

size_t BlockPool::EntryHash::operator()(const Entry& entry) const {
  uint64_t word;  // the key is a cryptographic hash: any eight bytes of it are a good one
  std::memcpy(&word, entry.key.data(), sizeof word);
  return word ^ (static_cast<uint64_t>(entry.group) * 0x9e3779b97f4a7c15u);
}

int32_t BlockPool::first_needed_block(const KvGroupSpec& group, int64_t position) const {
  if (group.kind == KvGroupSpec::Kind::kFull) return 0;
  return static_cast<int32_t>(std::max<int64_t>(0, position - group.window) / block_size_);
}

int32_t BlockPool::find(const BlockKey& key, int32_t group) const {
  auto it = published_.find(Entry{key, group});
  return it == published_.end() ? -1 : it->second;
}

int64_t BlockPool::match_prefix(std::span<const BlockKey> keys, BlockTables& tables) {
  tables.resize(groups_.size());
  for (auto& table : tables) {
    DI_CHECK(table.empty(), "match_prefix: {} blocks are held already", table.size());
  }
  // run[g]: cached blocks of the group in a row up to here. A prefix of n blocks counts when each group's run
  // reaches back to the first block that position n * block_size needs.
  std::vector<int64_t> run(groups_.size(), 0);
  int64_t best = 0;
  for (int64_t n = 1; n <= static_cast<int64_t>(keys.size()); ++n) {
    bool all = true, full_groups_hold = true;
    for (size_t g = 0; g < groups_.size(); ++g) {
      int32_t block = find(keys[n - 1], static_cast<int32_t>(g));
      tables[g].push_back(block);
      run[g] = block < 0 ? 0 : run[g] + 1;
      all = all && run[g] >= n - first_needed_block(groups_[g], n * block_size_);
      full_groups_hold = full_groups_hold && (block >= 0 || groups_[g].kind != KvGroupSpec::Kind::kFull);
    }
    if (!full_groups_hold) break;
    if (all) best = n;
  }
  for (size_t g = 0; g < groups_.size(); ++g) {
    tables[g].resize(static_cast<size_t>(best));
    int32_t first = first_needed_block(groups_[g], best * block_size_);
    for (int64_t i = 0; i < best; ++i) {
      if (i < first) {
        tables[g][i] = -1;
      } else {
        take(tables[g][i]);
      }
    }
  }
  return best;
}

int64_t BlockPool::missing(const BlockTables& tables, int64_t positions) const {
  int64_t held = tables.empty() ? 0 : static_cast<int64_t>(tables[0].size());
  return std::max<int64_t>(0, ceil_div(positions, block_size_) - held) * static_cast<int64_t>(groups_.size());
}

int64_t BlockPool::growable(const BlockTables& tables, int64_t wanted) const {
  int64_t held = tables.empty() ? 0 : static_cast<int64_t>(tables[0].size());
  return std::min(wanted, (held + free_blocks() / static_cast<int64_t>(groups_.size())) * block_size_);
}

bool BlockPool::grow(BlockTables& tables, int64_t positions) {
  if (missing(tables, positions) > free_blocks()) return false;
  tables.resize(groups_.size());
  for (auto& table : tables) {
    while (static_cast<int64_t>(table.size()) * block_size_ < positions) table.push_back(allocate());
  }
  return true;
}

bool BlockPool::may_touch_more() const {
  if (untouched_ == total_blocks()) return false;
  return !touched_first_ || untouched_ < std::max(most_used_ + most_used_ / 2, total_blocks() / 8);
}

int32_t BlockPool::allocate() {
  int32_t block;
  if (!blank_.empty()) {
    block = blank_.back();
    blank_.pop_back();
  } else if (cached_ > 0 && !may_touch_more()) {
    block = list_.next;
    unlink(block);
    forget(block);
  } else {
    DI_CHECK(untouched_ < total_blocks(), "no free block: {} of {} are in use", used_, total_blocks());
    block = static_cast<int32_t>(untouched_++);
  }
  blocks_[block].references = 1;
  most_used_ = std::max(most_used_, ++used_);
  return block;
}

void BlockPool::take(int32_t block) {
  if (blocks_[block].references++ == 0) {
    unlink(block);
    most_used_ = std::max(most_used_, ++used_);
  }
}

void BlockPool::give(int32_t block) {
  Block& b = blocks_[block];
  DI_CHECK(b.references > 0, "block {} given back twice", block);
  if (--b.references > 0) return;
  --used_;
  ++free_epoch_;
  if (b.group >= 0) {
    link_newest(block);
  } else {
    blank_.push_back(block);
  }
}

void BlockPool::forget(int32_t block) {
  Block& b = blocks_[block];
  published_.erase(Entry{b.key, b.group});
  b.group = -1;
}

void BlockPool::link_newest(int32_t block) {
  const auto end = static_cast<int32_t>(blocks_.size());
  Block& b = blocks_[block];
  b.next = end;
  b.previous = list_.previous;
  (b.previous == end ? list_ : blocks_[b.previous]).next = block;
  list_.previous = block;
  ++cached_;
}

void BlockPool::unlink(int32_t block) {
  const auto end = static_cast<int32_t>(blocks_.size());
  Block& b = blocks_[block];
  (b.previous == end ? list_ : blocks_[b.previous]).next = b.next;
  (b.next == end ? list_ : blocks_[b.next]).previous = b.previous;
  --cached_;
}

void BlockPool::publish(const BlockTables& tables, int64_t index, const BlockKey& key) {
  for (size_t g = 0; g < groups_.size(); ++g) {
    int32_t block = tables[g][index];
    if (block < 0 || blocks_[block].group >= 0) continue;  // freed behind the window, or came from the cache
    auto group = static_cast<int32_t>(g);
    if (published_.try_emplace(Entry{key, group}, block).second) {
      blocks_[block].group = group;
      blocks_[block].key = key;
    }
  }
}

void BlockPool::trim(BlockTables& tables, int64_t position) {
  for (size_t g = 0; g < tables.size(); ++g) {
    auto end =
        std::min<int64_t>(first_needed_block(groups_[g], position), static_cast<int64_t>(tables[g].size()));
    int64_t begin = end;
    while (begin > 0 && tables[g][begin - 1] >= 0) --begin;
    for (int64_t i = end - 1; i >= begin; --i) {
      give(tables[g][i]);
      tables[g][i] = -1;
    }
  }
}

int64_t BlockPool::release(BlockTables& tables) {
  int64_t count = 0;
  size_t length = tables.empty() ? 0 : tables[0].size();
  for (size_t i = length; i-- > 0;) {
    for (auto& table : tables) {
      if (table[i] < 0) continue;
      give(table[i]);
      ++count;
    }
  }
  for (auto& table : tables) table.clear();
  return count;
}

void BlockPool::reset_cache() {
  while (cached_ > 0) {
    int32_t block = list_.next;
    unlink(block);
    forget(block);
    blank_.push_back(block);
  }
  for (auto& [entry, block] : published_) blocks_[block].group = -1;
  published_.clear();
}

int64_t BlockPool::peak_blocks(int64_t positions, int64_t chunk) const {
  int64_t all = ceil_div(positions, block_size_), sum = 0;
  for (const KvGroupSpec& group : groups_) {
    bool full = group.kind == KvGroupSpec::Kind::kFull;
    // window + chunk positions, wherever they begin in their first block
    sum += full ? all : std::min(all, (group.window + chunk + block_size_ - 2) / block_size_ + 1);
  }
  return sum;
}

int64_t BlockPool::max_positions(int64_t limit, int64_t chunk) const {
  int64_t low = 0, high = limit;
  while (low < high) {
    int64_t middle = low + (high - low + 1) / 2;
    if (peak_blocks(middle, std::min(chunk, middle)) <= total_blocks()) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

bool BlockPool::writable(int32_t block) const {
  return blocks_[block].references == 1 && blocks_[block].group < 0;
}

void BlockPool::check_invariants(std::span<const BlockTables* const> users) const {
  std::vector<int32_t> references(blocks_.size(), 0);
  for (const BlockTables* tables : users) {
    for (const auto& table : *tables) {
      DI_CHECK(table.size() == (*tables)[0].size(), "tables of {} and {} blocks", table.size(),
               (*tables)[0].size());
      for (int32_t block : table) {
        if (block < 0) continue;
        DI_CHECK(block < total_blocks(), "block {} of {}", block, total_blocks());
        ++references[block];
      }
    }
  }
  int64_t used = 0, published = 0;
  for (size_t b = 0; b < blocks_.size(); ++b) {
    DI_CHECK(references[b] == blocks_[b].references, "block {}: {} users, {} references", b, references[b],
             blocks_[b].references);
    used += references[b] > 0;
    if (blocks_[b].group < 0) continue;
    ++published;
    DI_CHECK(find(blocks_[b].key, blocks_[b].group) == static_cast<int32_t>(b),
             "block {} is not found by its key", b);
  }
  DI_CHECK(used == used_, "{} blocks in use, counted {}", used, used_);
  DI_CHECK(published == static_cast<int64_t>(published_.size()), "{} blocks published, {} keys", published,
           published_.size());
  check_lists();
}

void BlockPool::check_lists() const {
  enum : uint8_t { kUsed, kCached, kBlank, kUntouched };
  const auto end = static_cast<int32_t>(blocks_.size());
  std::vector<uint8_t> state(blocks_.size(), kUsed);
  int64_t cached = 0;
  int32_t before = end;
  for (int32_t b = list_.next; b != end; before = b, b = blocks_[b].next) {
    DI_CHECK(cached++ < cached_ && state[b] == kUsed, "the list of cached blocks has a loop at {}", b);
    DI_CHECK(blocks_[b].group >= 0 && blocks_[b].references == 0, "block {} is listed as cached", b);
    DI_CHECK(blocks_[b].previous == before, "block {}: broken back link", b);
    state[b] = kCached;
  }
  DI_CHECK(cached == cached_ && list_.previous == before, "{} blocks cached, counted {}", cached, cached_);
  for (int32_t b : blank_) {
    DI_CHECK(state[b] == kUsed && blocks_[b].group < 0, "block {} is blank and something else", b);
    state[b] = kBlank;
  }
  for (int64_t b = untouched_; b < total_blocks(); ++b) {
    DI_CHECK(state[b] == kUsed && blocks_[b].group < 0, "block {} is untouched and something else", b);
    state[b] = kUntouched;
  }
  for (size_t b = 0; b < blocks_.size(); ++b) {
    DI_CHECK((state[b] == kUsed) == (blocks_[b].references > 0), "block {} is lost", b);
  }
}

}  // namespace deepinfer
