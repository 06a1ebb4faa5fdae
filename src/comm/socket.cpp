#include "comm/socket.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

#include "base/check.h"

namespace deepinfer::comm {
namespace {

std::string system_text(int error) {
  return std::strerror(error);  // NOLINT(concurrency-mt-unsafe): glibc's is
}

// Every step of both sides is short: an idle connection is one whose machine may be gone.
void tune(int fd) {
  const int on = 1, idle_s = 5, interval_s = 2, probes = 3;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof interval_s);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
}

struct AddressList {
  addrinfo* first = nullptr;
  AddressList() = default;
  AddressList(const AddressList&) = delete;
  ~AddressList() {
    if (first) freeaddrinfo(first);
  }
};

Result<void> resolve(const std::string& host, uint16_t port, bool passive, AddressList& list) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV | (passive ? AI_PASSIVE : 0);
  const int status = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &list.first);
  if (status != 0)
    return make_error(ErrorCode::kConfig, "{} is no address of a machine: {}", host, gai_strerror(status));
  return {};
}

Result<void> wait_for(int fd, short events, Deadline deadline) {
  for (;;) {
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    pollfd p{.fd = fd, .events = events, .revents = 0};
    const int n = poll(&p, 1, static_cast<int>(std::clamp<int64_t>(left.count(), 0, 1 << 30)));
    if (n > 0) return {};
    if (n == 0 && left.count() <= 0) return make_error(ErrorCode::kTimeout, "it did not answer in time");
    if (n < 0 && errno != EINTR) return make_error(ErrorCode::kUnavailable, "poll: {}", system_text(errno));
  }
}

Result<Endpoint> endpoint(int fd, int (*ask)(int, sockaddr*, socklen_t*)) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  char host[NI_MAXHOST], port[NI_MAXSERV];
  if (ask(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0)
    return make_error(ErrorCode::kUnavailable, "{}", system_text(errno));
  if (getnameinfo(reinterpret_cast<sockaddr*>(&address), size, host, sizeof host, port, sizeof port,
                  NI_NUMERICHOST | NI_NUMERICSERV) != 0)
    return make_error(ErrorCode::kUnavailable, "its address is neither IPv4 nor IPv6");
  return Endpoint{host, static_cast<uint16_t>(std::stoi(port))};
}

}  // namespace

Digest keyed_digest(std::string_view key, std::initializer_list<std::string_view> parts) {
  std::string all;
  for (const std::string_view p : parts) {
    const uint64_t n = p.size();  // so that no two lists of parts are the same bytes
    all.append(reinterpret_cast<const char*>(&n), sizeof n);
    all += p;
  }
  Digest d;
  unsigned size = 0;
  const auto* made = HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()),
                          reinterpret_cast<const unsigned char*>(all.data()), all.size(),
                          reinterpret_cast<unsigned char*>(d.data()), &size);
  DI_CHECK(made != nullptr && size == d.size(), "HMAC of {} bytes", all.size());
  return d;
}

bool same(const Digest& a, const Digest& b) {
  return CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

std::string_view text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

Fd& Fd::operator=(Fd&& o) noexcept {
  std::swap(fd_, o.fd_);
  return *this;
}

Fd::~Fd() {
  if (fd_ >= 0) ::close(fd_);
}

std::string Endpoint::text() const {
  return host.find(':') == std::string::npos ? fmt::format("{}:{}", host, port)
                                             : fmt::format("[{}]:{}", host, port);
}

Result<Endpoint> local_endpoint(int fd) {
  return endpoint(fd, getsockname);
}

Result<Endpoint> remote_endpoint(int fd) {
  return endpoint(fd, getpeername);
}

Result<void> wait_readable(int fd, Deadline deadline) {
  return wait_for(fd, POLLIN, deadline);
}

Result<Fd> listen_at(const std::string& host, uint16_t port) {
  AddressList list;
  DI_TRY(resolve(host, port, true, list));
  const addrinfo& a = *list.first;
  Fd fd(socket(a.ai_family, a.ai_socktype | SOCK_NONBLOCK | SOCK_CLOEXEC, a.ai_protocol));
  const int on = 1;
  if (fd) setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (!fd || bind(fd.get(), a.ai_addr, a.ai_addrlen) != 0 || listen(fd.get(), 64) != 0) {
    const int error = errno;
    return make_error(error == EADDRINUSE ? ErrorCode::kAddressInUse : ErrorCode::kConfig, "{}",
                      system_text(error));
  }
  return fd;
}

Result<Fd> connect_to(const std::string& host, uint16_t port, Deadline deadline) {
  AddressList list;
  DI_TRY(resolve(host, port, false, list));
  Error last = make_error(ErrorCode::kUnavailable, "no address");
  for (const addrinfo* a = list.first; a; a = a->ai_next) {
    Fd fd(socket(a->ai_family, a->ai_socktype | SOCK_NONBLOCK | SOCK_CLOEXEC, a->ai_protocol));
    int error = 0;
    socklen_t size = sizeof error;
    if (!fd || (connect(fd.get(), a->ai_addr, a->ai_addrlen) != 0 && errno != EINPROGRESS)) {
      error = errno;
    } else if (auto ready = wait_for(fd.get(), POLLOUT, deadline); !ready) {
      last = ready.error();
      continue;
    } else {
      getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &size);
    }
    if (error == 0) {
      tune(fd.get());
      return fd;
    }
    last = make_error(ErrorCode::kUnavailable, "{}", system_text(error));
  }
  return last;
}

Result<void> write_all(int fd, std::span<const std::byte> data, Deadline deadline) {
  tune(fd);
  while (!data.empty()) {
    const ssize_t n = ::send(fd, data.data(), data.size(), MSG_NOSIGNAL);
    if (n >= 0) {
      data = data.subspan(static_cast<size_t>(n));
    } else if (errno == EAGAIN) {
      DI_TRY(wait_for(fd, POLLOUT, deadline));
    } else if (errno != EINTR) {
      return make_error(ErrorCode::kUnavailable, "{}", system_text(errno));
    }
  }
  return {};
}

Result<void> read_all(int fd, std::span<std::byte> data, Deadline deadline) {
  while (!data.empty()) {
    const ssize_t n = ::recv(fd, data.data(), data.size(), 0);
    if (n > 0) {
      data = data.subspan(static_cast<size_t>(n));
    } else if (n == 0) {
      return make_error(ErrorCode::kUnavailable, "it closed the connection");
    } else if (errno == EAGAIN) {
      DI_TRY(wait_for(fd, POLLIN, deadline));
    } else if (errno != EINTR) {
      return make_error(ErrorCode::kUnavailable, "{}", system_text(errno));
    }
  }
  return {};
}

Digest Link::code(bool from_initiator, uint64_t number, std::string_view payload) const {
  const std::string head = fmt::format("{} {}", from_initiator ? "up" : "down", number);
  return keyed_digest(text_of(key_), {head, payload});
}

// Length in 4 bytes, content, code. The length alone is believed before the code is seen, up to its limit.
Result<void> Link::write(std::string_view payload, Deadline deadline) {
  DI_CHECK(payload.size() <= kMostBytes, "a frame of {} bytes", payload.size());
  const auto n = static_cast<uint32_t>(payload.size());
  const Digest d = code(initiator_, written_++, payload);
  std::string frame(reinterpret_cast<const char*>(&n), sizeof n);
  frame += payload;
  frame += text_of(d);
  return write_all(fd_.get(), std::as_bytes(std::span(frame)), deadline);
}

Result<std::string> Link::read(Deadline deadline) {
  uint32_t n = 0;
  DI_TRY(read_all(fd_.get(), std::as_writable_bytes(std::span(&n, 1)), deadline));
  if (n > kMostBytes)
    return make_error(ErrorCode::kUnavailable, "it sent a frame of {} bytes, expected at most {}", n,
                      kMostBytes);
  std::string payload(n, '\0');
  DI_TRY(read_all(fd_.get(), std::as_writable_bytes(std::span(payload)), deadline));
  Digest d;
  DI_TRY(read_all(fd_.get(), d, deadline));
  if (!same(d, code(!initiator_, read_++, payload)))
    return make_error(ErrorCode::kUnavailable, "it sent a frame that was changed on its way");
  return payload;
}

}  // namespace deepinfer::comm
