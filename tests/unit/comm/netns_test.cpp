// Ranks in two network namespaces, with a wire between them that is late, loses packets, or is cut.
#include <arpa/inet.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <deque>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "ranks.h"

namespace deepinfer {
namespace {

using namespace std::chrono_literals;
using test::bytes_of;
using test::kLong;
using testing::HasSubstr;

constexpr std::array<const char*, 2> kAddresses = {"10.213.7.1", "10.213.7.2"};
constexpr uint32_t kSeed = 17;

std::string system_error(const char* what) {
  return std::string(what) + ": " + std::strerror(errno);
}

sockaddr address_of(const char* text) {
  sockaddr_in a{};
  a.sin_family = AF_INET;
  inet_pton(AF_INET, text, &a.sin_addr);
  sockaddr out;
  std::memcpy(&out, &a, sizeof out);
  return out;
}

// A namespace with one end of a wire in it.
struct Side {
  comm::Fd space, tun;
  std::string error;

  // In a thread of its own, which stays in the new namespace.
  void open(const char* own, const char* other) {
    if (unshare(CLONE_NEWNET) != 0) return fail("a network namespace");
    space = comm::Fd(::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
    tun = comm::Fd(::open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK));
    const comm::Fd control(socket(AF_INET, SOCK_DGRAM, 0));
    ifreq r{};
    std::strcpy(r.ifr_name, "wire");
    r.ifr_flags = IFF_TUN | IFF_NO_PI;
    if (!space || !tun || ioctl(tun.get(), TUNSETIFF, &r) != 0) return fail("/dev/net/tun");
    r.ifr_addr = address_of(own);
    if (ioctl(control.get(), SIOCSIFADDR, &r) != 0) return fail("an address");
    r.ifr_addr = address_of(other);
    if (ioctl(control.get(), SIOCSIFDSTADDR, &r) != 0) return fail("the other address");
    for (const char* name : {"wire", "lo"}) {
      std::strcpy(r.ifr_name, name);
      r.ifr_flags = IFF_UP | IFF_RUNNING;
      if (ioctl(control.get(), SIOCSIFFLAGS, &r) != 0) return fail(name);
    }
  }
  void fail(const char* what) { error = system_error(what); }
};

class Wire {
 public:
  Wire(std::chrono::microseconds delay, double loss) : delay_(delay), loss_(loss), random_(kSeed) {
    for (int s = 0; s < 2; ++s) std::thread([&] { sides_[s].open(kAddresses[s], kAddresses[1 - s]); }).join();
    if (error().empty()) relay_ = std::thread([this] { relay(); });
  }
  ~Wire() {
    stop_ = true;
    if (relay_.joinable()) relay_.join();
  }
  std::string error() const { return sides_[0].error.empty() ? sides_[1].error : sides_[0].error; }
  void cut() { cut_ = true; }
  int lost() const { return lost_; }
  void enter(int side) const { EXPECT_EQ(setns(sides_[side].space.get(), CLONE_NEWNET), 0); }

  test::MakeRanks ranks() {
    return [this](int count, std::chrono::milliseconds timeout) {
      test::Ranks all(count);
      std::vector<std::thread> threads;
      for (int r = 0; r < count; ++r) {
        threads.emplace_back([&, r] {
          enter(r % 2);
          RendezvousOptions o;
          o.rank = r;
          o.size = count;
          o.address = kAddresses[0];
          o.port = 29555;
          o.token = "a token for tests only";
          auto mesh = meet(o);
          ASSERT_TRUE(mesh.ok()) << mesh.error().message;
          auto made = gloo_communicator(std::move(*mesh), timeout);
          ASSERT_TRUE(made.ok()) << made.error().message;
          all[r] = std::move(*made);
        });
      }
      for (std::thread& t : threads) t.join();
      return all;
    };
  }

 private:
  struct Packet {
    std::chrono::steady_clock::time_point due;
    std::vector<char> bytes;
  };
  void relay() {
    std::array<std::deque<Packet>, 2> ways;
    std::vector<char> buffer(65536);
    std::uniform_real_distribution<double> chance(0, 1);
    while (!stop_) {
      std::array<pollfd, 2> fds{};
      for (int s = 0; s < 2; ++s) fds[s] = {.fd = sides_[s].tun.get(), .events = POLLIN, .revents = 0};
      const timespec tick{.tv_sec = 0, .tv_nsec = 500'000};
      ppoll(fds.data(), fds.size(), &tick, nullptr);
      const auto now = std::chrono::steady_clock::now();
      for (int s = 0; s < 2; ++s) {
        for (ssize_t n; (n = read(sides_[s].tun.get(), buffer.data(), buffer.size())) > 0;) {
          if (cut_ || chance(random_) < loss_) {
            ++lost_;
          } else {
            ways[s].push_back({now + delay_, {buffer.begin(), buffer.begin() + n}});
          }
        }
        for (; !ways[s].empty() && ways[s].front().due <= now; ways[s].pop_front())
          if (write(sides_[1 - s].tun.get(), ways[s].front().bytes.data(), ways[s].front().bytes.size()) < 0)
            ++lost_;
      }
    }
  }

  const std::chrono::microseconds delay_;
  const double loss_;
  std::mt19937 random_;
  std::array<Side, 2> sides_;
  std::atomic<bool> stop_{false}, cut_{false};
  std::atomic<int> lost_{0};
  std::thread relay_;
};

void everything(Communicator& c) {
  const int ranks = c.size();
  for (const size_t n : {0, 1, 17, 1000, 4096, 4097, 20000, 262144}) {
    std::vector<float> values(n, static_cast<float>(c.rank() + 1));
    c.all_reduce(values);
    for (const float v : values) ASSERT_EQ(v, static_cast<float>(ranks * (ranks + 1) / 2));
    std::vector<std::byte> all(n * ranks), data = bytes_of(c.rank(), n, 3);
    c.all_gather(bytes_of(c.rank(), n, 1), all);
    for (int r = 0; r < ranks; ++r) {
      const auto part = bytes_of(r, n, 1);
      ASSERT_TRUE(std::equal(part.begin(), part.end(), all.begin() + static_cast<ptrdiff_t>(n) * r));
    }
    c.broadcast(data, ranks - 1);
    ASSERT_EQ(data, bytes_of(ranks - 1, n, 3));
    const int next = (c.rank() + 1) % ranks, before = (c.rank() + ranks - 1) % ranks;
    c.send(bytes_of(c.rank(), n, 4), next);
    c.receive(data, before);
    ASSERT_EQ(data, bytes_of(before, n, 4));
  }
}

#define SKIP_UNLESS(wire)                                                  \
  if (!has_gloo()) GTEST_SKIP() << "this build has no Gloo (libgloo-dev)"; \
  if (!(wire).error().empty()) GTEST_SKIP() << "this machine gives no second network: " << (wire).error()

TEST(Namespaces, AQuickWire) {
  Wire wire(0us, 0);
  SKIP_UNLESS(wire);
  EXPECT_THAT(test::run(wire.ranks(), 2, everything), testing::Each(""));
}

TEST(Namespaces, ThreeRanksOnTwoMachines) {
  Wire wire(1ms, 0);
  SKIP_UNLESS(wire);
  EXPECT_THAT(test::run(wire.ranks(), 3, everything), testing::Each(""));
}

TEST(Namespaces, LateAndLossy) {
  SCOPED_TRACE(kSeed);
  Wire wire(5ms, 0.02);
  SKIP_UNLESS(wire);
  EXPECT_THAT(test::run(wire.ranks(), 2, everything), testing::Each(""));
  EXPECT_GT(wire.lost(), 10);
}

TEST(Namespaces, ACutWireIsATimeOut) {
  Wire wire(1ms, 0);
  SKIP_UNLESS(wire);
  const auto start = std::chrono::steady_clock::now();
  const auto errors = test::run(
      wire.ranks(), 2,
      [&](Communicator& c) {
        std::vector<float> values(50000, 1.0f);
        for (int round = 0;; ++round) {
          c.all_reduce(values);
          if (round == 3 && c.rank() == 0) wire.cut();
        }
      },
      2s);
  for (const int r : {0, 1})
    EXPECT_THAT(errors[r], HasSubstr("rank " + std::to_string(1 - r) + " did not come within 2000 ms"));
  EXPECT_LT(std::chrono::steady_clock::now() - start, 30s);
}

TEST(Namespaces, LoopbackIsNotReachedFromOutside) {
  Wire wire(0us, 0);
  if (!wire.error().empty()) GTEST_SKIP() << "this machine gives no second network: " << wire.error();
  comm::Fd listener;
  uint16_t port = 0;
  std::thread([&] {
    wire.enter(0);
    auto fd = comm::listen_at(RendezvousOptions().address, 0);
    ASSERT_TRUE(fd.ok()) << fd.error().message;
    port = comm::local_endpoint(fd->get())->port;
    listener = std::move(*fd);
    EXPECT_TRUE(comm::connect_to("127.0.0.1", port, std::chrono::steady_clock::now() + 5s).ok());
  }).join();
  std::thread([&] {
    wire.enter(1);
    auto fd = comm::connect_to(kAddresses[0], port, std::chrono::steady_clock::now() + 5s);
    ASSERT_FALSE(fd.ok());
    EXPECT_THAT(fd.error().message, HasSubstr("refused"));
  }).join();
}

}  // namespace
}  // namespace deepinfer
