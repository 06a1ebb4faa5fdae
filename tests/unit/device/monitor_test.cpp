#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "device/gpu_monitor.h"

namespace deepinfer {
namespace {

using namespace std::chrono_literals;

TEST(GpuMonitor, AsksAtMostOnceInItsLifetime) {
  int calls = 0;
  GpuMonitor monitor([&] { return GpuReport{.message = std::to_string(++calls)}; }, 1h);
  EXPECT_EQ(monitor.fresh(), nullptr);
  EXPECT_EQ(monitor.refresh()->message, "1");
  EXPECT_EQ(monitor.refresh()->message, "1");
  ASSERT_NE(monitor.fresh(), nullptr);
  EXPECT_EQ(monitor.fresh(std::chrono::steady_clock::now() + 2h), nullptr);
  EXPECT_EQ(calls, 1);
}

TEST(GpuMonitor, AsksAgainWhenItIsOld) {
  int calls = 0;
  GpuMonitor monitor([&] { return GpuReport{.message = std::to_string(++calls)}; }, 0ms);
  EXPECT_EQ(monitor.refresh()->message, "1");
  EXPECT_EQ(monitor.refresh()->message, "2");
}

TEST(GpuMonitor, ManyThreadsShareOneAnswer) {
  std::atomic<int> calls = 0, inside = 0;
  GpuMonitor monitor(
      [&] {
        EXPECT_EQ(++inside, 1);
        ++calls;
        std::this_thread::sleep_for(20ms);
        --inside;
        return GpuReport{};
      },
      1h);
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) threads.emplace_back([&] { EXPECT_NE(monitor.refresh(), nullptr); });
  for (auto& t : threads) t.join();
  EXPECT_EQ(calls, 1);
}

}  // namespace
}  // namespace deepinfer
