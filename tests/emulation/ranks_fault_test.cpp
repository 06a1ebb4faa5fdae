// What becomes of several devices when one fails: an error that says which and why, soon, on all of them.
#include <gmock/gmock.h>

#include <chrono>
#include <condition_variable>
#include <mutex>

#include "emulation/ranks_fixture.h"
#include "support/cpu_engine.h"

namespace deepinfer::test {
namespace {

using emulation::NcclFault;
using testing::AllOf;
using testing::HasSubstr;

constexpr std::chrono::seconds kSoon{20};

EngineRequest request(int tokens) {
  EngineRequest r{.prompt = {5, 17, 200, 31, 8}};
  r.sampling.temperature = 0;
  r.sampling.max_tokens = tokens;
  r.sampling.ignore_eos = true;
  return r;
}

// A group that serves, then meets a fault: all requests end with an error, and who owns the engine hears
// `what`.
void expect_end(const RanksScene& r, const std::function<void()>& plant, const std::string& what) {
  auto runner = make_ranks(r);
  ASSERT_TRUE(runner);
  std::mutex mutex;
  std::condition_variable heard;
  std::string reason;
  Engine engine(std::move(runner), {.max_num_batched_tokens = r.scene.tokens});
  engine.on_device_lost([&](const std::string& why) {
    const std::lock_guard lock(mutex);
    reason = why;
    heard.notify_all();
  });
  ASSERT_EQ(run_all(engine, {request(4)})[0].tokens.size(), 4u);
  plant();
  const auto start = std::chrono::steady_clock::now();
  for (const Answer& a : run_all(engine, {request(30), request(30)})) EXPECT_NE(a.error, "");
  EXPECT_NE(run_all(engine, {request(3)})[0].error, "");
  EXPECT_LT(std::chrono::steady_clock::now() - start, kSoon);
  std::unique_lock lock(mutex);
  heard.wait_for(lock, kSoon, [&] { return !reason.empty(); });
  EXPECT_THAT(reason, AllOf(HasSubstr("a rank of 2 GPUs failed"), HasSubstr(what)));
}

class NcclFaults : public testing::TestWithParam<std::tuple<NcclFault::Kind, int>> {};

TEST_P(NcclFaults, EndAllRequestsWithTheReason) {
  const auto [kind, rank] = GetParam();
  RanksScene r;
  r.scene.eager = true;  // a graph's calls are made once
  if (kind == NcclFault::Kind::kSilent) r.timeout = std::chrono::seconds(2);
  const std::string what = kind == NcclFault::Kind::kCall   ? "NCCL reports: unhandled cuda error"
                           : kind == NcclFault::Kind::kLate ? "NCCL reports: remote process exited"
                                                            : "takes longer than 2 s";
  for (const int n : {0, 5, 33}) {
    expect_end(r, [&] { emulation::fail_nccl({.kind = kind, .rank = rank, .n = n}); }, what);
    EXPECT_EQ(emulation::machine_counts().live_allocations, 0) << n;
  }
}

INSTANTIATE_TEST_SUITE_P(All, NcclFaults,
                         testing::Combine(testing::Values(NcclFault::Kind::kCall, NcclFault::Kind::kLate,
                                                          NcclFault::Kind::kSilent),
                                          testing::Values(0, 1)));

// A kernel of either card breaks its context: the other one waits for its sums.
TEST(RanksFault, ABrokenCardEndsAll) {
  for (const bool eager : {false, true})
    for (const int n : {0, 1, 7, 25, 60}) {
      SCOPED_TRACE(fmt::format("eager {}, kernel {}", eager, n));
      RanksScene r;
      r.scene.eager = eager;
      expect_end(r, [&] { emulation::fail_kernel(n); }, "(Emulated GPU): CUDA: ");
    }
}

// Whichever allocation of whichever rank fails while they load.
TEST(RanksFault, EachAllocationMayFail) {
  RanksScene r;
  r.scene.eager = true;
  r.scene.tokens = 8;
  int failed = 0;
  for (int n = 0; n < 400; n += 1 + n / 60) {
    fresh_cards(1, 2);
    emulation::fail_allocation(n);
    const auto start = std::chrono::steady_clock::now();
    const auto made = try_ranks(r);
    EXPECT_LT(std::chrono::steady_clock::now() - start, kSoon);
    if (made && emulation::machine_counts().allocations <= n) break;  // that many there are not
    ASSERT_FALSE(made.ok()) << n;
    EXPECT_EQ(made.error().code, ErrorCode::kMemory) << made.error().message;
    EXPECT_THAT(made.error().message,
                testing::AnyOf(HasSubstr("(Emulated GPU)"), HasSubstr("pinned memory")));
    EXPECT_EQ(emulation::machine_counts().live_allocations, 0) << n;
    ++failed;
  }
  EXPECT_GT(failed, 30);
}

TEST(RanksFault, NcclFailsWhileTheRanksMeet) {
  const RanksScene r{.timeout = std::chrono::seconds(1)};
  for (const int rank : {0, 1}) {
    fresh_cards(1, 2);
    emulation::fail_nccl_init(rank);
    const auto none = try_ranks(r);
    ASSERT_FALSE(none);
    EXPECT_THAT(none.error().message, HasSubstr("cannot join the others: NCCL reports: "));
    for (const auto kind : {NcclFault::Kind::kCall, NcclFault::Kind::kLate, NcclFault::Kind::kSilent})
      for (const int n : {0, 2, 3, 9}) {
        SCOPED_TRACE(fmt::format("kind {}, rank {}, call {}", static_cast<int>(kind), rank, n));
        fresh_cards(1, 2);
        emulation::fail_nccl({.kind = kind, .rank = rank, .n = n});
        std::string error;
        try {
          const auto made = try_ranks(r);
          error = made ? "" : made.error().message;
        } catch (const CommError& e) {
          error = e.what();
        }
        EXPECT_THAT(error, testing::AnyOf(HasSubstr("NCCL reports"), HasSubstr("do not reach each other")));
        EXPECT_EQ(emulation::machine_counts().live_allocations, 0);
      }
  }
}

TEST(RanksFault, ARankThatCannotLoad) {
  for (const int rank : {0, 1}) {
    fresh_cards(1, 2);
    RanksScene r;
    r.at_load = [rank](int own) {
      if (own == rank) throw std::runtime_error("the disk is gone");
    };
    const auto start = std::chrono::steady_clock::now();
    EXPECT_THROW((void)try_ranks(r), std::runtime_error);
    EXPECT_LT(std::chrono::steady_clock::now() - start, kSoon);
    EXPECT_EQ(emulation::machine_counts().live_allocations, 0);
  }
}

// A list that needs a larger block than there is memory for fails its own request.
TEST(RanksFault, WhatOnlySamplingLacksFailsOneRequest) {
  auto runner = make_ranks({});
  ASSERT_TRUE(runner);
  Engine engine(std::move(runner), {.max_num_batched_tokens = 40});
  EngineRequest large = request(4);
  for (int32_t t = 0; t < 320; ++t) large.sampling.logit_bias.emplace_back(t, 0.5f);
  emulation::fail_allocation(0);
  const Answer refused = run_all(engine, {large})[0];
  EXPECT_NE(refused.error, "");
  EXPECT_EQ(run_all(engine, {request(4)})[0].tokens.size(), 4u);
  EXPECT_EQ(run_all(engine, {large})[0].tokens.size(), 4u);
}

}  // namespace
}  // namespace deepinfer::test
