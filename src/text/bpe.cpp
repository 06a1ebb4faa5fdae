#include "text/bpe.h"

#include <algorithm>
#include <limits>

#include "base/check.h"
#include "text/byte_alphabet.h"

namespace deepinfer {
namespace {

constexpr uint32_t kNoMerge = std::numeric_limits<uint32_t>::max();
// Below this length looking at every pair again is faster than a queue.
constexpr size_t kShortPiece = 40;

// The lowest rank first, then the leftmost.
bool later(const Bpe::Scratch::Candidate& a, const Bpe::Scratch::Candidate& b) {
  return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
}

}  // namespace

Result<Bpe> Bpe::make(std::vector<std::string> tokens, std::vector<int32_t> ids,
                      const std::vector<BpeMerge>& merges, BpeOptions options) {
  Bpe bpe;
  bpe.tokens_ = std::move(tokens);
  bpe.ids_ = std::move(ids);
  bpe.options_ = options;
  bpe.index_ = BytesIndex(bpe.tokens_.size());
  bpe.byte_id_.fill(-1);
  const auto spelling = [&bpe](int32_t index) { return bpe.spelling(index); };
  for (size_t i = 0; i < bpe.tokens_.size(); ++i) {
    const std::string& token = bpe.tokens_[i];
    bpe.index_.put(token, static_cast<int32_t>(i), spelling);
    if (token.size() == 1) bpe.byte_id_[static_cast<uint8_t>(token[0])] = bpe.ids_[i];
  }
  DI_TRY(bpe.add_merges(merges));
  return bpe;
}

Result<void> Bpe::add_merges(const std::vector<BpeMerge>& merges) {
  merges_ = FlatMap<Merge>(merges.size());
  const auto spelling = [this](int32_t index) { return this->spelling(index); };
  std::string joined;
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const BpeMerge& m = merges[rank];
    joined.assign(m.left).append(m.right);
    const int32_t left = index_.find(m.left, spelling), right = index_.find(m.right, spelling),
                  result = index_.find(joined, spelling);
    if (left < 0 || right < 0 || result < 0) {
      const std::string& missing = left < 0 ? m.left : right < 0 ? m.right : joined;
      return make_error(ErrorCode::kModel,
                        "merge {} (\"{} {}\") needs the token \"{}\", which the vocabulary lacks", rank,
                        bytes_to_alphabet(m.left), bytes_to_alphabet(m.right), bytes_to_alphabet(missing));
    }
    const auto id = [this](int32_t index) { return static_cast<uint32_t>(ids_[static_cast<size_t>(index)]); };
    merges_.put(uint64_t{id(left)} << 32 | id(right),
                Merge{static_cast<uint32_t>(rank), static_cast<int32_t>(id(result))});
  }
  return {};
}

void Bpe::encode(std::string_view piece, std::vector<int32_t>& out, Scratch& scratch) const {
  if (options_.ignore_merges) {
    const int32_t index = index_.find(piece, [this](int32_t i) { return spelling(i); });
    if (index >= 0) {
      out.push_back(ids_[static_cast<size_t>(index)]);
      return;
    }
  }
  first_ids(piece, scratch.ids);
  if (scratch.ids.size() < kShortPiece) {
    merge_short(scratch.ids, scratch.ranks);
  } else {
    merge_long(scratch);
  }
  out.insert(out.end(), scratch.ids.begin(), scratch.ids.end());
}

void Bpe::first_ids(std::string_view piece, std::vector<int32_t>& ids) const {
  ids.clear();
  bool after_unk = false;
  for (const char byte : piece) {
    const int32_t id = byte_id_[static_cast<uint8_t>(byte)];
    if (id >= 0) {
      ids.push_back(id);
    } else if (options_.unk && !(after_unk && options_.fuse_unk)) {
      ids.push_back(*options_.unk);
    }
    after_unk = id < 0;
  }
}

void Bpe::merge_short(std::vector<int32_t>& ids, std::vector<uint32_t>& ranks) const {
  const auto rank_at = [&](size_t i) {
    const Merge* found = merge(ids[i], ids[i + 1]);
    return found ? found->rank : kNoMerge;
  };
  ranks.clear();
  for (size_t i = 0; i + 1 < ids.size(); ++i) ranks.push_back(rank_at(i));
  while (!ranks.empty()) {
    const auto best = std::min_element(ranks.begin(), ranks.end());
    if (*best == kNoMerge) return;
    const auto i = static_cast<size_t>(best - ranks.begin());
    ids[i] = merge(ids[i], ids[i + 1])->result;
    ids.erase(ids.begin() + static_cast<ptrdiff_t>(i) + 1);
    ranks.erase(best);
    if (i < ranks.size()) ranks[i] = rank_at(i);
    if (i > 0) ranks[i - 1] = rank_at(i - 1);
  }
}

void Bpe::push_candidate(Scratch& scratch, int32_t position) const {
  const auto& left = scratch.symbols[static_cast<size_t>(position)];
  if (left.next < 0) return;
  const auto& right = scratch.symbols[static_cast<size_t>(left.next)];
  const Merge* found = merge(left.id, right.id);
  if (!found) return;
  scratch.queue.push_back({found->rank, position, found->result, left.length + right.length});
}

void Bpe::merge_long(Scratch& scratch) const {
  auto& symbols = scratch.symbols;
  auto& queue = scratch.queue;
  const auto count = static_cast<int32_t>(scratch.ids.size());
  symbols.clear();
  queue.clear();
  for (int32_t i = 0; i < count; ++i)
    symbols.push_back({scratch.ids[static_cast<size_t>(i)], i - 1, i + 1 < count ? i + 1 : -1, 1});
  for (int32_t i = 0; i + 1 < count; ++i) push_candidate(scratch, i);
  std::make_heap(queue.begin(), queue.end(), later);
  const auto push = [&](int32_t position) {
    const size_t before = queue.size();
    push_candidate(scratch, position);
    if (queue.size() > before) std::push_heap(queue.begin(), queue.end(), later);
  };
  while (!queue.empty()) {
    std::pop_heap(queue.begin(), queue.end(), later);
    const Scratch::Candidate top = queue.back();
    queue.pop_back();
    auto& left = symbols[static_cast<size_t>(top.position)];
    if (left.length == 0 || left.next < 0) continue;
    auto& right = symbols[static_cast<size_t>(left.next)];
    // Symbols only grow: a pair of another length is another pair.
    if (left.length + right.length != top.length) continue;
    left.id = top.result;
    left.length += right.length;
    right.length = 0;
    left.next = right.next;
    if (left.next >= 0) symbols[static_cast<size_t>(left.next)].previous = top.position;
    push(top.position);
    if (left.previous >= 0) push(left.previous);
  }
  scratch.ids.clear();
  for (int32_t i = 0; i >= 0; i = symbols[static_cast<size_t>(i)].next)
    scratch.ids.push_back(symbols[static_cast<size_t>(i)].id);
}

}  // namespace deepinfer
