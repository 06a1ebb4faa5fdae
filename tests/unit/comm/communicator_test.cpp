// What every form of a communicator must do.
#include "comm/communicator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "comm/subgroup.h"
#include "ranks.h"

namespace deepinfer {
namespace {

using test::bytes_of;
using test::MakeRanks;
using test::run;
using testing::HasSubstr;

struct Form {
  std::string name;
  MakeRanks make;
};

const Form kLocal{"Local", local_communicators};
const Form kGloo{"Gloo", test::gloo_ranks};

// A group inside a larger one, which it keeps for itself.
class Inside final : public Communicator {
 public:
  Inside(std::unique_ptr<Communicator> world, std::vector<int> ranks)
      : world_(std::move(world)), group_(subgroup(*world_, std::move(ranks))) {}
  int rank() const override { return group_->rank(); }
  int size() const override { return group_->size(); }
  void all_reduce(std::span<float> values) override { group_->all_reduce(values); }
  void all_gather(std::span<const std::byte> mine, std::span<std::byte> all) override {
    group_->all_gather(mine, all);
  }
  void broadcast(std::span<std::byte> data, int root) override { group_->broadcast(data, root); }
  void send(std::span<const std::byte> data, int to) override { group_->send(data, to); }
  void send_copy(std::span<const std::byte> data, int to) override { group_->send_copy(data, to); }
  void receive(std::span<std::byte> data, int from) override { group_->receive(data, from); }
  void all_to_all(std::span<const std::byte> mine, std::span<std::byte> all) override {
    group_->all_to_all(mine, all);
  }
  void abort(std::string reason) override { group_->abort(std::move(reason)); }

 private:
  std::unique_ptr<Communicator> world_, group_;
};

// Every `step`-th rank of the world.
test::Ranks inside(test::Ranks world, int step) {
  std::vector<int> ranks;
  for (int r = step - 1; r < static_cast<int>(world.size()); r += step) ranks.push_back(r);
  test::Ranks all;
  for (const int r : ranks) all.push_back(std::make_unique<Inside>(std::move(world[r]), ranks));
  return all;
}

const Form kPart{"Part", [](int ranks, std::chrono::milliseconds timeout) {
                   return inside(local_communicators(2 * ranks + 1, timeout), 2);
                 }};
const Form kGlooPart{"GlooPart", [](int ranks, std::chrono::milliseconds timeout) {
                       return inside(test::gloo_ranks(ranks, timeout), 1);
                     }};

std::vector<float> floats_of(int rank, size_t n, int seed) {
  std::mt19937 random(static_cast<uint32_t>(1000 * seed + rank));
  std::vector<float> v(n);
  for (size_t i = 0; i < n; ++i) v[i] = static_cast<float>(i % 64 ? i * 0.3 - 7.0 * rank : random() * 1e-7);
  return v;
}

// Around the borders between lines of a cache, uneven slices, and the ways in which short and long ones
// travel.
const std::vector<size_t> kSizes = {0,    1,    7,    15,   16,   17,   100,   341,   342,  683,
                                    1024, 1025, 4095, 4096, 4097, 8193, 16384, 16385, 65537};

class Ranks : public testing::TestWithParam<std::tuple<Form, int>> {
 protected:
  void SetUp() override {
    if (form().name.starts_with("Gloo") && !has_gloo())
      GTEST_SKIP() << "this build has no Gloo (libgloo-dev)";
  }
  static const Form& form() { return std::get<0>(GetParam()); }
  static int ranks() { return std::get<1>(GetParam()); }
};

std::string name_of(const testing::TestParamInfo<std::tuple<Form, int>>& info) {
  return std::get<0>(info.param).name + std::to_string(std::get<1>(info.param));
}
INSTANTIATE_TEST_SUITE_P(Local, Ranks,
                         testing::Combine(testing::Values(kLocal), testing::Values(1, 2, 3, 4, 7)), name_of);
INSTANTIATE_TEST_SUITE_P(Part, Ranks, testing::Combine(testing::Values(kPart), testing::Values(1, 2, 3, 4)),
                         name_of);
INSTANTIATE_TEST_SUITE_P(GlooPart, Ranks, testing::Combine(testing::Values(kGlooPart), testing::Values(2, 3)),
                         name_of);
INSTANTIATE_TEST_SUITE_P(Gloo, Ranks, testing::Combine(testing::Values(kGloo), testing::Values(2, 3, 4)),
                         name_of);

TEST_P(Ranks, AllReduceAddsInTheOrderOfRanks) {
  const auto errors = run(form().make, ranks(), [&](Communicator& c) {
    for (size_t i = 0; i < kSizes.size(); ++i) {
      const size_t n = kSizes[i];
      std::vector<float> expected = floats_of(0, n, static_cast<int>(i));
      for (int r = 1; r < ranks(); ++r) {
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
  const auto errors = run(form().make, ranks(), [&](Communicator& c) {
    std::vector<float> values(33, -0.0f);
    c.all_reduce(values);
    for (const float v : values) EXPECT_TRUE(std::signbit(v));
  });
  EXPECT_THAT(errors, testing::Each(""));
}

TEST_P(Ranks, AllGatherIsByRank) {
  const auto errors = run(form().make, ranks(), [&](Communicator& c) {
    for (const size_t n : kSizes) {
      std::vector<std::byte> expected;
      for (int r = 0; r < ranks(); ++r) {
        const auto part = bytes_of(r, n, 1);
        expected.insert(expected.end(), part.begin(), part.end());
      }
      std::vector<std::byte> all(n * ranks());
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
  const auto errors = run(form().make, ranks(), [&](Communicator& c) {
    for (const size_t n : kSizes) {
      for (int root = 0; root < ranks(); ++root) {
        std::vector<std::byte> data = bytes_of(c.rank(), n, 2);
        c.broadcast(data, root);
        EXPECT_EQ(data, bytes_of(root, n, 2));
      }
    }
  });
  EXPECT_THAT(errors, testing::Each(""));
}

TEST_P(Ranks, AllToAllSendsRowsToRanks) {
  const auto errors = run(form().make, ranks(), [&](Communicator& c) {
    for (const size_t n : kSizes) {
      std::vector<std::byte> mine, expected, all(n * ranks());
      for (int r = 0; r < ranks(); ++r) {
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
  if (ranks() == 1) return;
  const size_t kBig = Communicator::kEagerBytes + 1;
  const auto errors = run(form().make, ranks(), [&](Communicator& c) {
    const int next = (c.rank() + 1) % ranks(), before = (c.rank() + ranks() - 1) % ranks();
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

// Two ranks of each form.
class Pairs : public testing::TestWithParam<Form> {
 protected:
  void SetUp() override {
    if (GetParam().name.starts_with("Gloo") && !has_gloo())
      GTEST_SKIP() << "this build has no Gloo (libgloo-dev)";
  }
};
INSTANTIATE_TEST_SUITE_P(, Pairs, testing::Values(kLocal, kGloo),
                         [](const auto& info) { return info.param.name; });

TEST_P(Pairs, ShortMessagesNeedNoReceiver) {
  const auto errors = run(GetParam().make, 2, [](Communicator& c) {
    for (const size_t n : {size_t{100}, size_t{20000}, Communicator::kEagerBytes}) {
      const auto data = bytes_of(c.rank(), n, 1);
      std::vector<std::byte> got(n);
      for (int i = 0; i < 2; ++i) c.send(data, 1 - c.rank());
      for (int i = 0; i < 2; ++i) c.receive(got, 1 - c.rank());
      EXPECT_EQ(got, bytes_of(1 - c.rank(), n, 1));
    }
  });
  EXPECT_THAT(errors, testing::Each(""));
}

TEST_P(Pairs, CopiesOfLongMessagesNeedNoReceiver) {
  const auto errors = run(GetParam().make, 2, [](Communicator& c) {
    for (const size_t n : {size_t{100}, 3 * Communicator::kEagerBytes, size_t{20000}}) {
      auto data = bytes_of(c.rank(), n, 1);
      std::vector<std::byte> got(n);
      for (int i = 0; i < 2; ++i) c.send_copy(data, 1 - c.rank());
      std::fill(data.begin(), data.end(), std::byte{});  // it is the sender's again
      for (int i = 0; i < 2; ++i) c.receive(got, 1 - c.rank());
      EXPECT_EQ(got, bytes_of(1 - c.rank(), n, 1));
    }
  });
  EXPECT_THAT(errors, testing::Each(""));
}

// The memory of one call is written again at once by the next: what a slow rank still reads must not change.
TEST_P(Ranks, ManyCallsInARow) {
  std::atomic<int> wrong{0};
  const auto errors = run(form().make, ranks(), [&](Communicator& c) {
    std::vector<float> small(64), large(20000);
    std::vector<std::byte> id(8);
    for (int round = 0; round < 200; ++round) {
      std::fill(small.begin(), small.end(), static_cast<float>(round));
      c.all_reduce(small);
      for (const float v : small) wrong += v != static_cast<float>(round * ranks());
      if (round % 3 == 0) c.broadcast(id, round % ranks());
      if (round % 8 == 0) {
        std::fill(large.begin(), large.end(), static_cast<float>(round));
        c.all_reduce(large);
        for (const float v : large) wrong += v != static_cast<float>(round * ranks());
      }
    }
  });
  EXPECT_THAT(errors, testing::Each(""));
  EXPECT_EQ(wrong, 0);
}

TEST_P(Ranks, ARankMayLeaveAfterItsLastCall) {
  const int rounds = form().name == "Local" ? 100 : 5;
  for (int round = 0; round < rounds; ++round) {
    const auto errors = run(form().make, ranks(), [&](Communicator& c) {
      std::vector<float> values(round % 2 ? 10 : 5000, 1.0f);
      c.all_reduce(values);
      if (c.rank() + 1 < ranks()) c.send(std::as_bytes(std::span(values)), c.rank() + 1);
      if (c.rank() > 0) c.receive(std::as_writable_bytes(std::span(values)), c.rank() - 1);
      EXPECT_EQ(values[0], static_cast<float>(ranks()));
    });
    ASSERT_THAT(errors, testing::Each("")) << round;
  }
}

TEST_P(Pairs, CallsThatDisagreeEndTheGroup) {
  const auto both = [&](const std::function<void(Communicator&)>& work) {
    const auto errors = run(GetParam().make, 2, work);
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
                  c.receive(bytes.first(10), 1);  // an answer that does not come
                } else {
                  c.receive(bytes.first(11), 0);
                }
              }),
              HasSubstr("rank 0 sends 10 bytes, this one expects 11"));
}

}  // namespace
}  // namespace deepinfer
