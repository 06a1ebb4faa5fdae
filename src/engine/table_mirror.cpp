#include "engine/table_mirror.h"

#include <limits>

#include "base/check.h"
#include "tensor/step_batch.h"

namespace deepinfer {

TableMirror::TableMirror(int groups, int slots, int max_blocks)
    : slots_(slots), max_blocks_(max_blocks), state_(slots) {
  DI_CHECK(int64_t{groups} * slots * max_blocks <= std::numeric_limits<int32_t>::max(),
           "block tables of {} groups x {} slots x {} blocks are larger than an index", groups, slots,
           max_blocks);
  for (Slot& s : state_) s.tables.resize(groups);
}

void TableMirror::forget() {
  for (Slot& s : state_) {
    s.sequence = ~uint64_t{0};
    for (Table& t : s.tables) t.known.clear();
  }
}

void TableMirror::compare(Table& table, const std::vector<int32_t>& wanted, size_t from, size_t to,
                          std::vector<cuda::BlockDelta>& out, int64_t start) {
  for (size_t i = from; i < to; ++i) {
    if (i < table.known.size() && table.known[i] == wanted[i]) continue;
    if (i < table.known.size()) {
      table.known[i] = wanted[i];
    } else {
      table.known.push_back(wanted[i]);
    }
    out.push_back({static_cast<int32_t>(start + static_cast<int64_t>(i)), wanted[i]});
  }
}

void TableMirror::diff(const StepRow& row, std::vector<cuda::BlockDelta>& out) {
  DI_CHECK(row.slot >= 0 && row.slot + 1 < slots_, "row of slot {}, there are {}", row.slot, slots_ - 1);
  Slot& slot = state_[row.slot];
  DI_CHECK(row.block_table.size() == slot.tables.size(), "row with {} block tables, expected {}",
           row.block_table.size(), slot.tables.size());
  // A row that goes on from its slot has rows in flight before it: since then its sequence can only have got
  // blocks at the end and lost some behind a window.
  const bool goes_on =
      slot.sequence == row.sequence && row.tokens.size() == 1 && row.tokens[0] == kTokenFromSlot;
  slot.sequence = row.sequence;
  for (size_t g = 0; g < slot.tables.size(); ++g) {
    const std::vector<int32_t>& wanted = row.block_table[g];
    Table& table = slot.tables[g];
    DI_CHECK(wanted.size() <= static_cast<size_t>(max_blocks_), "a table of {} blocks, expected at most {}",
             wanted.size(), max_blocks_);
    const int64_t start = (static_cast<int64_t>(g) * slots_ + row.slot) * max_blocks_;
    const size_t freed = goes_on ? table.freed : 0, length = goes_on ? table.length : 0;
    table.freed = freed;
    while (table.freed < wanted.size() && wanted[table.freed] < 0) ++table.freed;
    if (length > 0) compare(table, wanted, freed, std::min(table.freed, length), out, start);
    compare(table, wanted, std::min(length, wanted.size()), wanted.size(), out, start);
    table.length = wanted.size();
  }
}

}  // namespace deepinfer
