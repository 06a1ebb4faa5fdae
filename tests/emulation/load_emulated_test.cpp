// Llm::load on emulated cards: which device is taken, what is refused and in which words, and that a tiny
// model answers as on the CPU.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <cstdlib>
#include <filesystem>
#include <mutex>

#include "emulation/emulated_gpu.h"
#include "engine/find_device.h"
#include "engine/llm.h"

namespace deepinfer {
namespace {

namespace fs = std::filesystem;
using emulation::MachineConfig;
using testing::HasSubstr;

constexpr size_t kMiB = 1 << 20;
// What NVML says of the emulated machine: nothing but that it has the card.
constexpr const char* kOneCard = "driver=580.1;cuda=13000;gpu=Emulated GPU|GPU-1";
constexpr const char* kTwoCards = "driver=580.1;cuda=13000;gpu=Emulated GPU|GPU-1;gpu=Emulated GPU|GPU-2";

class Load : public testing::Test {
 protected:
  void SetUp() override {
    setenv("DEEPINFER_CUDA_LIB_DIR", FAKE_NVML_DIR, 1);
    setenv("FAKE_NVML", kOneCard, 1);
    emulation::reset_machine();
    config_.model.name = (fs::path(DI_SOURCE_DIR) / "tests/golden/tiny_llama/base").string();
    config_.gpu.device = "cuda";
    config_.gpu.max_num_seqs = 2;
    config_.gpu.max_num_batched_tokens = 32;
    config_.gpu.kv_cache_memory_bytes = 4 * kMiB;
    config_.cpu.threads = 1;
  }
  void TearDown() override {
    unsetenv("DEEPINFER_CUDA_LIB_DIR");
    unsetenv("FAKE_NVML");
  }

  std::string error() {
    const auto llm = Llm::load(config_);
    EXPECT_FALSE(llm.ok());
    if (llm) return "";
    EXPECT_EQ(llm.error().code, code_);
    return llm.error().message;
  }

  Config config_;
  ErrorCode code_ = ErrorCode::kMemory;
};

// Greedy tokens with their log-probabilities.
std::vector<OutputToken> generate(Engine& engine, std::vector<int32_t> prompt, int count) {
  EngineRequest request{.prompt = std::move(prompt)};
  request.sampling.temperature = 0;
  request.sampling.max_tokens = count;
  request.sampling.ignore_eos = true;
  request.sampling.logprobs = 0;
  std::vector<OutputToken> tokens;
  std::mutex mutex;
  std::condition_variable changed;
  bool done = false;
  const auto id = engine.submit(request, [&](const OutputEvent& e) {
    const std::lock_guard lock(mutex);
    tokens.insert(tokens.end(), e.tokens.begin(), e.tokens.end());
    if (e.error != nullptr) ADD_FAILURE() << e.error->message;
    done = e.finish != FinishReason::kNone;
    changed.notify_all();
  });
  EXPECT_TRUE(id.ok());
  std::unique_lock lock(mutex);
  changed.wait(lock, [&] { return done || !id; });
  return tokens;
}

TEST_F(Load, AnswersAsTheCpuDoes) {
  const std::vector<int32_t> prompt = {5, 17, 200, 31, 8, 99, 150, 3, 42, 7, 301, 64, 12, 11, 90, 222, 18, 5};
  auto on_gpu = Llm::load(config_);
  ASSERT_TRUE(on_gpu.ok()) << on_gpu.error().message;
  config_.gpu.device = "cpu";
  auto on_cpu = Llm::load(config_);
  ASSERT_TRUE(on_cpu.ok()) << on_cpu.error().message;
  EXPECT_NE((*on_gpu)->fingerprint, (*on_cpu)->fingerprint);
  EXPECT_EQ((*on_gpu)->max_model_len, 256);
  const auto a = generate(*(*on_gpu)->engine, prompt, 6), b = generate(*(*on_cpu)->engine, prompt, 6);
  ASSERT_EQ(a.size(), 6u);
  ASSERT_EQ(b.size(), 6u);
  // The first token has the same input on both. Noise of bfloat16's size moves this model's log-probabilities
  // by 0.002 rms (half of its square is the divergence of 2e-6 that compare_devices predicts); a normal value
  // is beyond 3.3 of these once in a thousand times.
  EXPECT_EQ(a[0].id, b[0].id);
  EXPECT_NEAR(a[0].logprob, b[0].logprob, 3.3 * 0.002);
}

// The settings of the 5090 choose where the checkpoint and the user leave it, and there alone.
TEST_F(Load, A5090RoundsPlainWeightsToFp8) {
  config_.gpu.nvidia_5090_optimizations = true;
  const auto loaded = [&](const std::string& quantization) {
    config_.model.quantization = quantization;
    const auto llm = Llm::load(config_);
    EXPECT_TRUE(llm.ok()) << llm.error().message;
    return llm ? (*llm)->summary : LoadSummary{};
  };
  const LoadSummary elsewhere = loaded("");
  EXPECT_EQ(elsewhere.weights, "bfloat16");
  emulation::reset_machine({.major = 12, .minor = 0});
  const LoadSummary chosen = loaded("");
  EXPECT_EQ(chosen.weights, "fp8, rounded while loading");
  EXPECT_EQ(chosen.kv_dtype, "F8_E4M3");
  EXPECT_LT(chosen.weight_bytes, elsewhere.weight_bytes);
  EXPECT_EQ(loaded("none").weights, "bfloat16");
  EXPECT_EQ(loaded("int4").weights, "int4, rounded while loading");
}

TEST_F(Load, AutoTakesTheGpu) {
  config_.gpu.device = "auto";
  const auto llm = Llm::load(config_);
  ASSERT_TRUE(llm.ok()) << llm.error().message;
  EXPECT_GT(emulation::machine_counts().kernels, 0);
}

TEST_F(Load, WithoutNvmlCudaIsAsked) {
  const GpuReport none = without_nvml({.message = "no NVIDIA driver"}, 0);
  EXPECT_TRUE(none.gpus.empty());
  EXPECT_EQ(none.message, "no NVIDIA driver");
  const GpuReport two = without_nvml({.message = "no NVIDIA driver"}, 2);
  ASSERT_EQ(two.gpus.size(), 2u);
  EXPECT_EQ(two.gpus[1].id, 1);
  EXPECT_EQ(two.message, "");
}

// NVML knows a card, but CUDA cannot use it.
TEST_F(Load, AutoTakesTheCpuWhereThereIsNone) {
  for (const MachineConfig& machine :
       {MachineConfig{.device_count = 0}, MachineConfig{.driver_version = 0},
        MachineConfig{.driver_version = 12040}, MachineConfig{.major = 7, .minor = 5}}) {
    emulation::reset_machine(machine);
    config_.gpu.device = "auto";
    const auto llm = Llm::load(config_);
    ASSERT_TRUE(llm.ok()) << llm.error().message;
    EXPECT_EQ(emulation::machine_counts().kernels, 0);
  }
}

TEST_F(Load, ANamedGpuThatCannotBeUsed) {
  emulation::reset_machine({.major = 7, .minor = 5});
  EXPECT_THAT(error(), HasSubstr("compute capability 7.5"));
  emulation::reset_machine({.device_count = 2});
  setenv("FAKE_NVML", kTwoCards, 1);
  config_.gpu.device = "cuda:2";
  const std::string text = error();
  EXPECT_THAT(text, HasSubstr("got cuda:2, but CUDA sees 2 GPUs"));
  EXPECT_THAT(text, HasSubstr("cuda:0 (Emulated GPU), cuda:1 (Emulated GPU)"));
}

TEST_F(Load, TheSecondGpu) {
  emulation::reset_machine({.device_count = 2});
  setenv("FAKE_NVML", kTwoCards, 1);
  config_.gpu.device = "cuda:1";
  const auto llm = Llm::load(config_);
  ASSERT_TRUE(llm.ok()) << llm.error().message;
}

// gpu.tensor_parallel_size on cards: NCCL's stand-in is found as the real one would be.
class LoadOnSeveral : public Load {
 protected:
  void SetUp() override {
    Load::SetUp();
    setenv("DEEPINFER_CUDA_LIB_DIR", FAKE_NVML_DIR ":" EMULATED_NCCL_DIR, 1);
    setenv("FAKE_NVML", kTwoCards, 1);
    emulation::reset_machine({.device_count = 2});
    config_.gpu.tensor_parallel_size = 2;
  }
};

TEST_F(LoadOnSeveral, TwoCardsAnswerAsOneDoes) {
  const std::vector<int32_t> prompt = {5, 17, 200, 31, 8, 99, 150, 3, 42, 7, 301, 64, 12, 11, 90, 222, 18, 5};
  auto two = Llm::load(config_);
  ASSERT_TRUE(two.ok()) << two.error().message;
  EXPECT_THAT((*two)->summary.device, HasSubstr("cuda:0 to cuda:1, 2 x Emulated GPU"));
  EXPECT_THAT((*two)->summary.device, HasSubstr("NCCL 2.27.3"));
  EXPECT_GT(emulation::machine_counts().exchanges, 0);
  const auto a = generate(*(*two)->engine, prompt, 6);
  const std::string fingerprint = (*two)->fingerprint;
  two->reset();
  config_.gpu.tensor_parallel_size = 1;
  auto one = Llm::load(config_);
  ASSERT_TRUE(one.ok()) << one.error().message;
  EXPECT_NE((*one)->fingerprint, fingerprint);
  const auto b = generate(*(*one)->engine, prompt, 6);
  ASSERT_EQ(a.size(), 6u);
  ASSERT_EQ(b.size(), 6u);
  for (size_t i = 0; i < a.size(); ++i) EXPECT_EQ(a[i].id, b[i].id) << i;
}

TEST_F(LoadOnSeveral, BlocksAreThoseOfTheCardWithTheLeastMemory) {
  config_.gpu.kv_cache_memory_bytes = 0;
  int64_t blocks[2] = {};
  for (const bool uneven : {false, true}) {
    emulation::reset_machine({.device_count = 2, .memory_of = {700 * kMiB, (uneven ? 620 : 700) * kMiB}});
    const auto llm = Llm::load(config_);
    ASSERT_TRUE(llm.ok()) << llm.error().message;
    blocks[uneven ? 1 : 0] = (*llm)->summary.kv_blocks;
  }
  EXPECT_LT(blocks[1], blocks[0] * 9 / 10);
}

TEST_F(LoadOnSeveral, ACardWithoutRoomIsNamed) {
  config_.gpu.kv_cache_memory_bytes = 1;
  emulation::reset_machine({.device_count = 2, .memory_of = {1024 * kMiB, 1 * kMiB}});
  EXPECT_THAT(error(), HasSubstr("GPU 1 (Emulated GPU)"));
  EXPECT_EQ(emulation::machine_counts().live_allocations, 0);
}

TEST_F(LoadOnSeveral, WhatCannotBeShared) {
  code_ = ErrorCode::kConfig;
  config_.gpu.tensor_parallel_size = 3;
  EXPECT_THAT(error(), HasSubstr("gpu.tensor_parallel_size: got 3, expected at most 2: CUDA shows 2 GPUs"));
  config_.gpu.tensor_parallel_size = 2;
  config_.gpu.device = "cuda:1";
  EXPECT_THAT(error(), HasSubstr("expected at most 1: CUDA shows 2 GPUs"));
  config_.gpu.device = "cuda";
  emulation::reset_machine({.device_count = 8});
  config_.gpu.tensor_parallel_size = 3;
  EXPECT_THAT(error(), HasSubstr("got 3, expected one of 1, 2, 4 on GPUs"));
  config_.gpu.tensor_parallel_size = 5;
  EXPECT_THAT(error(), HasSubstr("got 5, expected at most 4: the model has 4 query heads"));
  config_.gpu.tensor_parallel_size = 4;
  config_.gpu.deterministic = true;
  EXPECT_THAT(error(), HasSubstr("gpu.deterministic: true, expected false with gpu.tensor_parallel_size 4"));
}

TEST_F(LoadOnSeveral, NcclThatFailsSaysSo) {
  emulation::fail_nccl_init(1);
  code_ = ErrorCode::kUnavailable;
  EXPECT_THAT(error(), HasSubstr("cannot join the others: NCCL reports"));
}

TEST_F(Load, PeersAndLibrariesAreAsked) {
  for (const bool peers : {false, true}) {
    emulation::reset_machine({.device_count = 2, .cublaslt = peers, .peer_access = peers});
    GpuReport report{.gpus = {{.id = 0}, {.id = 1}}};
    add_cuda_facts(report);
    EXPECT_EQ(report.gpus[0].peers, (peers ? std::vector<int>{1} : std::vector<int>{}));
    EXPECT_EQ(report.gpus[1].peers, (peers ? std::vector<int>{0} : std::vector<int>{}));
    ASSERT_EQ(report.libraries.size(), 2u);
    EXPECT_EQ(report.libraries[0].name, "cuBLASLt");
    EXPECT_EQ(report.libraries[0].problem.empty(), peers) << report.libraries[0].problem;
    EXPECT_EQ(report.libraries[1].name, "NCCL");
    EXPECT_NE(report.libraries[1].problem.empty(), report.libraries[1].version.empty());
  }
  // More cards than CUDA shows: their numbers may mean others.
  GpuReport three{.gpus = {{.id = 0}, {.id = 1}, {.id = 2}}};
  add_cuda_facts(three);
  EXPECT_FALSE(three.gpus[0].peers.has_value());
  GpuReport none;
  add_cuda_facts(none);
  EXPECT_TRUE(none.libraries.empty());
}

TEST_F(Load, TooLittleFreeMemoryNamesWhoHoldsIt) {
  emulation::reset_machine({.name = "Card", .total_memory = 1024 * kMiB, .used_by_others = 512 * kMiB});
  setenv("FAKE_NVML", "driver=580.1;cuda=13000;gpu=Card|GPU-1|1024|512|9.0|0|0|0|0|4194303:500", 1);
  config_.gpu.kv_cache_memory_bytes = 0;
  config_.gpu.gpu_memory_utilization = 0.9;
  const std::string text = error();
  for (const char* part : {"GPU 0 (Card)", "gpu.gpu_memory_utilization 0.90 asks for 0.90 GiB of 1.00 GiB",
                           "only 0.5", "held by pid 4194303 0.5 GiB", "gpu.gpu_memory_utilization 0.5"})
    EXPECT_THAT(text, HasSubstr(part));
}

TEST_F(Load, AContextThatDoesNotFit) {
  config_.gpu.kv_cache_memory_bytes = 2 * kMiB;
  config_.gpu.max_num_seqs = 1;
  config_.model.max_model_len = 256;
  // 2 layers x 2 heads x 16 x 2 values of 2 bytes: 256 B a token. 2 MiB hold more than the model's context.
  EXPECT_TRUE(Llm::load(config_).ok());
  emulation::reset_machine({.total_memory = 160 * kMiB});
  config_.gpu.kv_cache_memory_bytes = 150 * kMiB;
  const std::string text = error();
  EXPECT_THAT(text, HasSubstr("gpu.kv_cache_memory_bytes"));
}

TEST_F(Load, WeightsThatDoNotFit) {
  config_.gpu.kv_cache_memory_bytes = 1;
  // What the start itself needs does not fit.
  emulation::reset_machine({.name = "Card", .total_memory = 8 * kMiB, .used_by_others = 8 * kMiB - 65536});
  EXPECT_THAT(error(), testing::AllOf(HasSubstr("GPU 0 (Card)"), HasSubstr("nvidia-smi")));
  // That fits, a weight does not.
  emulation::reset_machine({.name = "Card", .total_memory = 8 * kMiB, .used_by_others = 7 * kMiB - 65536});
  EXPECT_THAT(error(), testing::AllOf(HasSubstr("GPU 0 (Card)"), HasSubstr("for a weight of"),
                                      HasSubstr("What takes less:")));
}

// Whichever allocation fails: a Result that says what, never a crash, and nothing stays behind.
TEST_F(Load, EachAllocationMayFail) {
  config_.gpu.enforce_eager = true;
  config_.gpu.max_num_batched_tokens = 4;
  int failed = 0;
  for (int n = 0; n < 200; ++n) {
    emulation::reset_machine();
    emulation::fail_allocation(n);
    const auto llm = Llm::load(config_);
    if (llm && emulation::machine_counts().allocations <= n) break;  // that many there are not
    if (llm) continue;  // a library's workspace: own kernels serve without it
    EXPECT_EQ(llm.error().code, ErrorCode::kMemory) << llm.error().message;
    EXPECT_THAT(llm.error().message,
                testing::AnyOf(HasSubstr("GPU 0 (Emulated GPU)"), HasSubstr("pinned memory")));
    EXPECT_EQ(emulation::machine_counts().live_allocations, 0);
    ++failed;
  }
  EXPECT_GT(failed, 10);
}

TEST_F(Load, AKernelThatFaultsAtStart) {
  emulation::fail_kernel(3);
  EXPECT_THAT(error(), HasSubstr("GPU 0 (Emulated GPU)"));
}

TEST_F(Load, SettingsThatAGpuDoesNotTake) {
  code_ = ErrorCode::kConfig;
  config_.gpu.block_size = 24;
  EXPECT_THAT(error(), HasSubstr("gpu.block_size: got 24, expected 16, 32, 64 or 128"));
  config_.gpu.block_size = 16;
  config_.model.dtype = "float32";
  EXPECT_THAT(error(), HasSubstr("model.dtype: got float32, expected auto, bfloat16 or float16"));
  config_.model.dtype = "float16";
  config_.gpu.kv_cache_dtype = "bfloat16";
  EXPECT_THAT(error(), HasSubstr("gpu.kv_cache_dtype: got bfloat16, expected auto, fp8 or float16"));
  config_.model.dtype = "auto";
  config_.gpu.kv_cache_dtype = "auto";
  config_.model.max_model_len = 100000;
  EXPECT_THAT(error(), HasSubstr("model.max_model_len: got 100000, expected at most 256"));
}

TEST_F(Load, TheSettingsOfA5090) {
  emulation::reset_machine({.name = "NVIDIA GeForce RTX 5090", .major = 12});
  config_.gpu.nvidia_5090_optimizations = true;  // fp8 for the KV cache, graphs of the 5090's sizes
  config_.gpu.max_num_seqs = 3;
  const auto with = Llm::load(config_);
  ASSERT_TRUE(with.ok()) << with.error().message;
  EXPECT_EQ(generate(*(*with)->engine, {1, 2, 3}, 3).size(), 3u);
  config_.gpu.nvidia_5090_optimizations = false;
  const auto without = Llm::load(config_);
  ASSERT_TRUE(without.ok()) << without.error().message;
  EXPECT_NE((*with)->fingerprint, (*without)->fingerprint);  // the cache's type is in it
}

TEST_F(Load, OtherTypesAndSizes) {
  config_.model.dtype = "float16";
  config_.gpu.kv_cache_dtype = "fp8";
  config_.gpu.block_size = 32;
  config_.gpu.enforce_eager = true;
  const auto llm = Llm::load(config_);
  ASSERT_TRUE(llm.ok()) << llm.error().message;
  EXPECT_EQ(generate(*(*llm)->engine, {1, 2, 3}, 3).size(), 3u);
}

}  // namespace
}  // namespace deepinfer
