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

namespace deepinfer {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;

constexpr auto kLong = 60s;  // never reached by a test that passes

// What each rank's work threw; empty: nothing.
std::vector<std::string> run(int ranks, const std::function<void(Communicator&)>& work,
                             std::chrono::milliseconds timeout = kLong) {
  auto all = local_communicators(ranks, timeout);
  std::vector<std::string> errors(ranks);
  std::vector<std::thread> threads;
  for (int r = 0; r < ranks; ++r) {
    threads.emplace_back([&, r] {
      const std::unique_ptr<Communicator> mine = std::move(all[r]);  // gone when this rank ends
      try {
        work(*mine);
      } catch (const CommError& e) {
        EXPECT_EQ(e.rank(), r);
        errors[r] = e.what();
      }
    });
  }
  for (std::thread& t : threads) t.join();
  return errors;
}

// Cheap, for sanitizers make every step of a real generator dear.
std::vector<std::byte> bytes_of(int rank, size_t n, int seed) {
  std::vector<std::byte> b(n);
  uint32_t x = static_cast<uint32_t>(1000 * seed + rank + 1);
  for (std::byte& v : b) v = static_cast<std::byte>((x = x * 1664525 + 1013904223) >> 24);
  return b;
}

std::vector<float> floats_of(int rank, size_t n, int seed) {
  std::mt19937 random(static_cast<uint32_t>(1000 * seed + rank));
  std::vector<float> v(n);
  for (size_t i = 0; i < n; ++i) v[i] = static_cast<float>(i % 64 ? i * 0.3 - 7.0 * rank : random() * 1e-7);
  return v;
}

// Around the borders between lines, between the staged and the direct form, and uneven slices.
const std::vector<size_t> kSizes = {0,    1,    7,    15,   16,   17,    100,  2048,
                                    5461, 5462, 8191, 8192, 8193, 10923, 65537};

class Ranks : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(, Ranks, testing::Values(1, 2, 3, 4, 7));

TEST_P(Ranks, AllReduceAddsInTheOrderOfRanks) {
  const int ranks = GetParam();
  const auto errors = run(ranks, [&](Communicator& c) {
    for (size_t i = 0; i < kSizes.size(); ++i) {
      const size_t n = kSizes[i];
      std::vector<float> expected = floats_of(0, n, static_cast<int>(i));
      for (int r = 1; r < ranks; ++r) {
        const std::vector<float> other = floats_of(r, n, static_cast<int>(i));
        for (size_t k = 0; k < n; ++k) expected[k] += other[k];
      }
      std::vector<float> values = floats_of(c.rank(), n, static_cast<int>(i));
      c.all_reduce(values);
      EXPECT_TRUE(n == 0 || std::memcmp(values.data(), expected.data(), n * sizeof(float)) == 0)
          << "rank " << c.rank() << ", " << n << " values";
    }
  });
  EXPECT_THAT(errors, testing::Each(""));
}

TEST_P(Ranks, AllReduceKeepsTheSignOfZero) {
  const auto errors = run(GetParam(), [&](Communicator& c) {
    std::vector<float> values(33, -0.0f);
    c.all_reduce(values);
    for (const float v : values) EXPECT_TRUE(std::signbit(v));
  });
  EXPECT_THAT(errors, testing::Each(""));
}

TEST_P(Ranks, AllGatherIsByRank) {
  const int ranks = GetParam();
  const auto errors = run(ranks, [&](Communicator& c) {
    for (const size_t n : kSizes) {
      std::vector<std::byte> expected;
      for (int r = 0; r < ranks; ++r) {
        const auto part = bytes_of(r, n, 1);
        expected.insert(expected.end(), part.begin(), part.end());
      }
      std::vector<std::byte> all(n * ranks);
      c.all_gather(bytes_of(c.rank(), n, 1), all);
      EXPECT_EQ(all, expected);
      std::fill(all.begin(), all.end(), std::byte{});
      const auto mine = bytes_of(c.rank(), n, 1);
      const std::span<std::byte> place = std::span(all).subspan(n * c.rank(), n);
      std::copy(mine.begin(), mine.end(), place.begin());
      c.all_gather(place, all);  // in place
      EXPECT_EQ(all, expected);
    }
  });
  EXPECT_THAT(errors, testing::Each(""));
}

TEST_P(Ranks, BroadcastFromEachRoot) {
  const int ranks = GetParam();
  const auto errors = run(ranks, [&](Communicator& c) {
    for (const size_t n : kSizes) {
      for (int root = 0; root < ranks; ++root) {
        std::vector<std::byte> data = bytes_of(c.rank(), n, 2);
        c.broadcast(data, root);
        EXPECT_EQ(data, bytes_of(root, n, 2));
      }
    }
  });
  EXPECT_THAT(errors, testing::Each(""));
}

TEST_P(Ranks, AllToAllSendsRowsToRanks) {
  const int ranks = GetParam();
  const auto errors = run(ranks, [&](Communicator& c) {
    for (const size_t n : kSizes) {
      std::vector<std::byte> mine, expected, all(n * ranks);
      for (int r = 0; r < ranks; ++r) {
        const auto out = bytes_of(c.rank(), n, 10 + r), in = bytes_of(r, n, 10 + c.rank());
        mine.insert(mine.end(), out.begin(), out.end());
        expected.insert(expected.end(), in.begin(), in.end());
      }
      c.all_to_all(mine, all);
      EXPECT_EQ(all, expected);
    }
  });
  EXPECT_THAT(errors, testing::Each(""));
}

TEST_P(Ranks, MessagesKeepTheirOrder) {
  const int ranks = GetParam();
  if (ranks == 1) return;
  const size_t kBig = Communicator::kEagerBytes + 1;
  const auto errors = run(ranks, [&](Communicator& c) {
    const int next = (c.rank() + 1) % ranks, before = (c.rank() + ranks - 1) % ranks;
    for (int round = 0; round < 50; ++round) {
      const size_t n = round % 10 == 9 ? kBig : static_cast<size_t>(round * 37);
      std::vector<std::byte> got(n);
      const auto receive = [&] {
        c.receive(got, before);
        EXPECT_EQ(got, bytes_of(before, n, round));
      };
      const bool first = c.rank() % 2 == 1;  // long messages wait, so somebody must receive first
      if (first) receive();
      c.send(bytes_of(c.rank(), n, round), next);
      if (!first) receive();
    }
  });
  EXPECT_THAT(errors, testing::Each(""));
}

TEST(Local, ShortMessagesNeedNoReceiver) {
  const auto errors = run(2, [](Communicator& c) {
    std::vector<std::byte> data(100), got(100);
    for (int i = 0; i < 2; ++i) c.send(data, 1 - c.rank());
    for (int i = 0; i < 2; ++i) c.receive(got, 1 - c.rank());
  });
  EXPECT_THAT(errors, testing::Each(""));
}

// The memory of one call is written again at once by the next: what a slow rank still reads must not change.
TEST(Local, ManyCallsInARow) {
  for (const int ranks : {2, 3, 5}) {
    std::atomic<int> wrong{0};
    const auto errors = run(ranks, [&](Communicator& c) {
      std::vector<float> small(64), large(20000);
      std::vector<std::byte> id(8);
      for (int round = 0; round < 400; ++round) {
        std::fill(small.begin(), small.end(), static_cast<float>(round));
        c.all_reduce(small);
        for (const float v : small) wrong += v != static_cast<float>(round * ranks);
        if (round % 3 == 0) c.broadcast(id, round % ranks);
        if (round % 8 == 0) {
          std::fill(large.begin(), large.end(), static_cast<float>(round));
          c.all_reduce(large);
          for (const float v : large) wrong += v != static_cast<float>(round * ranks);
        }
      }
    });
    EXPECT_THAT(errors, testing::Each(""));
    EXPECT_EQ(wrong, 0);
  }
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

TEST(Local, ARankMayLeaveAfterItsLastCall) {
  for (int round = 0; round < 200; ++round) {
    const auto errors = run(3, [&](Communicator& c) {
      std::vector<float> values(round % 2 ? 10 : 4000, 1.0f);
      c.all_reduce(values);
      if (c.rank() == 0) c.send(std::as_bytes(std::span(values)), 1);
      if (c.rank() == 1) c.receive(std::as_writable_bytes(std::span(values)), 0);
      EXPECT_EQ(values[0], 3.0f);
    });
    ASSERT_THAT(errors, testing::Each("")) << round;
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
          if (c.rank() == 1) std::this_thread::sleep_for(400ms);
          c.all_reduce(values);
        },
        50ms);
    EXPECT_LT(std::chrono::steady_clock::now() - start, 20s);
    EXPECT_THAT(errors, testing::Contains(HasSubstr("rank 1 did not come within 50 ms")).Times(3));
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

TEST(Local, CallsThatDisagreeEndTheGroup) {
  const auto both = [](const std::function<void(Communicator&)>& work) {
    const auto errors = run(2, work);
    EXPECT_THAT(errors, testing::Each(testing::Not("")));
    return errors[0] + errors[1];
  };
  std::vector<std::vector<float>> v(2, std::vector<float>(100000));
  EXPECT_THAT(
      both([&](Communicator& c) { c.all_reduce(std::span(v[c.rank()]).first(c.rank() ? 50000 : 50001)); }),
      HasSubstr("of 200004 bytes"));
  EXPECT_THAT(both([&](Communicator& c) {
                if (c.rank() == 0) return c.all_reduce(std::span(v[0]).first(4));
                c.broadcast(std::as_writable_bytes(std::span(v[1]).first(4)), 0);
              }),
              HasSubstr("broadcast of 16 bytes from rank 0"));
  EXPECT_THAT(both([&](Communicator& c) {
                c.broadcast(std::as_writable_bytes(std::span(v[c.rank()]).first(4)), c.rank());
              }),
              HasSubstr("from rank 1"));
  EXPECT_THAT(both([&](Communicator& c) {
                const auto bytes = std::as_writable_bytes(std::span(v[c.rank()]));
                if (c.rank() == 0) {
                  c.send(bytes.first(10), 1);
                  c.send(bytes.first(10), 1);
                  c.send(bytes.first(10), 1);
                } else {
                  c.receive(bytes.first(11), 0);
                }
              }),
              HasSubstr("rank 0 sends 10 bytes, this one expects 11"));
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
