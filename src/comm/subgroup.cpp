#include "comm/subgroup.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "comm/sum.h"

namespace deepinfer {
namespace {

// What a rank has of long values at a time: sums are made piece by piece, in little memory.
constexpr size_t kPieceFloats = size_t{1} << 16;

class Subgroup final : public Communicator {
 public:
  Subgroup(Communicator& world, std::vector<int> ranks) : world_(world), ranks_(std::move(ranks)) {
    DI_CHECK(std::is_sorted(ranks_.begin(), ranks_.end()), "ranks of a subgroup that do not ascend");
    const auto me = std::find(ranks_.begin(), ranks_.end(), world_.rank());
    DI_CHECK(me != ranks_.end() && ranks_.front() >= 0 && ranks_.back() < world_.size(),
             "a subgroup of {} ranks, from {} to {}, for rank {} of {}", ranks_.size(), ranks_.front(),
             ranks_.back(), world_.rank(), world_.size());
    rank_ = static_cast<int>(me - ranks_.begin());
    sources_.resize(ranks_.size());
  }

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(ranks_.size()); }
  void abort(std::string reason) override { world_.abort(std::move(reason)); }

  void all_reduce(std::span<float> values) override;
  void all_gather(std::span<const std::byte> mine, std::span<std::byte> all) override;
  void broadcast(std::span<std::byte> data, int root) override;
  void all_to_all(std::span<const std::byte> mine, std::span<std::byte> all) override;
  void send(std::span<const std::byte> data, int to) override { world_.send(data, of_world("send", to)); }
  void send_copy(std::span<const std::byte> data, int to) override {
    world_.send_copy(data, of_world("send", to));
  }
  void receive(std::span<std::byte> data, int from) override {
    world_.receive(data, of_world("receive", from));
  }

 private:
  [[noreturn]] void fail(const char* call, const std::string& reason) {
    world_.abort(fmt::format("rank {}: {}: {}", world_.rank(), call, reason));
    throw CommError(rank_, size(), call, reason);
  }
  void check(bool good, const char* call, const char* what, size_t got, size_t expected) {
    if (!good) fail(call, fmt::format("{}: got {}, expected {}", what, got, expected));
  }
  int of_world(const char* call, int peer) {
    if (peer < 0 || peer >= size() || peer == rank_)
      fail(call, fmt::format("got rank {}, expected another one of 0 to {}", peer, size() - 1));
    return ranks_[static_cast<size_t>(peer)];
  }
  template <class Work>
  void for_others(const Work& work) {
    for (int r = 0; r < size(); ++r)
      if (r != rank_) work(r, ranks_[static_cast<size_t>(r)]);
  }

  Communicator& world_;
  const std::vector<int> ranks_;
  int rank_ = 0;
  std::vector<float> staging_;
  std::vector<const float*> sources_;
};

// Everybody sends all he has: between few ranks that takes one passage of the wire, and the order of the sum
// is the same on all.
void Subgroup::all_reduce(std::span<float> values) {
  const size_t ranks = ranks_.size();
  for (size_t begin = 0; begin < values.size(); begin += kPieceFloats) {
    const std::span<float> piece = values.subspan(begin, std::min(kPieceFloats, values.size() - begin));
    if (staging_.size() < piece.size() * ranks) staging_.resize(piece.size() * ranks);
    for_others([&](int, int peer) { world_.send_copy(std::as_bytes(piece), peer); });
    for_others([&](int r, int peer) {
      const auto theirs = std::span(staging_).subspan(piece.size() * static_cast<size_t>(r), piece.size());
      world_.receive(std::as_writable_bytes(theirs), peer);
      sources_[static_cast<size_t>(r)] = theirs.data();
    });
    float* out = piece.data();
    sources_[static_cast<size_t>(rank_)] = out;
    sum_in_order(sources_, {&out, 1}, 0, piece.size());
  }
}

void Subgroup::all_gather(std::span<const std::byte> mine, std::span<std::byte> all) {
  const size_t n = mine.size();
  check(all.size() == n * ranks_.size(), "all_gather", "bytes of `all`", all.size(), n * ranks_.size());
  std::byte* const place = all.data() + n * static_cast<size_t>(rank_);
  if (n != 0 && place != mine.data()) std::memcpy(place, mine.data(), n);
  for_others([&](int, int peer) { world_.send_copy(mine, peer); });
  for_others([&](int r, int peer) { world_.receive(all.subspan(n * static_cast<size_t>(r), n), peer); });
}

void Subgroup::broadcast(std::span<std::byte> data, int root) {
  check(root >= 0 && root < size(), "broadcast", "root", static_cast<size_t>(root), ranks_.size() - 1);
  if (rank_ != root) return world_.receive(data, ranks_[static_cast<size_t>(root)]);
  for_others([&](int, int peer) { world_.send_copy(data, peer); });
}

void Subgroup::all_to_all(std::span<const std::byte> mine, std::span<std::byte> all) {
  const size_t n = mine.size() / ranks_.size();
  check(n * ranks_.size() == mine.size(), "all_to_all", "bytes of `mine`", mine.size(), n * ranks_.size());
  check(all.size() == mine.size(), "all_to_all", "bytes of `all`", all.size(), mine.size());
  const auto row = [n](auto span, int r) { return span.subspan(n * static_cast<size_t>(r), n); };
  if (n != 0) std::memcpy(row(all, rank_).data(), row(mine, rank_).data(), n);
  for_others([&](int r, int peer) { world_.send_copy(row(mine, r), peer); });
  for_others([&](int r, int peer) { world_.receive(row(all, r), peer); });
}

}  // namespace

std::unique_ptr<Communicator> subgroup(Communicator& world, std::vector<int> ranks) {
  return std::make_unique<Subgroup>(world, std::move(ranks));
}

}  // namespace deepinfer
