#include "comm/rendezvous.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <thread>

#include "base/check.h"
#include "comm/handshake.h"

namespace deepinfer {
namespace {

using comm::Admission;
using comm::Deadline;
using comm::Endpoint;
using comm::Fd;
using comm::Link;
using Facts = std::vector<std::pair<std::string, std::string>>;
using Clock = std::chrono::steady_clock;

constexpr uint32_t kMostFacts = 256;
constexpr auto kRetry = std::chrono::milliseconds(100);

class Writer {
 public:
  Writer& number(uint32_t v) {
    bytes_.append(reinterpret_cast<const char*>(&v), sizeof v);
    return *this;
  }
  Writer& text(std::string_view v) {
    number(static_cast<uint32_t>(v.size()));
    bytes_ += v;
    return *this;
  }
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

// Everything is checked: the other side may be another version.
class Reader {
 public:
  explicit Reader(std::string_view bytes) : left_(bytes) {}
  uint32_t number() {
    uint32_t v = 0;
    if (left_.size() < sizeof v) return fail();
    std::memcpy(&v, left_.data(), sizeof v);
    left_.remove_prefix(sizeof v);
    return v;
  }
  std::string text() {
    const uint32_t n = number();
    if (n > left_.size()) return fail(), "";
    std::string v(left_.substr(0, n));
    left_.remove_prefix(n);
    return v;
  }
  bool whole() const { return good_ && left_.empty(); }

 private:
  uint32_t fail() {
    good_ = false;
    left_ = {};
    return 0;
  }
  std::string_view left_;
  bool good_ = true;
};

// What a rank tells rank 0.
struct Introduction {
  uint32_t size = 0;
  uint16_t port = 0;  // where it waits for the ranks above it
  Facts facts;

  std::string bytes() const {
    Writer w;
    w.number(size).number(port).number(static_cast<uint32_t>(facts.size()));
    for (const auto& [name, value] : facts) w.text(name).text(value);
    return w.bytes();
  }
  static std::optional<Introduction> read(std::string_view bytes) {
    Reader r(bytes);
    Introduction i;
    i.size = r.number();
    i.port = static_cast<uint16_t>(r.number());
    const uint32_t n = r.number();
    if (n > kMostFacts) return {};
    for (uint32_t k = 0; k < n; ++k) {
      std::string name = r.text();
      i.facts.emplace_back(std::move(name), r.text());
    }
    return r.whole() ? std::optional(std::move(i)) : std::nullopt;
  }
};

// Rank 0's answer: why not, or where everybody is.
struct Welcome {
  std::string refusal, handout;
  std::vector<Endpoint> ranks;

  std::string bytes() const {
    Writer w;
    w.text(refusal).text(handout).number(static_cast<uint32_t>(ranks.size()));
    for (const Endpoint& e : ranks) w.text(e.host).number(e.port);
    return w.bytes();
  }
  static std::optional<Welcome> read(std::string_view bytes, size_t size) {
    Reader r(bytes);
    Welcome w{.refusal = r.text(), .handout = r.text(), .ranks = {}};
    if (const uint32_t n = r.number(); n != (w.refusal.empty() ? size : 0)) return {};
    for (size_t k = 0; w.refusal.empty() && k < size; ++k) {
      std::string host = r.text();
      w.ranks.push_back({std::move(host), static_cast<uint16_t>(r.number())});
    }
    return r.whole() ? std::optional(std::move(w)) : std::nullopt;
  }
};

std::string difference(const Facts& own, const Facts& theirs, int rank) {
  std::string text;
  const auto add = [&](const std::string& name, const std::string& a, const std::string& b) {
    text += fmt::format("{}{}: rank 0 has {}, rank {} has {}", text.empty() ? "" : "; ", name, a, rank, b);
  };
  const auto find = [](const Facts& facts, const std::string& name) {
    const auto it = std::ranges::find(facts, name, [](const auto& f) { return f.first; });
    return it == facts.end() ? std::string("none") : it->second;
  };
  for (const auto& [name, value] : own)
    if (const std::string other = find(theirs, name); other != value) add(name, value, other);
  for (const auto& [name, value] : theirs)
    if (find(own, name) == "none" && value != "none") add(name, "none", value);
  return text;
}

Error at(const std::string& where, const Error& e) {
  return {e.code, where + ": " + e.message, {}};
}

Result<void> check(const RendezvousOptions& o) {
  if (o.size < 1 || o.rank < 0 || o.rank >= o.size)
    return make_error(ErrorCode::kConfig, "rank: got {} of {}, expected 0 to {}", o.rank, o.size, o.size - 1);
  if (o.token.size() < RendezvousOptions::kLeastTokenBytes)
    return make_error(ErrorCode::kConfig,
                      "the group's token: got {} bytes, expected at least {} (openssl rand -hex 32)",
                      o.token.size(), RendezvousOptions::kLeastTokenBytes);
  const size_t bytes = Introduction{.facts = o.facts}.bytes().size();
  if (o.facts.size() > kMostFacts || bytes > Link::kMostBytes)
    return make_error(ErrorCode::kConfig, "{} facts of {} bytes, expected at most {} of {}", o.facts.size(),
                      bytes, kMostFacts, Link::kMostBytes);
  return {};
}

class Meeting {
 public:
  Meeting(const RendezvousOptions& o, Deadline deadline) : o_(o), deadline_(deadline) {
    mesh_.rank = o.rank;
    mesh_.size = o.size;
    mesh_.links.resize(o.size);
  }

  Result<Mesh> host();
  Result<Mesh> guest();

 private:
  std::string master() const { return Endpoint{o_.address, o_.port}.text(); }
  Result<void> introduce(Admission::Peer& peer);
  Result<void> gather(Admission& door);
  Error refuse_all(std::string reason);
  std::string missing() const;
  Result<Link> reach_master();
  Result<void> reach_lower(const std::vector<Endpoint>& ranks);
  Result<void> await_higher(int listener);
  Result<void> ready_round(bool master_speaks);

  const RendezvousOptions& o_;
  const Deadline deadline_;
  Mesh mesh_;
  std::vector<Endpoint> where_;
};

std::string Meeting::missing() const {
  std::string text;
  for (int r = 0; r < o_.size; ++r)
    if (r != o_.rank && !mesh_.links[r]) text += (text.empty() ? "" : ", ") + std::to_string(r);
  return text;
}

// The ranks that are there learn it too, so that none waits for its own time-out.
Error Meeting::refuse_all(std::string reason) {
  const std::string bytes = Welcome{.refusal = reason, .handout = "", .ranks = {}}.bytes();
  for (Link& link : mesh_.links)
    if (link) (void)link.write(bytes, Clock::now() + std::chrono::seconds(1)).ok();  // it may be gone
  return make_error(ErrorCode::kConfig, "{}", reason);
}

// Takes the rank in, or says why the group cannot start.
Result<void> Meeting::introduce(Admission::Peer& peer) {
  const std::string who = fmt::format("rank {} at {}", peer.rank, peer.from.text());
  const auto refuse = [&](std::string reason) -> Error {
    const std::string bytes = Welcome{.refusal = reason, .handout = "", .ranks = {}}.bytes();
    (void)peer.link.write(bytes, Clock::now() + std::chrono::seconds(1)).ok();
    return refuse_all(std::move(reason));
  };
  auto bytes = peer.link.read(std::min(deadline_, Clock::now() + comm::kHandshakeLimit));
  if (!bytes) return {};  // gone again: it may come back
  const auto intro = Introduction::read(*bytes);
  if (!intro) return refuse(fmt::format("{} sent an introduction that cannot be read", who));
  if (intro->size != static_cast<uint32_t>(o_.size))
    return refuse(fmt::format("{} expects {} ranks, rank 0 expects {}", who, intro->size, o_.size));
  if (peer.rank < 1 || peer.rank >= o_.size)
    return refuse(fmt::format("{}: expected a rank from 1 to {}", who, o_.size - 1));
  if (mesh_.links[peer.rank])
    return refuse(fmt::format("rank {} came twice, from {} and from {}", peer.rank, where_[peer.rank].text(),
                              peer.from.text()));
  if (const std::string text = difference(o_.facts, intro->facts, peer.rank); !text.empty())
    return refuse("the ranks do not agree: " + text);
  where_[peer.rank] = {peer.from.host, intro->port};
  mesh_.links[peer.rank] = std::move(peer.link);
  return {};
}

Result<void> Meeting::gather(Admission& door) {
  for (int there = 1; there < o_.size;) {
    auto peer = door.next(deadline_);
    if (!peer)
      return refuse_all(fmt::format("rendezvous at {}: rank {} did not come within {} s{}", master(),
                                    missing(), std::chrono::duration<double>(o_.timeout).count(),
                                    door.refused()));
    DI_TRY(introduce(*peer));
    there = 1 + static_cast<int>(std::ranges::count_if(mesh_.links, [](const Link& l) { return bool(l); }));
  }
  return {};
}

// Nobody goes on before all have all their connections: each tells rank 0, and rank 0 tells each.
Result<void> Meeting::ready_round(bool master_speaks) {
  const bool speak = (o_.rank == 0) == master_speaks;
  for (int r = 0; r < o_.size; ++r) {
    if (r == o_.rank || (o_.rank != 0 && r != 0)) continue;
    if (speak) {
      if (auto sent = mesh_.links[r].write("ready", deadline_); !sent)
        return at(fmt::format("rendezvous: rank {}", r), sent.error());
    } else if (auto got = mesh_.links[r].read(deadline_); !got) {
      return at(fmt::format("rendezvous: rank {}", r), got.error());
    }
  }
  return {};
}

Result<Mesh> Meeting::host() {
  auto listener = comm::listen_at(o_.address, o_.port);
  if (!listener)
    return make_error(listener.error().code,
                      "rendezvous at {}: {}; choose another address or port of this machine", master(),
                      listener.error().message);
  if (o_.on_listening) {
    DI_ASSIGN(const Endpoint own, comm::local_endpoint(listener->get()));
    o_.on_listening(own.port);
  }
  where_.resize(o_.size);
  Admission door(listener->get(), o_.token);
  DI_TRY(gather(door));
  const std::string welcome = Welcome{.refusal = "", .handout = o_.handout, .ranks = where_}.bytes();
  if (welcome.size() > Link::kMostBytes)
    return refuse_all(fmt::format("what rank 0 hands out has {} bytes, expected less than {}",
                                  o_.handout.size(), Link::kMostBytes));
  for (int r = 1; r < o_.size; ++r)
    if (auto sent = mesh_.links[r].write(welcome, deadline_); !sent)
      return at(fmt::format("rendezvous: rank {}", r), sent.error());
  DI_TRY(ready_round(false));
  DI_TRY(ready_round(true));
  mesh_.handout = o_.handout;
  return std::move(mesh_);
}

// Rank 0 may start later than the others.
Result<Link> Meeting::reach_master() {
  for (;;) {
    auto fd = comm::connect_to(o_.address, o_.port, deadline_);
    if (fd)
      return comm::join(std::move(*fd), o_.token, o_.rank,
                        std::min(deadline_, Clock::now() + comm::kHandshakeLimit));
    if (fd.error().code == ErrorCode::kConfig || Clock::now() + kRetry >= deadline_)
      return make_error(fd.error().code == ErrorCode::kConfig ? ErrorCode::kConfig : ErrorCode::kTimeout,
                        "{}; is rank 0 running there?", fd.error().message);
    std::this_thread::sleep_for(kRetry);
  }
}

Result<void> Meeting::reach_lower(const std::vector<Endpoint>& ranks) {
  for (int r = 1; r < o_.rank; ++r) {
    const std::string where = fmt::format("rendezvous: rank {} at {}", r, ranks[r].text());
    auto fd = comm::connect_to(ranks[r].host, ranks[r].port, deadline_);
    if (!fd) return at(where, fd.error());
    auto link = comm::join(std::move(*fd), o_.token, o_.rank, deadline_);
    if (!link) return at(where, link.error());
    mesh_.links[r] = std::move(*link);
  }
  return {};
}

Result<void> Meeting::await_higher(int listener) {
  Admission door(listener, o_.token);
  while (!missing().empty()) {
    auto peer = door.next(deadline_);
    if (!peer)
      return make_error(ErrorCode::kTimeout, "rendezvous: rank {} did not connect to rank {} within {} s{}",
                        missing(), o_.rank, std::chrono::duration<double>(o_.timeout).count(),
                        door.refused());
    if (peer->rank > o_.rank && peer->rank < o_.size && !mesh_.links[peer->rank])
      mesh_.links[peer->rank] = std::move(peer->link);
  }
  return {};
}

Result<Mesh> Meeting::guest() {
  const std::string where = fmt::format("rendezvous: rank 0 at {}", master());
  auto link = reach_master();
  if (!link) return at(where, link.error());
  // The address through which rank 0 is reached is one that the other ranks can reach too.
  DI_ASSIGN(const Endpoint own, comm::local_endpoint(link->fd()));
  auto listener = comm::listen_at(own.host, 0);
  if (!listener) return at(fmt::format("rendezvous: listening on {}", own.host), listener.error());
  DI_ASSIGN(const Endpoint listening, comm::local_endpoint(listener->get()));
  const Introduction intro{.size = static_cast<uint32_t>(o_.size), .port = listening.port, .facts = o_.facts};
  if (auto sent = link->write(intro.bytes(), deadline_); !sent) return at(where, sent.error());
  auto bytes = link->read(deadline_);
  if (!bytes) return at(where, bytes.error());
  auto welcome = Welcome::read(*bytes, o_.size);
  if (!welcome) return make_error(ErrorCode::kConfig, "{}: it sent an answer that cannot be read", where);
  if (!welcome->refusal.empty()) return make_error(ErrorCode::kConfig, "{}: {}", where, welcome->refusal);
  mesh_.links[0] = std::move(*link);
  DI_TRY(reach_lower(welcome->ranks));
  DI_TRY(await_higher(listener->get()));
  DI_TRY(ready_round(false));
  DI_TRY(ready_round(true));
  mesh_.handout = std::move(welcome->handout);
  return std::move(mesh_);
}

}  // namespace

Result<Mesh> meet(const RendezvousOptions& options) {
  DI_TRY(check(options));
  Meeting meeting(options, Clock::now() + options.timeout);
  return options.rank == 0 ? meeting.host() : meeting.guest();
}

}  // namespace deepinfer
