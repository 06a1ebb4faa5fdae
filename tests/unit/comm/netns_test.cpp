// Ranks in two network namespaces, with a wire between them that is late, loses packets, or is cut.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "wire.h"

namespace deepinfer {
namespace {

using namespace std::chrono_literals;
using test::bytes_of;
using test::kAddresses;
using test::kLong;
using test::kSeed;
using test::Wire;
using testing::HasSubstr;

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
