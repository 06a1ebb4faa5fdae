// In a program of its own: once a library is loaded, the loader finds it again by its name.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "device/gpu_detector.h"

namespace deepinfer {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class NoLibrary : public testing::Test {
 protected:
  void SetUp() override {
    if (!GpuDetector({.folders = {}}).detect().driver_version) return;
    GTEST_SKIP() << "this machine has an NVIDIA driver, whose library cannot be hidden";
  }
  void TearDown() override { fs::remove_all(folder_); }

  const fs::path folder_ = fs::path(testing::TempDir()) / "no_library_test";
};

TEST_F(NoLibrary, NoDriver) {
  const GpuReport report = GpuDetector({.folders = {{"/nowhere", "the test"}}, .proc = folder_}).detect();
  EXPECT_TRUE(report.gpus.empty());
  EXPECT_THAT(report.message, HasSubstr("no NVIDIA driver"));
  EXPECT_THAT(report.message, HasSubstr("580"));
  EXPECT_FALSE(report.nvml);
}

TEST_F(NoLibrary, AContainerWithoutTheLibrary) {
  fs::create_directories(folder_ / "driver/nvidia");
  std::ofstream(folder_ / "driver/nvidia/version") << "NVRM version: 580\n";
  const GpuReport report = GpuDetector({.folders = {}, .proc = folder_}).detect();
  EXPECT_THAT(report.message, HasSubstr("NVIDIA_DRIVER_CAPABILITIES"));
}

TEST_F(NoLibrary, AFileThatIsNoLibrary) {
  fs::create_directories(folder_ / "lib");
  std::ofstream(folder_ / "lib/libnvidia-ml.so.1") << "not a library";
  const GpuReport report =
      GpuDetector({.folders = {{folder_ / "lib", "the test"}}, .proc = folder_}).detect();
  EXPECT_THAT(report.message, HasSubstr("no NVIDIA driver"));
}

}  // namespace
}  // namespace deepinfer
