#include "comm/handshake.h"

#include <openssl/rand.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "base/check.h"

namespace deepinfer::comm {
namespace {

constexpr std::string_view kMagic = "DIcomm\x01\n";  // its last but one byte is the protocol's version
static_assert(kMagic.size() == 8);

Digest random_nonce() {
  Digest d;
  DI_CHECK(RAND_bytes(reinterpret_cast<unsigned char*>(d.data()), static_cast<int>(d.size())) == 1,
           "the system gives no random bytes");
  return d;
}

Digest proof(const std::string& token, std::string_view what, const Digest& a, const Digest& b,
             uint32_t rank) {
  return keyed_digest(token, {what, text_of(a), text_of(b), std::to_string(rank)});
}

}  // namespace

Result<Link> join(Fd fd, const std::string& token, int rank, Deadline deadline) {
  std::array<std::byte, 40> challenge;
  DI_TRY(read_all(fd.get(), challenge, deadline));
  if (text_of(std::span(challenge).first(8)) != kMagic)
    return make_error(ErrorCode::kConfig, "it does not speak this version's protocol");
  Digest a;
  std::memcpy(a.data(), challenge.data() + 8, a.size());
  const Digest b = random_nonce();
  const auto id = static_cast<uint32_t>(rank);
  std::string answer(kMagic);
  answer.append(reinterpret_cast<const char*>(&id), sizeof id);
  answer += text_of(b);
  answer += text_of(proof(token, "join", a, b, id));
  DI_TRY(write_all(fd.get(), std::as_bytes(std::span(answer)), deadline));
  Digest admitted;
  if (auto got = read_all(fd.get(), admitted, deadline); !got)
    return make_error(ErrorCode::kConfig,
                      "{} when this rank had proved that it knows the token: is its token another?",
                      got.error().message);
  if (!same(admitted, proof(token, "admit", a, b, id)))
    return make_error(ErrorCode::kConfig, "it does not know the token");
  return Link(std::move(fd), proof(token, "key", a, b, id), true);
}

std::string Admission::refused() const {
  std::string text;
  if (wrong_) text = fmt::format("{} with another token or protocol, the last from {}", wrong_, last_wrong_);
  if (silent_) text += fmt::format("{}{} that proved nothing", text.empty() ? "" : "; ", silent_);
  return text.empty() ? "" : "; refused connections: " + text;
}

void Admission::accept_all() {
  for (;;) {
    Fd fd(accept4(listener_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!fd) return;  // none left, or one that is gone already
    auto from = remote_endpoint(fd.get());
    if (!from) continue;
    if (waiting_.size() == kMostWaiting) {
      ++silent_;
      waiting_.pop_front();
    }
    Stranger s{.fd = std::move(fd),
               .from = *from,
               .nonce = random_nonce(),
               .deadline = std::chrono::steady_clock::now() + kHandshakeLimit};
    std::string challenge(kMagic);
    challenge += text_of(s.nonce);
    // A new connection's buffer has room for it.
    if (write_all(s.fd.get(), std::as_bytes(std::span(challenge)), std::chrono::steady_clock::now()))
      waiting_.push_back(std::move(s));
  }
}

Admission::Step Admission::advance(Stranger& s) {
  while (s.got < s.answer.size()) {
    const ssize_t n = ::recv(s.fd.get(), s.answer.data() + s.got, s.answer.size() - s.got, 0);
    if (n > 0) {
      s.got += static_cast<size_t>(n);
      if (s.got >= 8 && text_of(std::span(s.answer).first(8)) != kMagic) break;
    } else if (n < 0 && errno == EINTR) {
      continue;
    } else if (n < 0 && errno == EAGAIN && std::chrono::steady_clock::now() < s.deadline) {
      return Step::kMore;
    } else {
      ++silent_;
      return Step::kDrop;
    }
  }
  if (s.got == s.answer.size() && text_of(std::span(s.answer).first(8)) == kMagic) return Step::kDone;
  ++wrong_;
  last_wrong_ = s.from.text();
  return Step::kDrop;
}

Result<Admission::Peer> Admission::admit(Stranger& s) {
  uint32_t id = 0;
  Digest b, code;
  std::memcpy(&id, s.answer.data() + 8, sizeof id);
  std::memcpy(b.data(), s.answer.data() + 12, b.size());
  std::memcpy(code.data(), s.answer.data() + 44, code.size());
  if (!same(code, proof(token_, "join", s.nonce, b, id))) {
    ++wrong_;
    last_wrong_ = s.from.text();
    return make_error(ErrorCode::kUnavailable, "another token");
  }
  const Digest admitted = proof(token_, "admit", s.nonce, b, id);
  DI_TRY(write_all(s.fd.get(), admitted, s.deadline));
  if (id > 1'000'000) return make_error(ErrorCode::kUnavailable, "rank {}", id);
  return Peer{Link(std::move(s.fd), proof(token_, "key", s.nonce, b, id), false), static_cast<int>(id),
              s.from};
}

Result<Admission::Peer> Admission::next(Deadline deadline) {
  for (;;) {
    accept_all();
    for (auto it = waiting_.begin(); it != waiting_.end();) {
      const Step step = advance(*it);
      if (step == Step::kMore) {
        ++it;
        continue;
      }
      Stranger s = std::move(*it);
      it = waiting_.erase(it);
      if (step == Step::kDrop) continue;
      if (auto peer = admit(s)) return peer;
    }
    const auto now = std::chrono::steady_clock::now();
    if (now >= deadline) return make_error(ErrorCode::kTimeout, "nobody came in time");
    std::vector<pollfd> fds{{.fd = listener_, .events = POLLIN, .revents = 0}};
    for (const Stranger& s : waiting_) fds.push_back({.fd = s.fd.get(), .events = POLLIN, .revents = 0});
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - now);
    poll(fds.data(), fds.size(), static_cast<int>(std::min<int64_t>(left.count(), 200)));
  }
}

}  // namespace deepinfer::comm
