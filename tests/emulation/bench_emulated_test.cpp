// deepinfer bench on an emulated GPU: weights made on the device, and the device's rates measured when the
// tests are done.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cstdlib>
#include <string_view>

#include "cli/bench_command.h"
#include "emulation/emulated_gpu.h"

namespace deepinfer {
namespace {

namespace json = boost::json;

class BenchOnGpu : public testing::Test {
 protected:
  void SetUp() override {
    setenv("DEEPINFER_CUDA_LIB_DIR", FAKE_NVML_DIR, 1);
    setenv("FAKE_NVML", "driver=580.1;cuda=13000;gpu=Emulated GPU|GPU-1", 1);
    emulation::reset_machine();
    config_.gpu.device = "cuda";
    config_.gpu.max_num_seqs = 1;
    config_.gpu.max_num_batched_tokens = 16;
    config_.gpu.kv_cache_memory_bytes = 4 << 20;
    config_.model.max_model_len = 32;
    config_.cpu.threads = 1;
  }

  json::value bench() {
    testing::internal::CaptureStdout();
    const int code = bench_command(config_, options_);
    const std::string out = testing::internal::GetCapturedStdout();
    EXPECT_EQ(code, 0) << out;
    // The log may stand before it.
    return json::parse(std::string_view(out).substr(std::min(out.rfind("\n{") + 1, out.size())));
  }

  Config config_;
  BenchOptions options_{
      .prefill = {4},
      .decode = 2,
      .batch = {},
      .repeat = 1,
      .random_weights = "tiny",
      .rate_sizes = {.copy_bytes = 1 << 20, .matrix = 32, .copies = 1, .products = 1, .runs = 2}};
};

TEST_F(BenchOnGpu, MeasuresTheDevice) {
  const json::value out = bench();
  const json::value& floor = out.at("floor");
  EXPECT_GT(floor.at("copy_gb_per_second").as_double(), 0);
  EXPECT_GT(floor.at("matmul_tflop_per_second").as_double(), 0);
  ASSERT_EQ(out.at("results").as_array().size(), 2u);
  for (const json::value& test : out.at("results").as_array()) {
    EXPECT_GT(test.at("fraction_of_floor").as_double(), 0) << test;
    EXPECT_GT(test.at("floor_milliseconds").as_double(), 0) << test;
  }
  EXPECT_EQ(emulation::machine_counts().device_bytes, 0u);
}

TEST_F(BenchOnGpu, WhatIsGivenIsNotMeasured) {
  options_.prefill = {};
  options_.copy_rate = 123;
  const json::value measured = bench();
  EXPECT_EQ(measured.at("floor").at("copy_gb_per_second").as_double(), 123);
  EXPECT_NE(measured.at("floor").at("matmul_tflop_per_second").as_double(), 4.5);
  options_.matmul_rate = 4.5;
  options_.rate_sizes.runs = -1;
  const json::value given = bench();
  EXPECT_EQ(given.at("floor").at("matmul_tflop_per_second").as_double(), 4.5);
}

TEST_F(BenchOnGpu, WithoutARateThereAreResultsWithoutFloors) {
  emulation::reset_machine({.cublaslt = false});
  options_.prefill = {};
  testing::internal::CaptureStderr();
  const json::value out = bench();
  EXPECT_THAT(testing::internal::GetCapturedStderr(), testing::HasSubstr("no floors: cuBLASLt is not there"));
  EXPECT_FALSE(out.as_object().contains("floor"));
  EXPECT_EQ(out.at("results").as_array().size(), 1u);
}

}  // namespace
}  // namespace deepinfer
