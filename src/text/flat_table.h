// Open-addressing tables that are filled once and then only read: half the time of std::unordered_map in
// the inner loop of BPE.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

namespace deepinfer {

inline uint64_t mix_hash(uint64_t x) {
  x *= 0x9E3779B97F4A7C15u;
  return x ^ x >> 32;
}

inline uint64_t hash_bytes(std::string_view text) {
  uint64_t hash = text.size(), word = 0;
  while (text.size() >= 8) {
    std::memcpy(&word, text.data(), 8);
    hash = mix_hash(hash ^ word);
    text.remove_prefix(8);
  }
  word = 0;
  if (!text.empty()) std::memcpy(&word, text.data(), text.size());
  return mix_hash(hash ^ word);
}

// From 64-bit keys to values. The key of all ones is taken for empty cells.
template <class Value>
class FlatMap {
 public:
  explicit FlatMap(size_t expected = 0) { resize(expected); }

  void put(uint64_t key, Value value) {
    if ((size_ + 1) * 2 > cells_.size()) resize(cells_.size());
    Cell& cell = cells_[slot(key)];
    size_ += cell.key == kEmpty;
    cell = {key, value};
  }

  const Value* find(uint64_t key) const {
    const Cell& cell = cells_[slot(key)];
    return cell.key == key ? &cell.value : nullptr;
  }

 private:
  static constexpr uint64_t kEmpty = ~uint64_t{0};
  struct Cell {
    uint64_t key = kEmpty;
    Value value{};
  };

  size_t slot(uint64_t key) const {
    size_t i = mix_hash(key) & (cells_.size() - 1);
    while (cells_[i].key != key && cells_[i].key != kEmpty) i = (i + 1) & (cells_.size() - 1);
    return i;
  }

  void resize(size_t expected) {
    std::vector<Cell> old(std::bit_ceil(expected * 2 + 8));
    old.swap(cells_);
    for (const Cell& cell : old)
      if (cell.key != kEmpty) cells_[slot(cell.key)] = cell;
  }

  std::vector<Cell> cells_;
  size_t size_ = 0;
};

// Ids by the bytes they stand for; the bytes live elsewhere and are handed in by `bytes_of(id)`.
class BytesIndex {
 public:
  explicit BytesIndex(size_t expected = 0) : cells_(std::bit_ceil(expected * 2 + 8), -1) {}

  // Keeps the first id of equal bytes. At most `expected` entries may be put.
  template <class BytesOf>
  void put(std::string_view bytes, int32_t id, const BytesOf& bytes_of) {
    int32_t& cell = cells_[slot(bytes, bytes_of)];
    if (cell < 0) cell = id;
  }

  // -1: none.
  template <class BytesOf>
  int32_t find(std::string_view bytes, const BytesOf& bytes_of) const {
    return cells_[slot(bytes, bytes_of)];
  }

 private:
  template <class BytesOf>
  size_t slot(std::string_view bytes, const BytesOf& bytes_of) const {
    size_t i = hash_bytes(bytes) & (cells_.size() - 1);
    while (cells_[i] >= 0 && bytes_of(cells_[i]) != bytes) i = (i + 1) & (cells_.size() - 1);
    return i;
  }

  std::vector<int32_t> cells_;
};

}  // namespace deepinfer
