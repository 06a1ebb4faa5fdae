#include "config/device_settings.h"

#include <gtest/gtest.h>

#include <map>

#include "config/config.h"

namespace deepinfer {
namespace {

constexpr uint64_t kMiB = 1 << 20;

std::map<std::string, std::string> settings(const std::string& name, uint64_t mib) {
  std::map<std::string, std::string> out;
  for (const DeviceSetting& s : device_settings({.gpu = true, .name = name, .memory_bytes = mib * kMiB}))
    out[s.key] = s.value;
  return out;
}

TEST(DeviceSettings, CardsOfTheGuide) {
  auto s = settings("NVIDIA GeForce RTX 5090", 32607);
  EXPECT_EQ(s["gpu.gpu_memory_utilization"], "0.95");
  EXPECT_EQ(s["gpu.max_num_seqs"], "512");
  EXPECT_EQ(s["gpu.nvidia_5090_optimizations"], "true");
  s = settings("NVIDIA GeForce RTX 4090", 24564);
  EXPECT_EQ(s["gpu.gpu_memory_utilization"], "0.92");
  EXPECT_EQ(s["gpu.max_num_seqs"], "384");
  EXPECT_EQ(s.count("gpu.nvidia_5090_optimizations"), 0u);
}

TEST(DeviceSettings, ALaptopPartIsNotTheCard) {
  auto s = settings("NVIDIA GeForce RTX 5090 Laptop GPU", 24463);
  EXPECT_EQ(s["gpu.gpu_memory_utilization"], "0.90");
  EXPECT_EQ(s["gpu.max_num_seqs"], "256");
}

TEST(DeviceSettings, ByMemory) {
  EXPECT_EQ(settings("NVIDIA GeForce RTX 3070", 8192)["gpu.gpu_memory_utilization"], "0.85");
  EXPECT_EQ(settings("NVIDIA GeForce RTX 3060", 12288)["gpu.gpu_memory_utilization"], "0.85");
  EXPECT_EQ(settings("NVIDIA GeForce RTX 4080", 16376)["gpu.gpu_memory_utilization"], "0.88");
  EXPECT_EQ(settings("NVIDIA GeForce RTX 3090", 24576)["gpu.gpu_memory_utilization"], "0.90");
  EXPECT_EQ(settings("NVIDIA A100-SXM4-40GB", 40536)["gpu.gpu_memory_utilization"], "0.92");
  EXPECT_EQ(settings("NVIDIA A100-SXM4-80GB", 81920)["gpu.max_num_seqs"], "256");
  auto h100 = settings("NVIDIA H100 80GB HBM3", 81559);
  EXPECT_EQ(h100["gpu.max_num_seqs"], "1024");
  EXPECT_EQ(h100["gpu.max_num_batched_tokens"], "8192");
  EXPECT_EQ(settings("NVIDIA B200", 183359)["gpu.max_num_batched_tokens"], "16384");
}

TEST(DeviceSettings, EveryOneIsAKeyAndInRange) {
  for (const auto& device :
       {DeviceDescription{}, DeviceDescription{true, "NVIDIA GeForce RTX 5090", 32607 * kMiB},
        DeviceDescription{true, "NVIDIA GeForce RTX 4090", 24564 * kMiB}, DeviceDescription{true, "", 0}}) {
    auto loaded = load_config({.device = device});
    ASSERT_TRUE(loaded.ok()) << loaded.error().message;
    for (const DeviceSetting& s : device_settings(device)) EXPECT_EQ(loaded->origin.at(s.key), s.origin);
  }
}

TEST(DeviceSettings, TheCpuHasItsOwn) {
  auto loaded = load_config({});
  ASSERT_TRUE(loaded.ok());
  EXPECT_EQ(loaded->config.gpu.max_num_seqs, 128);
  EXPECT_EQ(loaded->config.gpu.max_num_batched_tokens, 512);
  EXPECT_EQ(loaded->origin.at("gpu.max_num_seqs"), "this device (CPU)");
}

}  // namespace
}  // namespace deepinfer
