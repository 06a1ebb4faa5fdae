#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "device/gpu_detector.h"

namespace deepinfer {
namespace {

using testing::HasSubstr;

constexpr uint64_t kMiB = 1 << 20;
constexpr const char* k5090 =
    "gpu=NVIDIA GeForce RTX 5090|GPU-aaaa-1111|32607|30000|12.0|37|55|120500|575000|4242:1500,77:-";
constexpr const char* k4090 = "gpu=NVIDIA GeForce RTX 4090|GPU-aabb-2222|24564|24000|8.9|0|40|20000|450000|";
constexpr const char* kDriver = "driver=580.82.07;cuda=13000;";

class Detector : public testing::Test {
 protected:
  void SetUp() override {
    proc_ = std::filesystem::path(testing::TempDir()) /
            ("proc_" + std::string(testing::UnitTest::GetInstance()->current_test_info()->name()));
    std::filesystem::create_directories(proc_ / "4242");
    std::ofstream(proc_ / "4242/comm") << "python3\n";
  }
  void TearDown() override {
    std::filesystem::remove_all(proc_);
    unsetenv("FAKE_NVML");
  }

  GpuReport detect(const std::string& machine, std::optional<std::string> visible = std::nullopt) {
    setenv("FAKE_NVML", machine.c_str(), 1);
    return GpuDetector(
               {.folders = {{FAKE_NVML_DIR, "the test"}}, .visible = std::move(visible), .proc = proc_})
        .detect();
  }

  std::filesystem::path proc_;
};

TEST_F(Detector, TwoCards) {
  const GpuReport report = detect(std::string(kDriver) + k5090 + ";" + k4090);
  ASSERT_EQ(report.gpus.size(), 2u);
  EXPECT_EQ(report.message, "");
  EXPECT_EQ(report.driver_version, "580.82.07");
  EXPECT_EQ(report.cuda_version, 13000);
  const GpuInfo& a = report.gpus[0];
  EXPECT_EQ(a.id, 0);
  EXPECT_EQ(a.name, "NVIDIA GeForce RTX 5090");
  EXPECT_EQ(a.uuid, "GPU-aaaa-1111");
  EXPECT_EQ(a.total_bytes, 32607 * kMiB);
  EXPECT_EQ(a.free_bytes, 30000 * kMiB);
  EXPECT_EQ(a.capability, (ComputeCapability{12, 0}));
  EXPECT_EQ(a.utilization, 37);
  EXPECT_EQ(a.temperature, 55);
  EXPECT_EQ(a.power, 120.5);
  EXPECT_EQ(a.power_limit, 575);
  EXPECT_EQ(a.problem, "");
  ASSERT_EQ(a.processes.size(), 2u);
  EXPECT_EQ(a.processes[0].pid, 4242u);
  EXPECT_EQ(a.processes[0].bytes, 1500 * kMiB);
  EXPECT_EQ(a.processes[0].name, "python3");
  EXPECT_EQ(a.processes[1].pid, 77u);
  EXPECT_EQ(a.processes[1].bytes, std::nullopt);
  EXPECT_EQ(a.processes[1].name, "");
  EXPECT_EQ(report.gpus[1].id, 1);
  EXPECT_EQ(report.gpus[1].capability, (ComputeCapability{8, 9}));
  EXPECT_TRUE(report.gpus[1].processes.empty());
}

TEST_F(Detector, WhatTheDriverDoesNotTellStaysUnknown) {
  const GpuReport report = detect("gpu=-|-|-|-|-|-|-|-|-|-");
  ASSERT_EQ(report.gpus.size(), 1u);
  const GpuInfo& gpu = report.gpus[0];
  EXPECT_EQ(report.driver_version, std::nullopt);
  EXPECT_EQ(report.cuda_version, std::nullopt);
  EXPECT_EQ(gpu.name, "");
  EXPECT_EQ(gpu.pci_bus_id, "");  // the fake lacks the function
  EXPECT_FALSE(gpu.total_bytes || gpu.free_bytes || gpu.capability || gpu.utilization || gpu.temperature ||
               gpu.power || gpu.power_limit);
  EXPECT_EQ(gpu.problem, "");  // nothing speaks against it
}

TEST_F(Detector, ALongListOfProcesses) {
  std::string pids;
  for (int i = 1; i <= 200; ++i) pids += (i > 1 ? "," : "") + std::to_string(i) + ":" + std::to_string(i);
  const GpuReport report = detect(std::string(kDriver) + "gpu=A|B|1000|1|9.0|0|0|0|0|" + pids);
  ASSERT_EQ(report.gpus.size(), 1u);
  ASSERT_EQ(report.gpus[0].processes.size(), 200u);
  EXPECT_EQ(report.gpus[0].processes[0].pid, 200u);  // the largest first
}

TEST_F(Detector, DriverNotLoadedThenLoaded) {
  setenv("FAKE_NVML", "init=9", 1);
  GpuDetector detector({.folders = {{FAKE_NVML_DIR, "the test"}}, .proc = proc_});
  EXPECT_THAT(detector.detect().message, HasSubstr("driver is not loaded"));
  setenv("FAKE_NVML", (std::string(kDriver) + k5090).c_str(), 1);
  EXPECT_EQ(detector.detect().gpus.size(), 1u);
}

TEST_F(Detector, OtherFailuresOfInitialization) {
  EXPECT_THAT(detect("init=18").message, HasSubstr("restart the machine"));
  EXPECT_TRUE(detect("init=18").nvml);
  EXPECT_THAT(detect("init=4").message, HasSubstr("/dev/nvidia"));
  EXPECT_THAT(detect("init=999").message, HasSubstr("Unknown Error"));
}

TEST_F(Detector, DriverTooOld) {
  GpuReport report = detect(std::string("driver=535.104.05;cuda=12020;") + k4090);
  ASSERT_EQ(report.gpus.size(), 1u);
  for (const char* part : {"535.104.05", "12.2", "580", "13.0"}) EXPECT_THAT(report.message, HasSubstr(part));
  EXPECT_EQ(report.gpus[0].problem, report.message);
  report = detect(std::string("driver=470.1;") + k4090);  // too old even to know CUDA's version
  EXPECT_THAT(report.message, HasSubstr("470.1"));
  // A compatibility package: an old branch that runs CUDA 13.
  EXPECT_EQ(detect(std::string("driver=535.104.05;cuda=13000;") + k4090).message, "");
}

TEST_F(Detector, CardTooOld) {
  const std::string old = "gpu=Tesla V100-SXM2-16GB|GPU-v|16384|16000|7.0|0|30|40000|300000|";
  GpuReport report = detect(kDriver + old);
  EXPECT_THAT(report.message, HasSubstr("Tesla V100"));
  EXPECT_THAT(report.message, HasSubstr("7.0"));
  EXPECT_THAT(report.message, HasSubstr("8.0"));
  report = detect(kDriver + old + ";" + k5090);  // the other one can be used
  EXPECT_EQ(report.message, "");
  EXPECT_NE(report.gpus[0].problem, "");
  EXPECT_EQ(report.gpus[1].problem, "");
}

TEST_F(Detector, ALostCardIsListedWithItsFault) {
  const GpuReport report = detect(std::string(kDriver) + "gpu=lost;" + k5090);
  ASSERT_EQ(report.gpus.size(), 2u);
  EXPECT_THAT(report.gpus[0].problem, HasSubstr("GPU is lost"));
  EXPECT_EQ(report.gpus[1].id, 1);
  EXPECT_EQ(report.gpus[1].problem, "");
}

TEST_F(Detector, NoCards) {
  EXPECT_THAT(detect(kDriver).message, HasSubstr("sees no GPU"));
  EXPECT_THAT(detect(kDriver, "0").message, HasSubstr("sees no GPU"));
}

TEST_F(Detector, VisibleDevices) {
  const std::string both = std::string(kDriver) + k5090 + ";" + k4090;
  GpuReport report = detect(both, "1,0");
  ASSERT_EQ(report.gpus.size(), 2u);
  EXPECT_EQ(report.gpus[0].name, "NVIDIA GeForce RTX 4090");  // ids count the visible ones
  EXPECT_EQ(report.gpus[0].id, 0);
  report = detect(both, "GPU-aabb");
  ASSERT_EQ(report.gpus.size(), 1u);
  EXPECT_EQ(report.gpus[0].uuid, "GPU-aabb-2222");
  report = detect(both, "");
  EXPECT_TRUE(report.gpus.empty());
  EXPECT_THAT(report.message, HasSubstr("CUDA_VISIBLE_DEVICES is set and empty"));
  report = detect(both, "7");
  EXPECT_TRUE(report.gpus.empty());
  EXPECT_THAT(report.message, HasSubstr("\"7\" names none"));
}

TEST_F(Detector, AMigDevice) {
  const std::string mig = std::string(kDriver) + k5090 + ";gpu=NVIDIA H100 MIG 1g.10gb|MIG-5|9856|9000|9.0";
  GpuReport report = detect(mig, "MIG-5");
  ASSERT_EQ(report.gpus.size(), 1u);
  EXPECT_EQ(report.gpus[0].total_bytes, 9856 * kMiB);
  EXPECT_EQ(report.gpus[0].temperature, std::nullopt);
  report = detect(mig, "MIG-6");
  ASSERT_EQ(report.gpus.size(), 1u);
  EXPECT_THAT(report.message, HasSubstr("Not Found"));
}

}  // namespace
}  // namespace deepinfer
