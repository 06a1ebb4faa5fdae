#include "comm/rendezvous.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <future>
#include <random>
#include <thread>

#include "comm/handshake.h"

namespace deepinfer {
namespace {

using namespace std::chrono_literals;
using testing::AllOf;
using testing::HasSubstr;

const std::string kToken = "a token of this test alone";

struct Outcome {
  std::string error;  // empty: the mesh is there
  ErrorCode code{};
  Mesh mesh;
};

// Rank 0 in a thread; the port is known when this returns. `change` edits its options.
class Group {
 public:
  explicit Group(int size, std::chrono::milliseconds timeout = 20s,
                 const std::function<void(RendezvousOptions&)>& change = {})
      : size_(size), timeout_(timeout) {
    std::promise<uint16_t> port;
    RendezvousOptions o = options(0);
    o.port = 0;
    o.on_listening = [&](uint16_t p) { port.set_value(p); };
    if (change) change(o);
    add(o);
    port_ = port.get_future().get();
  }

  RendezvousOptions options(int rank) const {
    RendezvousOptions o;
    o.rank = rank;
    o.size = size_;
    o.port = port_;
    o.token = kToken;
    o.facts = {{"build", "0.1.0"}, {"weights", "abc"}};
    o.timeout = timeout_;
    return o;
  }
  void add(const RendezvousOptions& o) {
    results_.push_back(std::async(std::launch::async, [o] {
      Outcome out;
      if (auto mesh = meet(o)) {
        out.mesh = std::move(*mesh);
      } else {
        out.error = mesh.error().message;
        out.code = mesh.error().code;
      }
      return out;
    }));
  }
  void add(int rank) { add(options(rank)); }
  std::vector<Outcome> finish() {
    std::vector<Outcome> all;
    for (auto& r : results_) all.push_back(r.get());
    return all;
  }
  uint16_t port() const { return port_; }

 private:
  int size_;
  std::chrono::milliseconds timeout_;
  uint16_t port_ = 0;
  std::vector<std::future<Outcome>> results_;
};

comm::Deadline soon() {
  return std::chrono::steady_clock::now() + 10s;
}

comm::Fd stranger(uint16_t port) {
  auto fd = comm::connect_to("127.0.0.1", port, soon());
  EXPECT_TRUE(fd.ok());
  return fd ? std::move(*fd) : comm::Fd();
}

void write(const comm::Fd& fd, std::string_view bytes) {
  (void)comm::write_all(fd.get(), std::as_bytes(std::span(bytes)), soon()).ok();  // it may be closed already
}

TEST(Rendezvous, EveryRankHasALinkToEveryOther) {
  for (const int size : {1, 2, 3, 5}) {
    Group group(size, 20s, [](RendezvousOptions& o) { o.handout = "an id"; });
    for (int r = size - 1; r > 0; --r) group.add(r);
    std::vector<Outcome> all = group.finish();
    std::vector<Mesh*> by_rank(size);
    for (Outcome& o : all) {
      ASSERT_EQ(o.error, "");
      EXPECT_EQ(o.mesh.handout, "an id");
      by_rank[o.mesh.rank] = &o.mesh;
    }
    for (int a = 0; a < size; ++a) {
      EXPECT_FALSE(by_rank[a]->links[a]);
      for (int b = 0; b < size; ++b) {
        if (a == b) continue;
        const std::string text = fmt::format("{} to {}", a, b);
        ASSERT_TRUE(by_rank[a]->links[b].write(text, soon()).ok());
        auto got = by_rank[b]->links[a].read(soon());
        ASSERT_TRUE(got.ok()) << got.error().message;
        EXPECT_EQ(*got, text);
      }
    }
  }
}

TEST(Rendezvous, RankZeroMayComeLast) {
  // A port that is free: the group of one that had it is over.
  Group probe(1);
  probe.finish();
  RendezvousOptions o = probe.options(1);
  o.size = 2;
  auto guest = std::async(std::launch::async, [&] { return meet(o).ok(); });
  std::this_thread::sleep_for(250ms);
  RendezvousOptions host = o;
  host.rank = 0;
  auto mesh = meet(host);
  EXPECT_TRUE(mesh.ok()) << mesh.error().message;
  EXPECT_TRUE(guest.get());
}

TEST(Rendezvous, SaysWhatDiffers) {
  Group group(3);
  group.add(1);
  RendezvousOptions other = group.options(2);
  other.facts = {{"build", "0.2.0"}, {"weights", "abc"}, {"isa", "avx2"}};
  std::this_thread::sleep_for(100ms);  // rank 1 is there, and learns it too
  group.add(other);
  for (const Outcome& o : group.finish()) {
    EXPECT_EQ(o.code, ErrorCode::kConfig);
    EXPECT_THAT(o.error, AllOf(HasSubstr("build: rank 0 has 0.1.0, rank 2 has 0.2.0"),
                               HasSubstr("isa: rank 0 has none, rank 2 has avx2"),
                               testing::Not(HasSubstr("weights"))));
  }
}

TEST(Rendezvous, SizesMustAgree) {
  Group group(2);
  RendezvousOptions other = group.options(1);
  other.size = 4;
  group.add(other);
  for (const Outcome& o : group.finish())
    EXPECT_THAT(o.error, HasSubstr("expects 4 ranks, rank 0 expects 2"));
}

TEST(Rendezvous, ARankComesOnce) {
  Group group(3);
  group.add(1);
  group.add(1);
  for (const Outcome& o : group.finish())
    EXPECT_THAT(o.error, HasSubstr("rank 1 came twice, from 127.0.0.1:"));
}

TEST(Rendezvous, AnotherTokenIsNotAdmitted) {
  Group group(2, 600ms);
  RendezvousOptions other = group.options(1);
  other.token = "a token of somebody else";
  group.add(other);
  const auto all = group.finish();
  EXPECT_THAT(all[0].error, AllOf(HasSubstr("rank 1 did not come within 0.6 s"),
                                  HasSubstr("1 with another token or protocol, the last from 127.0.0.1:")));
  EXPECT_THAT(all[1].error, HasSubstr("is its token another?"));
}

// Somebody listens in rank 0's place and repeats whatever could look like a proof.
TEST(Rendezvous, AnImpostorAsRankZeroIsFoundOut) {
  auto listener = comm::listen_at("127.0.0.1", 0);
  ASSERT_TRUE(listener.ok());
  RendezvousOptions o;
  o.rank = 1;
  o.size = 2;
  o.token = kToken;
  o.port = comm::local_endpoint(listener->get())->port;
  o.timeout = 5s;
  auto guest = std::async(std::launch::async, [&] { return meet(o); });
  ASSERT_TRUE(comm::wait_readable(listener->get(), soon()).ok());
  const comm::Fd fd(accept(listener->get(), nullptr, nullptr));
  write(fd, "DIcomm\x01\n" + std::string(32, 'n'));
  std::array<std::byte, 76> answer;
  ASSERT_TRUE(comm::read_all(fd.get(), answer, soon()).ok());
  write(fd, comm::text_of(std::span(answer).last(32)));  // the rank's own proof
  auto result = guest.get();
  ASSERT_FALSE(result.ok());
  EXPECT_THAT(result.error().message, HasSubstr("it does not know the token"));
}

TEST(Rendezvous, StrangersDelayNobody) {
  Group group(2);
  std::vector<comm::Fd> all;
  for (int i = 0; i < 80; ++i) all.push_back(stranger(group.port()));  // more than are kept waiting
  write(all[1], "GET / HTTP/1.1\r\nHost: x\r\n\r\n");
  write(all[2], std::string(5000, '\xff'));
  write(all[3], "DIcomm\x01\n");  // and no more
  write(all[4], "DIcomm\x01\n" + std::string(68, '\0'));
  const auto start = std::chrono::steady_clock::now();
  group.add(1);
  for (const Outcome& o : group.finish()) EXPECT_EQ(o.error, "");
  EXPECT_LT(std::chrono::steady_clock::now() - start, comm::kHandshakeLimit);
}

// Bytes of any kind and length: nobody gets in, and the real rank still does.
TEST(Rendezvous, HostileBytes) {
  constexpr uint32_t kSeed = 5;
  SCOPED_TRACE(kSeed);
  std::mt19937 random(kSeed);
  Group group(2);
  for (int round = 0; round < 200; ++round) {
    const comm::Fd fd = stranger(group.port());
    std::string bytes(random() % 200, '\0');
    for (char& c : bytes) c = static_cast<char>(random());
    if (random() % 2) bytes.replace(0, std::min<size_t>(8, bytes.size()), "DIcomm\x01\n");
    write(fd, bytes);
  }
  group.add(1);
  for (const Outcome& o : group.finish()) EXPECT_EQ(o.error, "");
}

// A member of the group that sends nonsense after its proof.
TEST(Rendezvous, AnIntroductionThatCannotBeRead) {
  for (const std::string& bytes :
       {std::string(), std::string("\x02\0\0\0", 4), std::string("\x02\0\0\0\x01\0\0\0\xff\xff\xff\xff", 12),
        std::string("\x02\0\0\0\x01\0\0\0\x01\0\0\0\xff\xff\xff\x7f"
                    "abc",
                    19),
        std::string(1000, '\x01')}) {
    Group group(2);
    auto link = comm::join(stranger(group.port()), kToken, 1, soon());
    ASSERT_TRUE(link.ok()) << link.error().message;
    ASSERT_TRUE(link->write(bytes, soon()).ok());
    EXPECT_THAT(group.finish()[0].error, HasSubstr("an introduction that cannot be read"));
  }
}

TEST(Rendezvous, AMemberThatLeavesMayComeBack) {
  Group group(2);
  {
    auto link = comm::join(stranger(group.port()), kToken, 1, soon());
    ASSERT_TRUE(link.ok());
  }
  group.add(1);
  for (const Outcome& o : group.finish()) EXPECT_EQ(o.error, "");
}

TEST(Rendezvous, WrongSettings) {
  const auto error = [](int rank, int size, const std::string& token, const std::string& address) {
    RendezvousOptions o;
    o.rank = rank;
    o.size = size;
    o.token = token;
    o.address = address;
    o.timeout = 300ms;
    auto mesh = meet(o);
    EXPECT_FALSE(mesh.ok());
    return mesh.ok() ? "" : mesh.error().message;
  };
  EXPECT_THAT(error(2, 2, kToken, "127.0.0.1"), HasSubstr("rank: got 2 of 2, expected 0 to 1"));
  EXPECT_THAT(error(-1, 2, kToken, "127.0.0.1"), HasSubstr("rank: got -1 of 2"));
  EXPECT_THAT(error(0, 2, "short", "127.0.0.1"), HasSubstr("got 5 bytes, expected at least 16"));
  EXPECT_THAT(error(1, 2, kToken, "a..b"), HasSubstr("is no address of a machine"));
  EXPECT_THAT(error(0, 2, kToken, "192.0.2.1"), HasSubstr("Cannot assign requested address"));
}

TEST(Rendezvous, APortThatIsTaken) {
  Group group(2, 500ms);
  RendezvousOptions o = group.options(0);
  auto mesh = meet(o);
  ASSERT_FALSE(mesh.ok());
  EXPECT_EQ(mesh.error().code, ErrorCode::kAddressInUse);
  EXPECT_THAT(mesh.error().message, HasSubstr("Address already in use"));
  EXPECT_THAT(group.finish()[0].error, HasSubstr("rank 1 did not come within 0.5 s"));
}

TEST(Rendezvous, NobodyListens) {
  Group probe(1);
  probe.finish();
  RendezvousOptions o = probe.options(1);
  o.size = 2;
  o.timeout = 300ms;
  auto mesh = meet(o);
  ASSERT_FALSE(mesh.ok());
  EXPECT_EQ(mesh.error().code, ErrorCode::kTimeout);
  EXPECT_THAT(mesh.error().message,
              AllOf(HasSubstr("Connection refused"), HasSubstr("is rank 0 running there?")));
}

// A pair of links, with what the wire carried between them in the test's hands.
struct Wire {
  Wire() {
    int fds[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), 0);
    raw = comm::Fd(fds[0]);
    reader = comm::Link(comm::Fd(fds[1]), comm::Digest{}, false);
  }
  // The bytes of frames that a member would send.
  static std::string frames(const std::vector<std::string>& payloads, bool initiator = true) {
    int fds[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), 0);
    comm::Link link(comm::Fd(fds[0]), comm::Digest{}, initiator);
    const comm::Fd other(fds[1]);
    std::string all;
    for (const std::string& p : payloads) {
      EXPECT_TRUE(link.write(p, soon()).ok());
      std::string bytes(4 + p.size() + 32, '\0');
      EXPECT_TRUE(comm::read_all(other.get(), std::as_writable_bytes(std::span(bytes)), soon()).ok());
      all += bytes;
    }
    return all;
  }
  comm::Fd raw;
  comm::Link reader;
};

TEST(Link, EveryChangedByteIsNoticed) {
  const std::string good = Wire::frames({"hello"});
  for (size_t i = 4; i < good.size(); ++i) {
    Wire wire;
    std::string bad = good;
    bad[i] = static_cast<char>(bad[i] ^ 1);
    write(wire.raw, bad);
    auto got = wire.reader.read(soon());
    ASSERT_FALSE(got.ok()) << i;
    EXPECT_THAT(got.error().message, HasSubstr("changed on its way"));
  }
}

TEST(Link, RepeatedSwappedAndReflectedFramesAreNoticed) {
  const std::string first = Wire::frames({"one"});
  for (const std::string& second : {first, Wire::frames({"one", "two", "three"}).substr(2 * first.size()),
                                    Wire::frames({"x", "one"}, false).substr(4 + 1 + 32)}) {
    Wire wire;
    write(wire.raw, first + second);
    EXPECT_EQ(*wire.reader.read(soon()), "one");
    EXPECT_FALSE(wire.reader.read(soon()).ok());
  }
}

TEST(Link, TruncatedAndOversizedFrames) {
  const std::string good = Wire::frames({"hello"});
  for (size_t n = 0; n < good.size(); ++n) {
    Wire wire;
    write(wire.raw, std::string_view(good).substr(0, n));
    wire.raw = comm::Fd();
    auto got = wire.reader.read(soon());
    ASSERT_FALSE(got.ok());
    EXPECT_THAT(got.error().message, HasSubstr("closed the connection"));
  }
  Wire wire;
  write(wire.raw, "\xff\xff\xff\xff");
  EXPECT_THAT(wire.reader.read(soon()).error().message,
              HasSubstr("a frame of 4294967295 bytes, expected at most 1048576"));
  Wire silent;
  EXPECT_EQ(silent.reader.read(std::chrono::steady_clock::now() + 20ms).error().code, ErrorCode::kTimeout);
}

}  // namespace
}  // namespace deepinfer
