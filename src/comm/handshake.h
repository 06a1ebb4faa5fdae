// Both sides of a connection prove that they know the token of the group, without sending it.
//
//   whoever listens    magic, nonce a
//   whoever connects   magic, rank, nonce b, HMAC(token, "join", a, b, rank)
//   whoever listens    HMAC(token, "admit", a, b, rank)
//
// The key of the connection's frames is HMAC(token, "key", a, b, rank).
#pragma once

#include <chrono>
#include <deque>
#include <string>

#include "comm/socket.h"

namespace deepinfer::comm {

constexpr auto kHandshakeLimit = std::chrono::seconds(5);  // of one connection

// The connecting side, for a rank that wants in.
Result<Link> join(Fd fd, const std::string& token, int rank, Deadline deadline);

// The listening side: strangers that say nothing, the wrong thing or half of it cost their own connection,
// and delay nobody. Thread: one.
class Admission {
 public:
  Admission(int listener, std::string token) : listener_(listener), token_(std::move(token)) {}

  struct Peer {
    Link link;
    int rank = 0;
    Endpoint from;
  };
  // The next connection whose other side has proved itself; kTimeout at the deadline.
  Result<Peer> next(Deadline deadline);

  // What became of those that did not, for the message of a time-out; empty: there were none.
  std::string refused() const;

 private:
  static constexpr size_t kAnswerBytes = 8 + 4 + 32 + 32;
  static constexpr size_t kMostWaiting = 64;
  struct Stranger {
    Fd fd;
    Endpoint from;
    Digest nonce{};
    Deadline deadline;
    std::array<std::byte, kAnswerBytes> answer{};
    size_t got = 0;
  };
  enum class Step { kMore, kDone, kDrop };

  void accept_all();
  Step advance(Stranger& s);
  Result<Peer> admit(Stranger& s);

  int listener_;
  std::string token_;
  std::deque<Stranger> waiting_;
  int wrong_ = 0, silent_ = 0;
  std::string last_wrong_;
};

}  // namespace deepinfer::comm
