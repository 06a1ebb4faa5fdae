#include "base/thread_pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <time.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>
#include <vector>

#include "base/check.h"

namespace deepinfer {
namespace {

TEST(ThreadPool, RunsOnEveryThreadOnce) {
  for (const int size : {1, 2, 5}) {
    ThreadPool pool(size);
    EXPECT_EQ(pool.size(), size);
    std::vector<int> calls(size);
    for (int round = 0; round < 200; ++round) pool.run([&](int t) { ++calls[t]; });
    EXPECT_THAT(calls, testing::Each(200));
  }
}

TEST(ThreadPool, ThreadZeroIsTheCaller) {
  ThreadPool pool(3);
  std::thread::id id;
  pool.run([&](int t) {
    if (t == 0) id = std::this_thread::get_id();
  });
  EXPECT_EQ(id, std::this_thread::get_id());
}

TEST(ThreadPool, BarrierSeparatesSteps) {
  for (const int size : {1, 2, 4}) {
    ThreadPool pool(size);
    std::vector<int> written(size);
    std::atomic<int> wrong{0};
    for (int round = 0; round < 50; ++round) {
      pool.run([&](int t) {
        for (int step = 1; step <= 20; ++step) {
          written[t] = step;
          pool.barrier();
          for (const int w : written) wrong += w != step;
          pool.barrier();
        }
      });
    }
    EXPECT_EQ(wrong, 0);
  }
}

TEST(ThreadPool, WakesAfterItSlept) {
  ThreadPool pool(3);
  std::atomic<int> calls{0};
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));  // far longer than it spins
    pool.run([&](int) { ++calls; });
  }
  EXPECT_EQ(calls, 15);
}

TEST(ThreadPool, ThrowsTheFirstExceptionAgain) {
  ThreadPool pool(4);
  for (int thrower = 0; thrower < 4; ++thrower) {
    EXPECT_THROW(pool.run([&](int t) {
      if (t == thrower) throw std::runtime_error("from a worker");
    }),
                 std::runtime_error);
    std::atomic<int> calls{0};
    pool.run([&](int) { ++calls; });  // the pool still works
    EXPECT_EQ(calls, 4);
  }
}

TEST(ThreadPool, AFailedThreadReleasesThoseAtTheBarrier) {
  ThreadPool pool(4);
  for (int thrower = 0; thrower < 4; ++thrower) {
    std::atomic<int> passed{0};
    const auto work = [&](int t) {
      pool.barrier();
      if (t == thrower) throw std::runtime_error("between two barriers");
      pool.barrier();
      ++passed;
    };
    EXPECT_THROW(pool.run(work), std::runtime_error);
    EXPECT_EQ(passed, 0);
    std::atomic<int> calls{0};
    pool.run([&](int) {
      pool.barrier();
      ++calls;
    });
    EXPECT_EQ(calls, 4);
  }
}

TEST(ThreadPool, RefusesToHaveNoThreads) {
  EXPECT_THROW(ThreadPool(0), InternalError);
}

// Measured in CPU time of the process, so that a busy machine does not matter.
TEST(ThreadPool, CostsNothingWhenIdle) {
  ThreadPool pool(4);
  pool.run([](int) {});
  std::this_thread::sleep_for(std::chrono::milliseconds(50));  // until all are asleep
  const auto cpu_ms = [] {
    timespec t{};
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) * 1e3 + static_cast<double>(t.tv_nsec) * 1e-6;
  };
  const double before = cpu_ms();
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  EXPECT_LT(cpu_ms() - before, 3.0);
}

}  // namespace
}  // namespace deepinfer
