// The communicator of GPUs on emulated devices: every call, in streams and in graphs, in shuffled orders; and
// what becomes of the others when a rank fails.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <functional>
#include <thread>

#include "backend/cuda_gpu.h"
#include "base/check.h"
#include "comm/nccl_communicator.h"
#include "emulation/emulated_gpu.h"

namespace deepinfer {
namespace {

using emulation::NcclFault;
using testing::HasSubstr;

NcclApi api() {
  const auto found = load_nccl({{EMULATED_NCCL_DIR, "the test"}}, "libnccl.so.2");
  if (!found) throw std::runtime_error(found.error().message);
  return *found;
}

// A card with its rank, and floats in its memory.
struct Rank {
  std::unique_ptr<cuda::Gpu> gpu;
  std::unique_ptr<NcclCommunicator> comm;
  Buffer device, host;
  int rank = 0;

  float* values() const { return reinterpret_cast<float*>(device.data()); }
  std::span<float> floats(size_t first, size_t n) const { return {values() + first, n}; }
  std::span<std::byte> bytes(size_t first, size_t n) const {
    return std::as_writable_bytes(floats(first, n));
  }
  void put(const std::vector<float>& v) {
    std::copy(v.begin(), v.end(), reinterpret_cast<float*>(host.data()));
    gpu->copy_in(device.data(), host.data(), v.size() * sizeof(float));
  }
  std::vector<float> get(size_t n) {
    gpu->copy_out(host.data(), device.data(), n * sizeof(float));
    gpu->synchronize();
    const auto* p = reinterpret_cast<const float*>(host.data());
    return {p, p + n};
  }
};

constexpr size_t kFloats = 4096;

// work(rank) on a thread for each rank; what they throw, in their order.
std::vector<std::string> on_ranks(int ranks, const std::function<void(Rank&)>& work) {
  const auto group = make_nccl_group(api(), ranks);
  if (!group) return {group.error().message};
  std::vector<std::string> errors(static_cast<size_t>(ranks));
  std::vector<std::thread> threads;
  for (int r = 0; r < ranks; ++r)
    threads.emplace_back([&, r] {
      Rank rank{.rank = r};
      try {
        rank.gpu = std::move(cuda::Gpu::open({.index = r, .self_check = false})).value();
        rank.device = rank.gpu->allocate(kFloats * sizeof(float)).value();
        rank.host = rank.gpu->allocate_pinned(kFloats * sizeof(float)).value();
        auto comm = NcclCommunicator::join(*group, r, rank.gpu->stream());
        if (!comm) throw std::runtime_error(comm.error().message);
        rank.comm = std::move(*comm);
        work(rank);
        rank.gpu->synchronize();
      } catch (const std::exception& e) {
        errors[static_cast<size_t>(r)] = e.what();
        if (rank.comm != nullptr) rank.comm->abort(e.what());
        if (rank.comm != nullptr) rank.comm->leave();
        rank.gpu->synchronize();
      }
      rank.comm.reset();
    });
  for (std::thread& t : threads) t.join();
  return errors;
}

std::vector<float> ramp(size_t n, int rank) {
  std::vector<float> v(n);
  for (size_t i = 0; i < n; ++i) v[i] = static_cast<float>(i % 31 + 100 * static_cast<size_t>(rank));
  return v;
}

void every_call(Rank& r, int ranks) {
  const auto n = static_cast<size_t>(ranks);
  r.put(ramp(37, r.rank));
  r.comm->all_reduce(r.floats(0, 37));
  const std::vector<float> sums = r.get(37);
  for (size_t i = 0; i < sums.size(); ++i)
    EXPECT_EQ(sums[i], static_cast<float>(n * (i % 31) + 100 * (n * (n - 1) / 2))) << "rank " << r.rank;

  r.put(ramp(5, r.rank));
  r.comm->all_gather(r.bytes(0, 5), r.bytes(100, 5 * n));
  const std::vector<float> gathered = r.get(100 + 5 * n);
  for (size_t i = 0; i < 5 * n; ++i) EXPECT_EQ(gathered[100 + i], static_cast<float>(i % 5 + 100 * (i / 5)));

  for (int root = 0; root < ranks; ++root) {
    r.put(ramp(3, r.rank));
    r.comm->broadcast(r.bytes(0, 3), root);
    EXPECT_EQ(r.get(3), ramp(3, root));
  }

  // To rank 0, one after another.
  r.put(ramp(9, r.rank));
  if (r.rank != 0) r.comm->send(r.bytes(0, 9), 0);
  for (int from = 1; r.rank == 0 && from < ranks; ++from) {
    r.comm->receive(r.bytes(0, 9), from);
    EXPECT_EQ(r.get(9), ramp(9, from));
  }

  r.put(ramp(2 * n, r.rank));
  r.comm->all_to_all(r.bytes(0, 2 * n), r.bytes(64, 2 * n));
  const std::vector<float> all = r.get(64 + 2 * n);
  for (size_t i = 0; i < 2 * n; ++i)
    EXPECT_EQ(all[64 + i], static_cast<float>(2 * static_cast<size_t>(r.rank) + i % 2 + 100 * (i / 2)));
}

TEST(NcclEmulated, EveryCallInEveryOrder) {
  for (uint64_t seed = 1; seed <= 12; ++seed)
    for (const int ranks : {1, 2, 3, 5}) {
      SCOPED_TRACE(fmt::format("seed {}, {} ranks", seed, ranks));
      emulation::set_seed(seed);
      emulation::reset_machine({.device_count = ranks});
      for (const std::string& error : on_ranks(ranks, [&](Rank& r) { every_call(r, ranks); }))
        EXPECT_EQ(error, "");
      EXPECT_EQ(emulation::machine_counts().live_allocations, 0);
    }
}

// Recorded once, launched often; the ranks' launches drift apart as far as their streams let them.
TEST(NcclEmulated, CallsInGraphs) {
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    emulation::set_seed(seed);
    emulation::reset_machine({.device_count = 3});
    const auto errors = on_ranks(3, [&](Rank& r) {
      r.put({1.0f + static_cast<float>(r.rank), 2});
      r.gpu->begin_capture();
      r.comm->all_reduce(r.floats(0, 1));
      r.comm->broadcast(r.bytes(1, 1), 2);
      const cuda::Graph graph = r.gpu->end_capture();
      for (int i = 0; i < 5; ++i) r.gpu->launch(graph);
      EXPECT_EQ(r.get(2), (std::vector<float>{6 * 81, 2}));  // 6, then three times as much with each launch
    });
    for (const std::string& error : errors) EXPECT_EQ(error, "");
    EXPECT_EQ(emulation::machine_counts().graph_launches, 15);
    EXPECT_EQ(emulation::machine_counts().exchanges, 10);
  }
}

TEST(NcclEmulated, AFailedCallEndsTheGroup) {
  emulation::reset_machine({.device_count = 2});
  emulation::fail_nccl({.kind = NcclFault::Kind::kCall, .rank = 1, .n = 2});
  const auto errors = on_ranks(2, [](Rank& r) {
    for (int i = 0; i < 5; ++i) {
      r.put({1});
      r.comm->all_reduce(r.floats(0, 1));
      const cuda::Event end = r.gpu->record();
      while (!r.gpu->done(end)) r.comm->check();
    }
  });
  EXPECT_THAT(errors[0], HasSubstr("rank 0 of 2"));
  EXPECT_THAT(errors[0], HasSubstr("rank 1: all_reduce: NCCL reports: unhandled cuda error"));
  EXPECT_THAT(errors[1], HasSubstr("rank 1 of 2: all_reduce: NCCL reports: unhandled cuda error"));
}

TEST(NcclEmulated, WhatNcclNoticesLaterEndsTheGroupToo) {
  emulation::reset_machine({.device_count = 2});
  emulation::fail_nccl({.kind = NcclFault::Kind::kLate, .rank = 0, .n = 1});
  const auto errors = on_ranks(2, [](Rank& r) {
    for (int i = 0; i < 3; ++i) {
      r.put({1});
      r.comm->all_reduce(r.floats(0, 1));
      const cuda::Event end = r.gpu->record();
      while (!r.gpu->done(end)) r.comm->check();
    }
  });
  EXPECT_THAT(errors[0], HasSubstr("remote process exited"));
  EXPECT_THAT(errors[1], HasSubstr("rank 0: NCCL reports: remote process exited"));
}

TEST(NcclEmulated, ARankThatCannotJoin) {
  emulation::reset_machine({.device_count = 3});
  emulation::fail_nccl_init(2);
  for (const std::string& error : on_ranks(3, [](Rank&) {}))
    EXPECT_THAT(error, HasSubstr("cannot join the others: NCCL reports: "));
  EXPECT_EQ(emulation::machine_counts().live_allocations, 0);
}

TEST(NcclEmulated, AfterTheEndEveryCallThrows) {
  emulation::reset_machine({.device_count = 2});
  const auto errors = on_ranks(2, [](Rank& r) {
    if (r.rank == 0) r.comm->abort("enough");
    for (;;) {
      r.comm->check();
      std::this_thread::yield();
    }
  });
  for (const std::string& error : errors) EXPECT_THAT(error, HasSubstr("enough"));
}

// The stand-in tells calls that do not belong together.
TEST(NcclEmulated, RanksThatDisagreeAreAFailure) {
  emulation::reset_machine({.device_count = 2});
  const auto errors = on_ranks(2, [](Rank& r) {
    r.put(ramp(8, 0));
    r.comm->all_reduce(r.floats(0, r.rank == 0 ? 8 : 7));
    r.gpu->synchronize();
  });
  EXPECT_THAT(errors[0] + errors[1], HasSubstr("bytes, rank 0 ncclAllReduce"));
  EXPECT_GT(emulation::take_failures(), 0);
}

}  // namespace
}  // namespace deepinfer
