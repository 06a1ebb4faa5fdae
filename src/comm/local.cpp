#include "comm/local.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "base/check.h"
#include "comm/sum.h"
#include "comm/wait_word.h"

namespace deepinfer {
namespace {

// A short call is copied through memory of the group and needs one barrier; a longer one reads and writes the
// peers' own memory, once, between two barriers. On two cores they cost the same at 3 KB.
constexpr size_t kStagedBytes = size_t{4} << 10;
constexpr size_t kStagedReads = size_t{8} << 10;  // the most that a rank reads from others that way
constexpr size_t kLineFloats = 16;                // of a cache line: ranks write lines of their own

enum class Op : uint8_t { kAllReduce, kAllGather, kBroadcast, kAllToAll };
constexpr std::array<const char*, 4> kNames = {"all_reduce", "all_gather", "broadcast", "all_to_all"};

struct Line {
  alignas(64) std::byte bytes[64];
};

// What a rank brings to a call: its own to write before it raises its word, everybody's to read after that.
struct alignas(64) Post {
  Op op{};
  int root = -1;
  size_t bytes = 0;
  std::byte* data = nullptr;

  bool agrees(const Post& o) const { return op == o.op && root == o.root && bytes == o.bytes; }
  std::string text() const {
    const std::string of = fmt::format("{} of {} bytes", kNames[static_cast<size_t>(op)], bytes);
    return root < 0 ? of : fmt::format("{} from rank {}", of, root);
  }
};

// A pair's messages in one direction: two slots, written and read in turn.
struct Channel {
  struct Slot {
    size_t bytes = 0;
    const std::byte* data = nullptr;  // of the sender, who waits until it is read; nullptr: in `eager`
    std::vector<std::byte> eager;
  };
  WaitWord sent, taken;
  std::array<Slot, 2> slots;
};

struct Group;

// The part of a rank that others see.
struct Member {
  explicit Member(size_t lines) : staged(lines) {}
  WaitWord arrived;                         // one more for each barrier
  alignas(64) std::array<Post, 2> posts;    // of even and odd barriers
  alignas(64) std::atomic<bool> in{false};  // it touches memory of other ranks now
  std::vector<Line> staged;                 // two of kStagedBytes, of even and odd barriers
};

struct Group {
  Group(int ranks, std::chrono::milliseconds limit) : size(ranks), timeout(limit) {
    for (int r = 0; r < ranks; ++r)
      members.push_back(std::make_unique<Member>(ranks > 1 ? 2 * kStagedBytes / sizeof(Line) : 0));
    for (int i = 0; i < ranks * ranks; ++i) channels.push_back(std::make_unique<Channel>());
  }

  Channel& channel(int from, int to) { return *channels[from * size + to]; }

  // Whether this is the reason that counts.
  bool end(std::string why) {
    {
      std::lock_guard lock(mutex);
      if (ended.load(std::memory_order_relaxed)) return false;
      reason = std::move(why);
      ended.store(true);
    }
    for (const auto& m : members) m->arrived.close();
    for (const auto& c : channels) {
      c->sent.close();
      c->taken.close();
    }
    return true;
  }

  const int size;
  const std::chrono::milliseconds timeout;
  std::vector<std::unique_ptr<Member>> members;
  std::vector<std::unique_ptr<Channel>> channels;  // [from, to]
  std::atomic<bool> ended{false};
  std::mutex mutex;
  std::string reason;  // of the first that ended it
};

class LocalCommunicator final : public Communicator {
 public:
  LocalCommunicator(std::shared_ptr<Group> group, int rank)
      : g_(std::move(group)),
        me_(*g_->members[rank]),
        rank_(rank),
        sent_(g_->size),
        received_(g_->size),
        sources_(g_->size),
        targets_(g_->size) {}

  // What this rank has raised stays: peers that need no more of it end their calls as usual.
  ~LocalCommunicator() override {
    me_.arrived.close();
    for (int r = 0; r < g_->size; ++r) {
      g_->channel(rank_, r).sent.close();
      g_->channel(r, rank_).taken.close();
    }
  }

  int rank() const override { return rank_; }
  int size() const override { return g_->size; }
  void abort(std::string reason) override { g_->end(std::move(reason)); }

  void all_reduce(std::span<float> values) override;
  void all_gather(std::span<const std::byte> mine, std::span<std::byte> all) override;
  void broadcast(std::span<std::byte> data, int root) override;
  void all_to_all(std::span<const std::byte> mine, std::span<std::byte> all) override;
  void send(std::span<const std::byte> data, int to) override { send_up_to(kEagerBytes, data, to); }
  void send_copy(std::span<const std::byte> data, int to) override { send_up_to(data.size(), data, to); }
  void receive(std::span<std::byte> data, int from) override;

 private:
  class Inside;

  [[noreturn]] void fail(const char* call, std::string reason);
  void check(bool good, const char* call, const char* what, size_t got, size_t expected);
  void check_peer(const char* call, int peer);
  void wait(WaitWord& word, uint64_t count, const char* call, int peer);
  void arrive_and_wait(const char* call);
  void meet(const Post& post);  // a barrier at which all learn what all bring
  void send_up_to(size_t eager, std::span<const std::byte> data, int to);
  bool staged(size_t bytes) const {
    return bytes <= kStagedBytes && bytes * static_cast<size_t>(g_->size - 1) <= kStagedReads;
  }
  std::byte* stage(int rank, uint64_t barrier) {
    return g_->members[rank]->staged[barrier % 2 * kStagedBytes / sizeof(Line)].bytes;
  }
  const Post& post_of(int rank) const { return g_->members[rank]->posts[barriers_ % 2]; }

  const std::shared_ptr<Group> g_;
  Member& me_;
  const int rank_;
  uint64_t barriers_ = 0;                  // that this rank has begun
  std::vector<uint64_t> sent_, received_;  // messages to and from each rank
  std::vector<const float*> sources_;
  std::vector<float*> targets_;
};

// While one exists this rank may touch what its peers have posted. A rank that throws first waits for all of
// them to be gone (fail()), for then its caller's memory ends: so either that rank sees `in`, or this one
// sees that the group has ended.
class LocalCommunicator::Inside {
 public:
  Inside(LocalCommunicator& c, const char* call) : in_(c.me_.in) {
    in_.store(true);
    if (!c.g_->ended.load()) return;
    in_.store(false);
    c.fail(call, "");
  }
  ~Inside() { in_.store(false, std::memory_order_release); }
  Inside(const Inside&) = delete;

 private:
  std::atomic<bool>& in_;
};

void LocalCommunicator::fail(const char* call, std::string reason) {
  const bool first = g_->end(fmt::format("rank {}: {}: {}", rank_, call, reason));
  for (const auto& m : g_->members)
    while (m.get() != &me_ && m->in.load()) std::this_thread::yield();
  if (!first) {
    std::lock_guard lock(g_->mutex);
    reason = "the group has ended: " + g_->reason;
  }
  throw CommError(rank_, g_->size, call, std::move(reason));
}

void LocalCommunicator::check(bool good, const char* call, const char* what, size_t got, size_t expected) {
  if (!good) fail(call, fmt::format("{}: got {}, expected {}", what, got, expected));
}

void LocalCommunicator::check_peer(const char* call, int peer) {
  if (peer < 0 || peer >= g_->size || peer == rank_)
    fail(call, fmt::format("got rank {}, expected another one of 0 to {}", peer, g_->size - 1));
}

void LocalCommunicator::wait(WaitWord& word, uint64_t count, const char* call, int peer) {
  switch (word.wait(count, g_->timeout)) {
    case WaitWord::Outcome::kReached:
      return;
    case WaitWord::Outcome::kClosed:
      fail(call, fmt::format("rank {} is gone", peer));
    case WaitWord::Outcome::kTimeout:
      fail(call, fmt::format("rank {} did not come within {} ms", peer, g_->timeout.count()));
  }
}

void LocalCommunicator::arrive_and_wait(const char* call) {
  me_.arrived.raise();
  for (int r = 0; r < g_->size; ++r)
    if (r != rank_) wait(g_->members[r]->arrived, barriers_, call, r);
}

// A peer writes the same place two barriers later, and cannot reach the next one before this rank has.
void LocalCommunicator::meet(const Post& post) {
  const char* call = kNames[static_cast<size_t>(post.op)];
  if (g_->ended.load(std::memory_order_relaxed)) fail(call, "");
  ++barriers_;
  me_.posts[barriers_ % 2] = post;
  arrive_and_wait(call);
  for (int r = 0; r < g_->size; ++r)
    if (!post.agrees(post_of(r)))
      fail(call, fmt::format("rank {} calls {}, this one {}", r, post_of(r).text(), post.text()));
}

void LocalCommunicator::all_reduce(std::span<float> values) {
  constexpr const char* kCall = "all_reduce";
  if (g_->size == 1) return;
  Post post{.op = Op::kAllReduce,
            .bytes = values.size_bytes(),
            .data = reinterpret_cast<std::byte*>(values.data())};
  if (staged(post.bytes)) {
    if (post.bytes) std::memcpy(stage(rank_, barriers_ + 1), values.data(), post.bytes);
    meet(post);
    for (int r = 0; r < g_->size; ++r)
      sources_[r] = r == rank_ ? values.data() : reinterpret_cast<const float*>(stage(r, barriers_));
    float* out = values.data();
    sum_in_order(sources_, {&out, 1}, 0, values.size());
    return;
  }
  meet(post);
  {
    const Inside inside(*this, kCall);
    for (int r = 0; r < g_->size; ++r) sources_[r] = targets_[r] = reinterpret_cast<float*>(post_of(r).data);
    const size_t ranks = g_->size;
    const size_t lines = (values.size() + kLineFloats - 1) / kLineFloats;
    const size_t begin = lines * rank_ / ranks * kLineFloats, end = lines * (rank_ + 1) / ranks * kLineFloats;
    sum_in_order(sources_, targets_, begin, std::min(end, values.size()));
  }
  ++barriers_;
  arrive_and_wait(kCall);
}

void LocalCommunicator::all_gather(std::span<const std::byte> mine, std::span<std::byte> all) {
  constexpr const char* kCall = "all_gather";
  const size_t n = mine.size();
  check(all.size() == n * g_->size, kCall, "bytes of `all`", all.size(), n * g_->size);
  const Post post{.op = Op::kAllGather, .bytes = n, .data = const_cast<std::byte*>(mine.data())};
  const auto place = [&](int r, const std::byte* from) {
    if (n && all.data() + r * n != from) std::memcpy(all.data() + r * n, from, n);
  };
  place(rank_, mine.data());
  if (g_->size == 1) return;
  if (staged(n)) {
    if (n) std::memcpy(stage(rank_, barriers_ + 1), mine.data(), n);
    meet(post);
    for (int r = 0; r < g_->size; ++r)
      if (r != rank_) place(r, stage(r, barriers_));
    return;
  }
  meet(post);
  {
    const Inside inside(*this, kCall);
    for (int r = 0; r < g_->size; ++r)
      if (r != rank_) place(r, post_of(r).data);
  }
  ++barriers_;
  arrive_and_wait(kCall);
}

void LocalCommunicator::broadcast(std::span<std::byte> data, int root) {
  constexpr const char* kCall = "broadcast";
  check(root >= 0 && root < g_->size, kCall, "root", static_cast<size_t>(root), g_->size - 1);
  if (g_->size == 1) return;
  const size_t n = data.size();
  const Post post{.op = Op::kBroadcast, .root = root, .bytes = n, .data = data.data()};
  if (staged(n)) {
    if (rank_ == root && n) std::memcpy(stage(rank_, barriers_ + 1), data.data(), n);
    meet(post);
    if (rank_ != root && n) std::memcpy(data.data(), stage(root, barriers_), n);
    return;
  }
  meet(post);
  if (rank_ != root) {
    const Inside inside(*this, kCall);
    std::memcpy(data.data(), post_of(root).data, n);
  }
  ++barriers_;
  arrive_and_wait(kCall);
}

void LocalCommunicator::all_to_all(std::span<const std::byte> mine, std::span<std::byte> all) {
  constexpr const char* kCall = "all_to_all";
  const size_t n = mine.size() / g_->size;
  check(n * g_->size == mine.size(), kCall, "bytes of `mine`", mine.size(), n * g_->size);
  check(all.size() == mine.size(), kCall, "bytes of `all`", all.size(), mine.size());
  if (n) std::memcpy(all.data() + rank_ * n, mine.data() + rank_ * n, n);
  if (g_->size == 1) return;
  meet({.op = Op::kAllToAll, .bytes = mine.size(), .data = const_cast<std::byte*>(mine.data())});
  {
    const Inside inside(*this, kCall);
    for (int r = 0; r < g_->size; ++r)
      if (r != rank_ && n) std::memcpy(all.data() + r * n, post_of(r).data + rank_ * n, n);
  }
  ++barriers_;
  arrive_and_wait(kCall);
}

// A message of at most `eager` bytes is copied.
void LocalCommunicator::send_up_to(size_t eager, std::span<const std::byte> data, int to) {
  constexpr const char* kCall = "send";
  check_peer(kCall, to);
  if (g_->ended.load(std::memory_order_relaxed)) fail(kCall, "");
  Channel& c = g_->channel(rank_, to);
  const uint64_t n = ++sent_[to];
  if (n > 2) wait(c.taken, n - 2, kCall, to);
  Channel::Slot& slot = c.slots[n % 2];
  slot.bytes = data.size();
  slot.data = nullptr;
  if (data.size() <= eager) {
    if (slot.eager.size() < data.size()) slot.eager.resize(std::max(data.size(), kEagerBytes));
    if (!data.empty()) std::memcpy(slot.eager.data(), data.data(), data.size());
    c.sent.raise();
    return;
  }
  slot.data = data.data();
  c.sent.raise();
  wait(c.taken, n, kCall, to);
}

void LocalCommunicator::receive(std::span<std::byte> data, int from) {
  constexpr const char* kCall = "receive";
  check_peer(kCall, from);
  if (g_->ended.load(std::memory_order_relaxed)) fail(kCall, "");
  Channel& c = g_->channel(from, rank_);
  const uint64_t n = ++received_[from];
  wait(c.sent, n, kCall, from);
  const Channel::Slot& slot = c.slots[n % 2];
  if (slot.bytes != data.size())
    fail(kCall, fmt::format("rank {} sends {} bytes, this one expects {}", from, slot.bytes, data.size()));
  if (slot.data == nullptr) {
    if (!data.empty()) std::memcpy(data.data(), slot.eager.data(), data.size());
  } else {
    const Inside inside(*this, kCall);
    std::memcpy(data.data(), slot.data, data.size());
  }
  c.taken.raise();
}

}  // namespace

std::vector<std::unique_ptr<Communicator>> local_communicators(int ranks, std::chrono::milliseconds timeout) {
  DI_CHECK(ranks >= 1, "a group of {} ranks", ranks);
  DI_CHECK(timeout.count() > 0, "a group that waits {} ms", timeout.count());
  const auto group = std::make_shared<Group>(ranks, timeout);
  std::vector<std::unique_ptr<Communicator>> all;
  for (int r = 0; r < ranks; ++r) all.push_back(std::make_unique<LocalCommunicator>(group, r));
  return all;
}

}  // namespace deepinfer
