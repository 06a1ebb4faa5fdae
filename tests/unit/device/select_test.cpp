#include "device/select.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace deepinfer {
namespace {

using testing::HasSubstr;

GpuReport two_cards() {
  GpuReport report;
  report.gpus.push_back({.id = 0, .name = "Old", .problem = "Old has compute capability 7.0"});
  report.gpus.push_back({.id = 1, .name = "New"});
  return report;
}

std::string error_of(std::string_view setting, const GpuReport& report, bool built = true) {
  const Result<DeviceChoice> choice = choose_device(setting, report, built);
  EXPECT_FALSE(choice.ok()) << setting;
  if (choice) return "";
  EXPECT_EQ(choice.error().code, ErrorCode::kMemory);
  return choice.error().message;
}

TEST(SelectDevice, AutoTakesTheFirstUsableGpu) {
  const auto choice = choose_device("auto", two_cards(), true);
  ASSERT_TRUE(choice.ok() && choice->gpu);
  EXPECT_EQ(choice->gpu->id, 1);
  EXPECT_EQ(choice->reason, "");
  EXPECT_EQ(choice->others, 0);
  GpuReport three = two_cards();
  three.gpus.push_back({.id = 2, .name = "New"});
  EXPECT_EQ(choose_device("auto", three, true)->others, 1);
}

TEST(SelectDevice, AutoFallsBackToTheCpuAndSaysWhy) {
  auto choice = choose_device("auto", {.message = "no NVIDIA driver was found"}, true);
  ASSERT_TRUE(choice.ok());
  EXPECT_FALSE(choice->gpu);
  EXPECT_EQ(choice->reason, "no NVIDIA driver was found");
  choice = choose_device("auto", two_cards(), false);
  ASSERT_TRUE(choice.ok());
  EXPECT_FALSE(choice->gpu);
  EXPECT_THAT(choice->reason, HasSubstr("no CUDA backend"));
}

TEST(SelectDevice, CpuIsTheCpu) {
  const auto choice = choose_device("cpu", two_cards(), true);
  ASSERT_TRUE(choice.ok());
  EXPECT_FALSE(choice->gpu);
  EXPECT_EQ(choice->reason, "");
}

TEST(SelectDevice, NamedGpus) {
  auto choice = choose_device("cuda", two_cards(), true);
  ASSERT_TRUE(choice.ok() && choice->gpu);
  EXPECT_EQ(choice->gpu->id, 1);
  choice = choose_device("cuda:1", two_cards(), true);
  ASSERT_TRUE(choice.ok() && choice->gpu);
  EXPECT_EQ(choice->gpu->id, 1);
}

TEST(SelectDevice, AnIndexThatDoesNotExist) {
  const std::string text = error_of("cuda:2", two_cards());
  for (const char* part :
       {"gpu.device: got cuda:2", "2 GPUs", "cuda:0 (Old), cuda:1 (New)", "CUDA_VISIBLE_DEVICES"})
    EXPECT_THAT(text, HasSubstr(part));
}

TEST(SelectDevice, AGpuThatCannotBeUsed) {
  EXPECT_THAT(error_of("cuda:0", two_cards()), HasSubstr("7.0"));
  GpuReport old = two_cards();
  old.gpus.pop_back();
  EXPECT_THAT(error_of("cuda", old), HasSubstr("7.0"));
}

TEST(SelectDevice, NoGpu) {
  const std::string text = error_of("cuda", {.message = "CUDA_VISIBLE_DEVICES is set and empty"});
  EXPECT_THAT(text, HasSubstr("got cuda, but CUDA_VISIBLE_DEVICES is set and empty"));
  EXPECT_THAT(text, HasSubstr("gpu.device: cpu"));
}

TEST(SelectDevice, ABuildWithoutCuda) {
  EXPECT_THAT(error_of("cuda:0", two_cards(), false), HasSubstr("no CUDA backend"));
}

TEST(SelectDevice, WhatOtherGpusAreGoodFor) {
  EXPECT_EQ(other_gpus_text(0, false), "");
  const std::string none = other_gpus_text(3, false), some = other_gpus_text(1, true),
                    unknown = other_gpus_text(1, std::nullopt);
  for (const std::string& text : {none, some, unknown})
    for (const char* part : {"could be used", "data parallel", "a server on each card", "gpu.device: cuda:N"})
      EXPECT_THAT(text, HasSubstr(part));
  EXPECT_THAT(none, testing::StartsWith("3 more GPUs"));
  EXPECT_THAT(some, testing::StartsWith("1 more GPU could"));
  EXPECT_THAT(none, HasSubstr("no card reads another one's memory directly"));
  EXPECT_THAT(none, HasSubstr("not tensor parallel"));
  EXPECT_THAT(some, testing::Not(HasSubstr("memory directly")));
  EXPECT_EQ(some, unknown);
}

TEST(SelectDevice, DetectionIsOnlyForThoseWhoNeedIt) {
  EXPECT_TRUE(wants_detection("auto", true));
  EXPECT_TRUE(wants_detection("cuda:1", true));
  EXPECT_FALSE(wants_detection("cpu", true));
  EXPECT_FALSE(wants_detection("auto", false));
}

}  // namespace
}  // namespace deepinfer
