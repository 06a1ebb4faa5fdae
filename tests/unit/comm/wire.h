// Two network namespaces, with a wire between them that is late, loses packets, or is cut.
#pragma once

#include <arpa/inet.h>
#include <fcntl.h>
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

namespace deepinfer::test {

inline constexpr std::array<const char*, 2> kAddresses = {"10.213.7.1", "10.213.7.2"};
inline constexpr uint32_t kSeed = 17;  // of what is lost

inline std::string system_error(const char* what) {
  return std::string(what) + ": " + std::strerror(errno);
}

inline sockaddr address_of(const char* text) {
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

  MakeRanks ranks() {
    return [this](int count, std::chrono::milliseconds timeout) {
      Ranks all(count);
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

}  // namespace deepinfer::test
