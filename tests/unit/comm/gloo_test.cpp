#include "comm/gloo.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <future>
#include <set>
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

std::vector<std::string> run(int ranks, const std::function<void(Communicator&)>& work,
                             std::chrono::milliseconds timeout = kLong) {
  return test::run(test::gloo_ranks, ranks, work, timeout);
}

class Gloo : public testing::Test {
 protected:
  void SetUp() override {
    if (!has_gloo()) GTEST_SKIP() << "this build has no Gloo (libgloo-dev)";
  }
};

TEST_F(Gloo, LargeSumsAndMessages) {
  const auto errors = run(2, [](Communicator& c) {
    std::vector<float> values(3'000'001, static_cast<float>(c.rank() + 1));
    c.all_reduce(values);
    EXPECT_EQ(values.front(), 3.0f);
    EXPECT_EQ(values.back(), 3.0f);
    std::vector<std::byte> data = bytes_of(0, size_t{20} << 20, 1), got(data.size());
    if (c.rank() == 0) {
      c.send(data, 1);
    } else {
      c.receive(got, 0);
      EXPECT_EQ(got, data);
    }
  });
  EXPECT_THAT(errors, testing::Each(""));
}

TEST_F(Gloo, ARankThatIsGoneEndsTheCallsOfTheOthers) {
  for (const size_t n : {size_t{4}, size_t{100000}}) {
    const auto start = std::chrono::steady_clock::now();
    const auto errors = run(3, [&](Communicator& c) {
      std::vector<float> values(n, 1.0f);
      for (int round = 0; c.rank() != 1 || round < 5; ++round) c.all_reduce(values);
    });
    EXPECT_EQ(errors[1], "");
    for (const int r : {0, 2}) EXPECT_THAT(errors[r], HasSubstr("rank 1 is gone")) << n;
    EXPECT_LT(std::chrono::steady_clock::now() - start, 30s);
  }
}

TEST_F(Gloo, AStalledRankIsATimeOut) {
  const auto errors = run(
      2,
      [](Communicator& c) {
        std::vector<float> values(4, 1.0f);
        c.all_reduce(values);
        if (c.rank() == 1) std::this_thread::sleep_for(3s);
        c.all_reduce(values);
      },
      1s);
  EXPECT_THAT(errors[0], HasSubstr("rank 1 did not come within 1000 ms"));
  EXPECT_THAT(errors[1], HasSubstr("the group has ended: rank 0: all_reduce: rank 1 did not come"));
}

TEST_F(Gloo, AbortReachesEveryProcess) {
  test::Ranks all = test::gloo_ranks(3, kLong);
  std::vector<std::string> errors(2);
  std::vector<std::thread> threads;
  for (int r = 0; r < 2; ++r) {
    threads.emplace_back([&, r] {
      std::vector<float> values(10);
      try {
        r == 0 ? all[r]->all_reduce(values) : all[r]->receive(std::as_writable_bytes(std::span(values)), 2);
      } catch (const CommError& e) {
        errors[r] = e.reason();
      }
    });
  }
  std::this_thread::sleep_for(50ms);
  all[2]->abort("the disk is full");
  all[2]->abort("a second reason");
  for (std::thread& t : threads) t.join();
  EXPECT_THAT(errors, testing::Each("the group has ended: the disk is full"));
  std::vector<float> more(1);
  EXPECT_THROW(all[2]->all_reduce(more), CommError);
}

// A rank in a process of its own, which gets the signal while both sum without end. What rank 0 threw.
struct Death {
  std::string error;
  std::chrono::steady_clock::duration after{};
};
Death signalled(int signal, size_t values, std::chrono::milliseconds timeout) {
  int port_pipe[2];
  if (pipe(port_pipe) != 0) return {"no pipe", {}};
  RendezvousOptions o;
  o.size = 2;
  o.token = "a token for tests only";
  const auto sum = [&](int rank) -> std::string {
    o.rank = rank;
    auto mesh = meet(o);
    if (!mesh) return mesh.error().message;
    auto made = gloo_communicator(std::move(*mesh), timeout);
    if (!made) return made.error().message;
    try {
      std::vector<float> v(values, 1.0f);
      for (;;) (*made)->all_reduce(v);
    } catch (const CommError& e) {
      return e.what();
    }
  };
  const pid_t child = fork();
  if (child == 0) {
    if (read(port_pipe[0], &o.port, sizeof o.port) == sizeof o.port) sum(1);
    _exit(0);
  }
  o.on_listening = [&](uint16_t port) { EXPECT_EQ(write(port_pipe[1], &port, sizeof port), 2); };
  Death death;
  std::thread rank0([&] {
    death.error = sum(0);
    death.after = std::chrono::steady_clock::now().time_since_epoch();
  });
  std::this_thread::sleep_for(700ms);
  const auto killed = std::chrono::steady_clock::now().time_since_epoch();
  kill(child, signal);
  rank0.join();
  death.after -= killed;
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  for (const int fd : port_pipe) close(fd);
  return death;
}

TEST_F(Gloo, AKilledProcess) {
  for (const size_t values : {size_t{4}, size_t{1} << 20}) {
    const Death death = signalled(SIGKILL, values, kLong);
    EXPECT_THAT(death.error, HasSubstr("rank 0 of 2: all_reduce: "));
    EXPECT_THAT(death.error, HasSubstr("rank 1"));
    EXPECT_LT(death.after, 10s) << death.error;
  }
}

TEST_F(Gloo, AStoppedProcess) {
  for (const size_t values : {size_t{4}, size_t{1} << 20}) {
    const Death death = signalled(SIGSTOP, values, 1500ms);
    EXPECT_THAT(death.error, HasSubstr("rank 1 did not come within 1500 ms"));
    EXPECT_LT(death.after, 10s);
  }
}

// Somebody who connects to every port that this process opens on the loopback interface, Gloo's among them:
// to those of other processes it would be a real intruder, and their tests would fail.
class Intruder {
 public:
  Intruder() : before_(ports()), thread_([this] { run(); }) {}
  ~Intruder() { connections(); }
  // How many it has made; it makes no more.
  size_t connections() {
    stop_ = true;
    if (thread_.joinable()) thread_.join();
    return held_.size();
  }

 private:
  static std::set<unsigned long> own_sockets() {
    std::set<unsigned long> inodes;
    std::error_code gone;
    for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd", gone)) {
      const std::string to = std::filesystem::read_symlink(entry, gone);
      unsigned long inode = 0;
      if (std::sscanf(to.c_str(), "socket:[%lu]", &inode) == 1) inodes.insert(inode);
    }
    return inodes;
  }
  static std::set<int> ports() {
    const std::set<unsigned long> own = own_sockets();
    std::ifstream file("/proc/self/net/tcp");
    std::string line;
    std::set<int> found;
    unsigned address = 0, port = 0, state = 0;
    unsigned long inode = 0;
    while (std::getline(file, line))
      if (std::sscanf(line.c_str(), " %*d: %x:%x %*x:%*x %x %*x:%*x %*x:%*x %*x %*d %*d %lu", &address, &port,
                      &state, &inode) == 4 &&
          state == 0x0a && address == 0x0100007f && own.contains(inode))
        found.insert(static_cast<int>(port));
    return found;
  }
  void run() {
    while (!stop_) {
      for (const int port : ports())
        if (!before_.contains(port))
          if (auto fd = comm::connect_to("127.0.0.1", static_cast<uint16_t>(port),
                                         std::chrono::steady_clock::now() + 1s))
            held_.push_back(std::move(*fd));
    }
  }

  std::set<int> before_;
  std::vector<comm::Fd> held_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

// Whoever comes first to Gloo's port: either the ranks are connected to each other, or they refuse to start.
TEST_F(Gloo, AnIntruderIsNeverTakenForARank) {
  size_t intrusions = 0;
  for (int round = 0; round < 10; ++round) {
    Intruder intruder;
    std::promise<uint16_t> port;
    std::array<std::string, 2> errors;
    const auto rank = [&](int r, uint16_t at) {
      RendezvousOptions o;
      o.rank = r;
      o.size = 2;
      o.port = at;
      o.token = "a token for tests only";
      o.on_listening = [&](uint16_t p) { port.set_value(p); };
      auto mesh = meet(o);
      if (!mesh) return mesh.error().message;
      auto made = gloo_communicator(std::move(*mesh), 5s);
      if (!made) return made.error().message;
      std::vector<float> values(20000, 1.0f);
      try {
        (*made)->all_reduce(values);
      } catch (const CommError& e) {
        return std::string(e.what());
      }
      EXPECT_EQ(values[19999], 2.0f);
      return std::string();
    };
    std::thread first([&] { errors[0] = rank(0, 0); });
    errors[1] = rank(1, port.get_future().get());
    first.join();
    EXPECT_EQ(errors[0].empty(), errors[1].empty());
    if (!errors[0].empty()) EXPECT_THAT(errors[0] + errors[1], HasSubstr("Gloo: "));
    intrusions += intruder.connections();
  }
  EXPECT_GT(intrusions, 0u);
}

TEST_F(Gloo, WrongArgumentsEndTheGroup) {
  std::vector<std::byte> a(7), b(13);
  const auto error = [&](const std::function<void(Communicator&)>& work) {
    return run(2, [&](Communicator& c) {
      if (c.rank() == 0) work(c);
    })[0];
  };
  EXPECT_THAT(error([&](Communicator& c) { c.all_gather(a, b); }),
              HasSubstr("bytes of `all`: got 13, expected 14"));
  EXPECT_THAT(error([&](Communicator& c) { c.broadcast(a, 2); }), HasSubstr("root"));
  EXPECT_THAT(error([&](Communicator& c) { c.send(a, 0); }),
              HasSubstr("got rank 0, expected another one of 0 to 1"));
}

}  // namespace
}  // namespace deepinfer
