// What the ranks of a model that is split talk through, whatever lies between them: threads of one process
// (comm/local.h) or machines (comm/gloo.h).
#pragma once

#include <cstddef>
#include <span>
#include <stdexcept>
#include <string>

namespace deepinfer {

// What ended a call of a group: a peer that is gone, a time-out, calls that disagree, abort().
class CommError : public std::runtime_error {
 public:
  CommError(int rank, int size, std::string call, std::string reason);

  int rank() const { return rank_; }  // of whoever caught it
  const std::string& call() const { return call_; }
  const std::string& reason() const { return reason_; }

 private:
  int rank_;
  std::string call_, reason_;
};

// A rank of a group, used by one thread. Every rank makes the same calls in the same order. What goes wrong
// (a peer that is gone, a time-out, frames that disagree) throws CommError; the group is useless afterwards:
// every later call of every rank throws too. Destroying a rank ends the waits of those that need it.
class Communicator {
 public:
  virtual ~Communicator() = default;
  Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  virtual int rank() const = 0;
  virtual int size() const = 0;

  // The sum over all ranks, in place. The same bits on all of them; but for NCCL's, which has an order of its
  // own, added in the order of the ranks.
  virtual void all_reduce(std::span<float> values) = 0;

  // all: [size(), mine.size()], by rank. mine may be its own place in all.
  virtual void all_gather(std::span<const std::byte> mine, std::span<std::byte> all) = 0;

  virtual void broadcast(std::span<std::byte> data, int root) = 0;

  // From one rank to another, in the order of the calls of these two; nobody else takes part. A message of up
  // to kEagerBytes may be taken before the other side asks for it (two of them, hardly more); for a longer
  // one this returns when it was received.
  virtual void send(std::span<const std::byte> data, int to) = 0;
  virtual void receive(std::span<std::byte> data, int from) = 0;
  static constexpr size_t kEagerBytes = size_t{1} << 20;
  // A message of any length that is taken as those of kEagerBytes are: it is copied where need be.
  virtual void send_copy(std::span<const std::byte> data, int to) { send(data, to); }

  // mine: [size(), n], its row r goes to rank r; all: [size(), n], by rank. They do not overlap.
  virtual void all_to_all(std::span<const std::byte> mine, std::span<std::byte> all) = 0;

  // Any thread: all waits of this group, on every rank, end with CommError. Only the first reason counts.
  virtual void abort(std::string reason) = 0;
};

}  // namespace deepinfer
