// `deepinfer estimate` and `deepinfer tune` on an emulated card: the estimate beside what loading measures,
// and a search that loads anew for each point.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "emulation/emulated_gpu.h"
#include "engine/estimate.h"
#include "engine/llm.h"
#include "tune/tuner.h"

namespace deepinfer {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMiB = 1 << 20;

class TuneOnACard : public testing::Test {
 protected:
  void SetUp() override {
    setenv("DEEPINFER_CUDA_LIB_DIR", FAKE_NVML_DIR, 1);
    setenv("FAKE_NVML", "driver=580.1;cuda=13000;gpu=Emulated GPU|GPU-1", 1);
    emulation::reset_machine();
    config_.model.name = (fs::path(DI_SOURCE_DIR) / "tests/golden/tiny_llama/base").string();
    config_.gpu.device = "cuda";
    config_.gpu.max_num_seqs = 2;
    config_.gpu.max_num_batched_tokens = 32;
    config_.cpu.threads = 1;
  }
  void TearDown() override {
    unsetenv("DEEPINFER_CUDA_LIB_DIR");
    unsetenv("FAKE_NVML");
  }
  Config config_;
};

TEST_F(TuneOnACard, TheEstimateBesideWhatLoadingMeasures) {
  const auto checkpoint = open_weights(config_.model.name);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message;
  constexpr size_t kMemory = 1536 * kMiB;
  for (const char* kv : {"auto", "fp8"}) {
    SCOPED_TRACE(kv);
    emulation::reset_machine({.total_memory = kMemory});
    config_.gpu.kv_cache_dtype = kv;
    const EstimateTarget card{
        .gpu = GpuInfo{
            .id = -1, .name = "Emulated GPU", .total_bytes = kMemory, .capability = ComputeCapability{9, 0}}};
    const Result<Estimate> e = estimate(config_, *checkpoint, card);
    ASSERT_TRUE(e.ok()) << e.error().message;
    ASSERT_TRUE(e->fits()) << e->problem;
    const auto llm = Llm::load(config_);
    ASSERT_TRUE(llm.ok()) << llm.error().message;
    const LoadSummary& s = (*llm)->summary;
    EXPECT_EQ(e->kv_dtype, s.kv_dtype);
    EXPECT_EQ(e->block_size, s.block_size);
    EXPECT_EQ(e->max_model_len, (*llm)->max_model_len);
    EXPECT_EQ(e->kv_bytes / e->kv_blocks, s.kv_bytes / s.kv_blocks) << "bytes of a block";
    // What loading measures is more than the matrices (packed in tiles); the rest was predicted, with room
    // for a driver and code that an emulated card has not: never less than what was taken.
    EXPECT_LE(e->kv_bytes, s.kv_bytes);
    EXPECT_GE(e->kv_bytes + static_cast<int64_t>(800 * kMiB), s.kv_bytes);
    // Libraries' workspaces come with the first weights.
    EXPECT_LE(e->weight_bytes, s.weight_bytes);
    EXPECT_GE(e->weight_bytes + static_cast<int64_t>(64 * kMiB), s.weight_bytes);
  }
}

TEST_F(TuneOnACard, EachPointIsLoadedAndMeasured) {
  const fs::path file = fs::path(testing::TempDir()) / "tune_emulated.jsonl";
  std::ofstream(file)
      << "{\"prompt_tokens\": 5, \"max_tokens\": 2}\n{\"prompt_tokens\": 9, \"max_tokens\": 3}\n";
  config_.gpu.kv_cache_memory_bytes = 4 * kMiB;
  config_.gpu.enable_chunked_prefill = false;  // large steps take long in the emulation
  config_.model.max_model_len = 32;
  int trials = 0;
  tune::TuneHooks hooks{.interrupted = [&] { return trials >= 2; }};
  hooks.on_trial = [&](const std::vector<tune::Axis>&, const tune::Trial&, bool, double) { ++trials; };
  const Result<tune::TuneResult> r =
      tune::tune(config_, {.workload = file.string(), .concurrency = 2, .minutes = 1}, hooks);
  fs::remove(file);
  ASSERT_TRUE(r.ok()) << r.error().message;
  EXPECT_THAT(r->device, testing::HasSubstr("Emulated GPU"));
  ASSERT_EQ(r->outcome.trials.size(), 2u);
  bool eager = false;
  for (const tune::Trial& t : r->outcome.trials)
    for (size_t a = 0; a < r->axes.size(); ++a)
      eager |= r->axes[a].key == "gpu.enforce_eager" && t.point[a] == 1;
  EXPECT_TRUE(eager) << "without CUDA graphs too";
  EXPECT_TRUE(r->outcome.trials[*r->outcome.best].usable());
}

}  // namespace
}  // namespace deepinfer
