// TCP connections between ranks, with time limits on every wait. After the handshake of comm/handshake.h each
// frame carries a code that only holders of the shared token can make.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "deepinfer/result.h"

namespace deepinfer::comm {

using Deadline = std::chrono::steady_clock::time_point;
using Digest = std::array<std::byte, 32>;

// HMAC-SHA256 of the parts, one after the other.
Digest keyed_digest(std::string_view key, std::initializer_list<std::string_view> parts);
bool same(const Digest& a, const Digest& b);  // in a time that does not depend on where they differ
std::string_view text_of(std::span<const std::byte> bytes);

// Owns a descriptor.
class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& o) noexcept : fd_(std::exchange(o.fd_, -1)) {}
  Fd& operator=(Fd&& o) noexcept;
  ~Fd();
  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

// Errors say what the other side or the system did, not where: callers add that.
Result<Fd> listen_at(const std::string& host, uint16_t port);
Result<Fd> connect_to(const std::string& host, uint16_t port, Deadline deadline);
Result<void> write_all(int fd, std::span<const std::byte> data, Deadline deadline);
Result<void> read_all(int fd, std::span<std::byte> data, Deadline deadline);
// Waits until it can be read; kTimeout at the deadline.
Result<void> wait_readable(int fd, Deadline deadline);

struct Endpoint {
  std::string host;  // numeric
  uint16_t port = 0;
  std::string text() const;
  bool operator==(const Endpoint&) const = default;
};
Result<Endpoint> local_endpoint(int fd);
Result<Endpoint> remote_endpoint(int fd);

// An authenticated connection: frames of up to kMostBytes, whose code covers direction, number and content.
// One thread reads, one writes.
class Link {
 public:
  static constexpr size_t kMostBytes = size_t{1} << 20;

  Link() = default;
  Link(Fd fd, Digest key, bool initiator) : fd_(std::move(fd)), key_(key), initiator_(initiator) {}

  int fd() const { return fd_.get(); }
  explicit operator bool() const { return static_cast<bool>(fd_); }
  Result<void> write(std::string_view payload, Deadline deadline);
  Result<std::string> read(Deadline deadline);

 private:
  Digest code(bool from_initiator, uint64_t number, std::string_view payload) const;

  Fd fd_;
  Digest key_{};
  bool initiator_ = false;  // whoever connected
  uint64_t written_ = 0, read_ = 0;
};

}  // namespace deepinfer::comm
