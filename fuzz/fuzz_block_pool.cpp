// The pool of KV blocks as a state machine: the bytes are operations of a few sequences that share prefixes,
// and after each one every block has exactly one state and each reference one owner.
#include <array>
#include <cstdint>
#include <vector>

#include "base/check.h"
#include "engine/block_pool.h"

using namespace deepinfer;

namespace {

constexpr int kSequences = 4, kBlockSize = 3, kLongest = 40;

struct Bytes {
  const uint8_t* data;
  size_t size;
  int take(int below) {
    if (size == 0) return 0;
    --size;
    return *data++ % below;
  }
};

struct User {
  BlockTables tables;
  std::vector<BlockKey> keys;  // of all blocks it could have
  int64_t published = 0, trimmed = 0;
  bool started = false;
};

// Two families of prompts that part at some block: their keys are equal before it.
std::vector<BlockKey> keys_of(int family, int parts_at) {
  BlockHasher hasher;
  std::vector<BlockKey> keys;
  for (int block = 0; block * kBlockSize < kLongest; ++block) {
    const std::vector<int32_t> tokens{block, block < parts_at ? 0 : family, 7};
    keys.push_back(hasher.next(keys.empty() ? hasher.root("") : keys.back(), tokens));
  }
  return keys;
}

class Machine {
 public:
  explicit Machine(Bytes& in) : in_(in), groups_(choose_groups(in)), pool_(make(in, groups_)) {}

  void step() {
    User& u = users_[in_.take(kSequences)];
    switch (in_.take(6)) {
      case 0:
        if (!u.started) start(u);
        break;
      case 1:
        if (u.started) grow(u);
        break;
      case 2:
        if (u.started) publish(u);
        break;
      case 3:
        if (u.started) trim(u);
        break;
      case 4:
        if (u.started) end(u);
        break;
      case 5:
        if (in_.take(8) == 0) pool_.reset_cache();
        break;
    }
    check();
  }

  void finish() {
    for (User& u : users_) end(u);
    check();
    DI_CHECK(pool_.free_blocks() == pool_.total_blocks(), "{} of {} blocks are free at the end",
             pool_.free_blocks(), pool_.total_blocks());
  }

 private:
  static std::vector<KvGroupSpec> choose_groups(Bytes& in) {
    std::vector<KvGroupSpec> groups(1 + in.take(3));
    for (size_t i = 1; i < groups.size(); ++i) {
      groups[i].kind = KvGroupSpec::Kind::kWindow;
      groups[i].window = 1 + in.take(12);
    }
    return groups;
  }
  static BlockPool make(Bytes& in, const std::vector<KvGroupSpec>& groups) {
    const bool touched_first = in.take(2) == 1;
    return {groups, kBlockSize, static_cast<int64_t>(groups.size()) * (2 + in.take(20)), touched_first};
  }

  int64_t positions(const User& u) const {
    return static_cast<int64_t>(u.tables.empty() ? 0 : u.tables[0].size()) * kBlockSize;
  }

  void start(User& u) {
    u = {};
    u.keys = keys_of(in_.take(2), in_.take(6));
    const int64_t most = in_.take(static_cast<int>(u.keys.size()) + 1);
    u.published = pool_.match_prefix(std::span(u.keys).first(most), u.tables);
    DI_CHECK(u.published <= most, "a prefix of {} blocks out of {}", u.published, most);
    u.trimmed = u.published * kBlockSize;
    u.started = true;
  }
  void grow(User& u) {
    const int64_t wanted = std::min<int64_t>(positions(u) + 1 + in_.take(9), kLongest);
    const int64_t missing = pool_.missing(u.tables, wanted), free = pool_.free_blocks();
    const bool grown = pool_.grow(u.tables, wanted);
    DI_CHECK(grown == (missing <= free), "{} blocks are missing, {} free, grown: {}", missing, free, grown);
    DI_CHECK(pool_.free_blocks() == (grown ? free - missing : free), "{} blocks are free, before {}",
             pool_.free_blocks(), free);
  }
  void publish(User& u) {
    if (u.published * kBlockSize >= positions(u)) return;
    pool_.publish(u.tables, u.published, u.keys[static_cast<size_t>(u.published)]);
    ++u.published;
  }
  void trim(User& u) {
    u.trimmed = std::min(u.published * kBlockSize, u.trimmed + in_.take(7));
    pool_.trim(u.tables, u.trimmed);
  }
  void end(User& u) {
    pool_.release(u.tables);
    u = {};
  }
  void check() const {
    std::vector<const BlockTables*> users;
    for (const User& u : users_)
      if (!u.tables.empty()) users.push_back(&u.tables);
    pool_.check_invariants(users);
  }

  Bytes& in_;
  const std::vector<KvGroupSpec> groups_;
  BlockPool pool_;
  std::array<User, kSequences> users_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes in{data, size};
  Machine machine(in);
  while (in.size > 0) machine.step();
  machine.finish();
  return 0;
}
