#include "engine/block_pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <list>
#include <map>
#include <random>

#include "base/check.h"
#include "fake_runner.h"

namespace deepinfer::test {
namespace {

constexpr int kBlock = 4;

std::vector<BlockKey> chain(const std::vector<int32_t>& tokens, const char* salt = "") {
  BlockHasher hasher;
  std::vector<BlockKey> keys;
  for (size_t i = 0; i + kBlock <= tokens.size(); i += kBlock) {
    keys.push_back(
        hasher.next(keys.empty() ? hasher.root(salt) : keys.back(), std::span(tokens).subspan(i, kBlock)));
  }
  return keys;
}

void publish_all(BlockPool& pool, const BlockTables& tables, const std::vector<BlockKey>& keys) {
  for (size_t i = 0; i < keys.size(); ++i) pool.publish(tables, static_cast<int64_t>(i), keys[i]);
}

void check(const BlockPool& pool, std::vector<const BlockTables*> users) {
  pool.check_invariants(users);
}

TEST(BlockHasher, KeysDependOnTokensParentAndSalt) {
  std::vector<BlockKey> a = chain({1, 2, 3, 4, 5, 6, 7, 8});
  std::vector<BlockKey> b = chain({1, 2, 3, 9, 5, 6, 7, 8});
  EXPECT_EQ(a, chain({1, 2, 3, 4, 5, 6, 7, 8}));
  EXPECT_NE(a[0], b[0]);
  EXPECT_NE(a[1], b[1]) << "equal tokens after another beginning";
  EXPECT_NE(a[0], chain({1, 2, 3, 4}, "salt")[0]);
  EXPECT_EQ(chain({1, 2, 3}).size(), 0u);
}

TEST(BlockHasher, IsSha256) {
  BlockHasher hasher;
  BlockKey parent{};
  // sha256 of 32 zero bytes (python: hashlib.sha256(bytes(32)).hexdigest())
  EXPECT_EQ(fmt::format("{:02x}{:02x}{:02x}{:02x}", hasher.next(parent, {})[0], hasher.next(parent, {})[1],
                        hasher.next(parent, {})[2], hasher.next(parent, {})[3]),
            "66687aad");
}

TEST(BlockPool, GrowsAllOrNothing) {
  BlockPool pool({full_group(), full_group()}, kBlock, 5, true);
  BlockTables tables;
  EXPECT_TRUE(pool.grow(tables, 5));
  EXPECT_EQ(pool.free_blocks(), 1);
  EXPECT_FALSE(pool.grow(tables, 9)) << "one block for two groups";
  EXPECT_EQ(tables[0].size(), 2u);
  EXPECT_EQ(pool.growable(tables, 100), 8);
  EXPECT_TRUE(pool.grow(tables, 8));
  check(pool, {&tables});
  EXPECT_EQ(pool.release(tables), 4);
  EXPECT_EQ(pool.free_blocks(), 5);
  check(pool, {});
}

TEST(BlockPool, PrefixesAreFoundWhileUsedAndAfter) {
  BlockPool pool({full_group()}, kBlock, 8, true);
  std::vector<BlockKey> keys = chain({1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12});
  BlockTables first, second, third;
  ASSERT_TRUE(pool.grow(first, 12));
  publish_all(pool, first, keys);
  EXPECT_EQ(pool.match_prefix(keys, second), 3);
  EXPECT_EQ(second, first);
  EXPECT_EQ(pool.free_blocks(), 5) << "shared";
  check(pool, {&first, &second});
  EXPECT_FALSE(pool.writable(first[0][0]));
  pool.release(first);
  pool.release(second);
  EXPECT_EQ(pool.free_blocks(), 8);
  EXPECT_EQ(pool.match_prefix(std::span(keys).first(2), third), 2);
  EXPECT_EQ(pool.free_blocks(), 6);
  check(pool, {&third});
  pool.release(third);
  pool.reset_cache();
  EXPECT_EQ(pool.match_prefix(keys, third), 0);
  check(pool, {&third});
}

TEST(BlockPool, EvictsTheLeastRecentlyUsedAndTheEndOfAPrefixFirst) {
  BlockPool pool({full_group()}, kBlock, 4, true);
  std::vector<BlockKey> old = chain({1, 1, 1, 1, 2, 2, 2, 2}), recent = chain({3, 3, 3, 3, 4, 4, 4, 4});
  BlockTables a, b, c;
  ASSERT_TRUE(pool.grow(a, 8) && pool.grow(b, 8));
  publish_all(pool, a, old);
  publish_all(pool, b, recent);
  pool.release(a);
  pool.release(b);
  ASSERT_TRUE(pool.grow(c, 4));  // evicts the end of `old`
  EXPECT_EQ(pool.match_prefix(old, a), 1);
  pool.release(a);               // most recent now
  ASSERT_TRUE(pool.grow(c, 8));  // the end of `recent`
  EXPECT_EQ(pool.match_prefix(recent, b), 1);
  EXPECT_EQ(pool.match_prefix(old, a), 1);
  check(pool, {&a, &b, &c});
}

TEST(BlockPool, AKeyKeepsItsFirstBlock) {
  BlockPool pool({full_group()}, kBlock, 4, true);
  std::vector<BlockKey> keys = chain({1, 2, 3, 4});
  BlockTables a, b, c;
  ASSERT_TRUE(pool.grow(a, 4) && pool.grow(b, 4));
  publish_all(pool, a, keys);
  publish_all(pool, b, keys);
  EXPECT_TRUE(pool.writable(b[0][0]));
  EXPECT_EQ(pool.match_prefix(keys, c), 1);
  EXPECT_EQ(c, a);
  check(pool, {&a, &b, &c});
}

TEST(BlockPool, AWindowGroupFreesBehindAndHitsWithWhatItNeeds) {
  BlockPool pool({full_group(), window_group(4)}, kBlock, 20, true);
  std::vector<int32_t> tokens(20);
  for (int i = 0; i < 20; ++i) tokens[i] = i;
  std::vector<BlockKey> keys = chain(tokens);
  BlockTables a, b, c;
  ASSERT_TRUE(pool.grow(a, 20));
  publish_all(pool, a, keys);
  pool.trim(a, 17);  // position 17 looks back on 13 to 16
  EXPECT_THAT(a[1], ::testing::ElementsAre(-1, -1, -1, ::testing::Ge(0), ::testing::Ge(0)));
  EXPECT_EQ(pool.free_blocks(), 20 - 5 - 2);
  EXPECT_EQ(pool.match_prefix(keys, b), 5);
  EXPECT_THAT(b[1], ::testing::ElementsAre(-1, -1, -1, -1, a[1][4])) << "position 20 looks back on 16 to 19";
  check(pool, {&a, &b});
  pool.release(a);
  pool.release(b);
  // The blocks of both groups that lie behind position 12 go; what is left is a hit of no group.
  ASSERT_TRUE(pool.grow(c, 4 * 6));
  EXPECT_LT(pool.match_prefix(keys, b), 5);
  check(pool, {&b, &c});
}

TEST(BlockPool, CheckInvariantsSeesWrongUsers) {
  BlockPool pool({full_group()}, kBlock, 4, true);
  BlockTables a;
  ASSERT_TRUE(pool.grow(a, 8));
  check(pool, {&a});
  EXPECT_THROW(check(pool, {}), InternalError) << "a leak";
  EXPECT_THROW(check(pool, {&a, &a}), InternalError) << "a missing reference";
  BlockTables wrong = a;
  std::swap(wrong[0][0], wrong[0][1]);
  wrong[0][1] = 3;
  EXPECT_THROW(check(pool, {&wrong}), InternalError);
  pool.release(a);
  EXPECT_THROW(pool.release(wrong), InternalError) << "given back twice";
}

TEST(BlockPool, TheLargestLengthIsThatWhichFits) {
  BlockPool full({full_group()}, kBlock, 5, true);
  EXPECT_EQ(full.max_positions(1000, 1), 20);
  EXPECT_EQ(full.max_positions(7, 1), 7);
  BlockPool window({window_group(6)}, kBlock, 5, true);
  EXPECT_EQ(window.max_positions(1000, 1), 1000) << "seven positions never touch more than three blocks";
  BlockPool both({full_group(), window_group(6)}, kBlock, 9, true);
  EXPECT_EQ(both.max_positions(1000, 1), 24);
}

// Random operations against a model that knows, for each block, its users and its key, and the order in which
// cached blocks became free.
class Model {
 public:
  explicit Model(uint64_t seed) : random_(seed), pool_({full_group()}, kBlock, kBlocks, seed % 2 == 0) {}

  void run() {
    for (int i = 0; i < 300; ++i) {
      int what = pick(0, 9);
      if (what < 4) begin();
      if (what >= 4 && what < 7) extend();
      if (what >= 7) end();
      std::vector<const BlockTables*> users;
      int64_t used = 0;
      std::map<int32_t, int> references;
      for (auto& u : users_) users.push_back(&u.tables);
      for (auto& u : users_) {
        for (int32_t b : u.tables[0]) used += references[b]++ == 0;
      }
      pool_.check_invariants(users);
      ASSERT_EQ(pool_.free_blocks(), kBlocks - used);
    }
    while (!users_.empty()) end();
    pool_.check_invariants({});
    ASSERT_EQ(pool_.free_blocks(), kBlocks);
  }

 private:
  static constexpr int kBlocks = 12;
  struct User {
    std::vector<BlockKey> keys;
    BlockTables tables;
    size_t published = 0;
  };

  int pick(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }

  void begin() {
    std::vector<int32_t> tokens(static_cast<size_t>(pick(1, 5)) * kBlock);
    for (int32_t& t : tokens) t = pick(0, 20) == 0 ? 1 : 0;  // mostly shared beginnings
    User user{.keys = chain(tokens)};
    // What the pool must find: keys whose block is used or cached.
    size_t want = 0;
    while (want < user.keys.size() && known_.contains(user.keys[want])) ++want;
    user.published = static_cast<size_t>(pool_.match_prefix(user.keys, user.tables));
    ASSERT_EQ(user.published, want);
    for (size_t i = 0; i < want; ++i) {
      ASSERT_EQ(user.tables[0][i], known_[user.keys[i]]) << "another block than the one of this key";
      free_order_.remove(user.tables[0][i]);
    }
    users_.push_back(std::move(user));
  }

  void extend() {
    if (users_.empty()) return;
    User& u = users_[pick(0, static_cast<int>(users_.size()) - 1)];
    if (u.published == u.keys.size()) return;
    int64_t free = pool_.free_blocks();
    bool grew = pool_.grow(u.tables, static_cast<int64_t>(u.published + 1) * kBlock);
    ASSERT_EQ(grew, free > 0 || u.tables[0].size() > u.published);
    if (!grew) return;
    int32_t block = u.tables[0].back();
    // A block that was cached is forgotten, and it was the oldest.
    if (std::find(free_order_.begin(), free_order_.end(), block) != free_order_.end()) {
      ASSERT_EQ(free_order_.front(), block);
      free_order_.pop_front();
      std::erase_if(known_, [&](const auto& entry) { return entry.second == block; });
    }
    pool_.publish(u.tables, static_cast<int64_t>(u.published), u.keys[u.published]);
    known_.try_emplace(u.keys[u.published], block);
    ++u.published;
  }

  void end() {
    if (users_.empty()) return;
    size_t i = static_cast<size_t>(pick(0, static_cast<int>(users_.size()) - 1));
    std::vector<int32_t> held = users_[i].tables[0];
    pool_.release(users_[i].tables);
    users_.erase(users_.begin() + static_cast<int64_t>(i));
    for (size_t k = held.size(); k-- > 0;) {
      bool used = std::any_of(users_.begin(), users_.end(), [&](const User& u) {
        return std::find(u.tables[0].begin(), u.tables[0].end(), held[k]) != u.tables[0].end();
      });
      bool published = std::any_of(known_.begin(), known_.end(),
                                   [&](const auto& entry) { return entry.second == held[k]; });
      if (!used && published) free_order_.push_back(held[k]);
    }
  }

  std::mt19937_64 random_;
  BlockPool pool_;
  std::vector<User> users_;
  std::map<BlockKey, int32_t> known_;
  std::list<int32_t> free_order_;  // cached blocks, oldest first
};

TEST(BlockPool, RandomOperationsAgreeWithAModel) {
  for (uint64_t seed = 1; seed <= 300 && !::testing::Test::HasFatalFailure(); ++seed) {
    SCOPED_TRACE(seed);
    Model(seed).run();
  }
}

}  // namespace
}  // namespace deepinfer::test
