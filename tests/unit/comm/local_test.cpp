#include "comm/local.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/check.h"
#include "ranks.h"

namespace deepinfer {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;

using test::kLong;

std::vector<std::string> run(int ranks, const std::function<void(Communicator&)>& work,
                             std::chrono::milliseconds timeout = kLong) {
  return test::run(local_communicators, ranks, work, timeout);
}

TEST(Local, WakesAfterItSlept) {
  const auto errors = run(3, [](Communicator& c) {
    std::vector<float> values(10, 1.0f);
    for (int round = 0; round < 6; ++round) {
      if (c.rank() == round % 3) std::this_thread::sleep_for(5ms);  // far longer than the others spin
      c.all_reduce(values);
    }
    EXPECT_EQ(values[0], 729.0f);
  });
  EXPECT_THAT(errors, testing::Each(""));
}

// Every size of call, so that both forms and messages are left in the middle.
TEST(Local, ARankThatIsGoneEndsTheCallsOfTheOthers) {
  for (const size_t n : {size_t{4}, size_t{100000}}) {
    for (const int gone : {0, 1, 2}) {
      const auto errors = run(3, [&](Communicator& c) {
        std::vector<float> values(n, 1.0f);
        for (int round = 0; c.rank() != gone || round < 5; ++round) c.all_reduce(values);
      });
      for (int r = 0; r < 3; ++r) {
        if (r == gone) {
          EXPECT_EQ(errors[r], "");
        } else {
          EXPECT_THAT(errors[r], HasSubstr("rank " + std::to_string(r) + " of 3: all_reduce: "));
          EXPECT_THAT(errors[r], HasSubstr("rank " + std::to_string(gone) + " is gone"));
        }
      }
    }
  }
}

TEST(Local, AStalledRankIsATimeOut) {
  for (const size_t n : {size_t{4}, size_t{100000}}) {
    const auto start = std::chrono::steady_clock::now();
    const auto errors = run(
        3,
        [&](Communicator& c) {
          std::vector<float> values(n, 1.0f);
          c.all_reduce(values);
          if (c.rank() == 1) std::this_thread::sleep_for(2s);
          c.all_reduce(values);
        },
        600ms);
    EXPECT_LT(std::chrono::steady_clock::now() - start, 20s);
    EXPECT_THAT(errors, testing::Contains(HasSubstr("rank 1 did not come within 600 ms")).Times(3));
    EXPECT_THAT(errors[1], HasSubstr("the group has ended: rank "));  // when it comes at last
  }
}

// A message's memory ends with the call that throws, whenever the other side comes.
TEST(Local, AReceiverThatComesTooLateTouchesNothing) {
  const auto errors = run(
      2,
      [&](Communicator& c) {
        std::vector<std::byte> data(Communicator::kEagerBytes * 2);
        if (c.rank() == 0) return c.send(data, 1);
        std::this_thread::sleep_for(200ms);
        c.receive(data, 0);
      },
      30ms);
  EXPECT_THAT(errors[0], HasSubstr("rank 0 of 2: send: rank 1 did not come within 30 ms"));
  EXPECT_THAT(errors[1], HasSubstr("send"));
}

TEST(Local, AbortEndsAllWaits) {
  for (const bool asleep : {false, true}) {
    auto all = local_communicators(3, kLong);
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
    if (asleep) std::this_thread::sleep_for(20ms);
    all[2]->abort("the disk is full");
    all[1]->abort("a second reason");
    for (std::thread& t : threads) t.join();
    EXPECT_THAT(errors, testing::Each("the group has ended: the disk is full"));
    std::vector<std::byte> more(1);
    EXPECT_THROW(all[2]->broadcast(more, 2), CommError);  // and later calls too
    EXPECT_THROW(all[2]->send(more, 1), CommError);
  }
}

// Again and again in the middle of calls that touch each other's memory: sanitizers see a rank that reads
// what has ended.
TEST(Local, AbortAtAnyTime) {
  std::mt19937 random(11);
  for (int round = 0; round < 60; ++round) {
    std::atomic<bool> begun{false};
    auto all = local_communicators(3, kLong);
    std::vector<std::thread> threads;
    std::atomic<int> ended{0};
    for (int r = 0; r < 3; ++r) {
      threads.emplace_back([&, r] {
        try {
          for (;;) {
            std::vector<float> values(30000, 1.0f);
            all[r]->all_reduce(values);
            begun = true;
          }
        } catch (const CommError&) {
          ++ended;
        }
      });
    }
    while (!begun) std::this_thread::yield();
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 2000));
    all[0]->abort("now");
    for (std::thread& t : threads) t.join();
    EXPECT_EQ(ended, 3);
  }
}

TEST(Local, WrongArgumentsEndTheGroup) {
  std::vector<std::byte> a(7), b(13);
  const auto error = [&](const std::function<void(Communicator&)>& work) { return run(2, work)[0]; };
  const auto only_rank_0 = [](auto work) {
    return [work](Communicator& c) {
      if (c.rank() == 0) work(c);
    };
  };
  EXPECT_THAT(error(only_rank_0([&](Communicator& c) { c.all_gather(a, b); })),
              HasSubstr("bytes of `all`: got 13, expected 14"));
  EXPECT_THAT(error(only_rank_0([&](Communicator& c) { c.all_to_all(a, a); })),
              HasSubstr("bytes of `mine`: got 7, expected 6"));
  EXPECT_THAT(error(only_rank_0([&](Communicator& c) { c.broadcast(a, 2); })), HasSubstr("root"));
  EXPECT_THAT(error(only_rank_0([&](Communicator& c) { c.send(a, 0); })),
              HasSubstr("got rank 0, expected another one of 0 to 1"));
  EXPECT_THAT(error(only_rank_0([&](Communicator& c) { c.receive(a, -1); })), HasSubstr("got rank -1"));
  EXPECT_THROW(local_communicators(0, kLong), InternalError);
  EXPECT_THROW(local_communicators(2, 0ms), InternalError);
}

// Measured in CPU time of the process, so that a busy machine does not matter.
TEST(Local, WaitingCostsNothing) {
  const auto cpu_ms = [] {
    timespec t{};
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) * 1e3 + static_cast<double>(t.tv_nsec) * 1e-6;
  };
  double used = 0;
  run(2, [&](Communicator& c) {
    std::vector<float> values(1);
    if (c.rank() == 1) return c.all_reduce(values);
    std::this_thread::sleep_for(50ms);  // until the other one is asleep
    const double before = cpu_ms();
    std::this_thread::sleep_for(300ms);
    used = cpu_ms() - before;
    c.all_reduce(values);
  });
  EXPECT_LT(used, 3.0);
}

}  // namespace
}  // namespace deepinfer
