// Findings about cards: by hand, and through the stand-in for NVML.
#include <cstdlib>

#include "device/gpu_detector.h"
#include "doctor/gpu.h"
#include "findings.h"

namespace deepinfer::doctor {
namespace {

constexpr const char* kBuilt = "80 89 90a 120f";
constexpr uint64_t kGiB = uint64_t{1} << 30;

GpuInfo card() {
  GpuInfo gpu;
  gpu.name = "NVIDIA GeForce RTX 5090";
  gpu.capability = ComputeCapability{12, 0};
  gpu.total_bytes = 32 * kGiB;
  gpu.free_bytes = 31 * kGiB;
  gpu.temperature = 50;
  gpu.power_limit = 575;
  gpu.health = GpuHealth{.throttle_reasons = 1,
                         .clock = 2400,
                         .max_clock = 2900,
                         .default_power_limit = 575,
                         .ecc = false,
                         .uncorrected_errors = 0,
                         .persistence = true,
                         .link_width = 16,
                         .max_link_width = 16};
  return gpu;
}

std::vector<Finding> judged(const GpuInfo& gpu, size_t weights = 0) {
  return check_gpu(gpu, kBuilt, Config::Gpu{}, weights);
}

TEST(GpuFindings, AGoodCard) {
  for (const Finding& f : judged(card(), 16 * kGiB)) expect(f, Level::kOk, "");
  EXPECT_FALSE(has(judged(card()), "GPU 0 kernels"));
}

TEST(GpuFindings, NothingKnown) {
  for (const Finding& f : judged(GpuInfo{})) expect(f, Level::kOk, "");
}

TEST(GpuFindings, ClocksAndHeat) {
  GpuInfo gpu = card();
  gpu.health->throttle_reasons = 0x44;
  expect(of(judged(gpu), "GPU 0 clocks"), Level::kWarning,
         "2400 of 2900 MHz, held down by the power limit, the hardware's thermal limit",
         "nvidia-smi -i 0 -q");
  gpu.health->throttle_reasons = 0x3;  // idle, and clocks set by the user
  expect(of(judged(gpu), "GPU 0 clocks"), Level::kOk, "not held down");
  gpu.temperature = 90;
  expect(of(judged(gpu), "GPU 0 clocks"), Level::kWarning, "90 C");
}

TEST(GpuFindings, Power) {
  GpuInfo gpu = card();
  gpu.power_limit = 400;
  expect(of(judged(gpu), "GPU 0 power"), Level::kWarning, "limit 400 W, made for 575 W",
         "sudo nvidia-smi -i 0 -pl 575");
}

TEST(GpuFindings, ErrorsOfMemory) {
  GpuInfo gpu = card();
  gpu.health->ecc = true;
  expect(of(judged(gpu), "GPU 0 ECC"), Level::kOk, "on");
  gpu.health->uncorrected_errors = 3;
  expect(of(judged(gpu), "GPU 0 ECC"), Level::kProblem, "3 errors", "--gpu-reset");
}

TEST(GpuFindings, PersistenceAndLanes) {
  GpuInfo gpu = card();
  gpu.health->persistence = false;
  gpu.health->link_width = 4;
  expect(of(judged(gpu), "GPU 0 persistence"), Level::kWarning, "off", "sudo nvidia-smi -i 0 -pm 1");
  expect(of(judged(gpu), "GPU 0 PCIe"), Level::kWarning, "4 of 16 lanes", "lspci");
}

TEST(GpuFindings, MemoryThatOthersHold) {
  GpuInfo gpu = card();
  gpu.free_bytes = 20 * kGiB;
  gpu.processes = {{4711, 11 * kGiB, "python3"}};
  const Finding full = of(judged(gpu), "GPU 0 memory");
  expect(full, Level::kProblem, "python3 (pid 4711)", "kill 4711");
  EXPECT_THAT(full.text, testing::HasSubstr("gpu.gpu_memory_utilization"));
  gpu.free_bytes = 30 * kGiB;
  gpu.processes[0].bytes = 2 * kGiB;
  expect(of(judged(gpu), "GPU 0 memory"), Level::kWarning, "held by python3 (pid 4711)", "kill 4711");
  gpu.free_bytes = 31 * kGiB;
  gpu.processes[0].bytes = kGiB;
  expect(of(judged(gpu), "GPU 0 memory"), Level::kOk, "held by");
}

TEST(GpuFindings, AModelThatDoesNotFit) {
  const Finding f = of(judged(card(), 60 * kGiB), "GPU 0 memory");
  expect(f, Level::kProblem, "60.00 GiB");
  EXPECT_THAT(f.text, testing::HasSubstr("int4"));
}

TEST(GpuFindings, CardsOfOtherBuilds) {
  GpuInfo gpu = card();
  const auto kernels = [&](ComputeCapability capability) {
    gpu.capability = capability;
    return has(judged(gpu), "GPU 0 kernels");
  };
  EXPECT_FALSE(kernels({8, 0}) || kernels({8, 6}) || kernels({8, 9}) || kernels({9, 0}) || kernels({12, 1}));
  EXPECT_TRUE(kernels({10, 0}) && kernels({9, 1}) && kernels({7, 5}));
  gpu.capability = ComputeCapability{10, 3};
  expect(of(judged(gpu), "GPU 0 kernels"), Level::kWarning, "not for 10.3",
         "DEEPINFER_CUDA_ARCHITECTURES=103");
}

TEST(GpuFindings, BuildAndDriver) {
  Config::Gpu settings;
  GpuReport none;
  none.message = "no NVIDIA driver was found";
  expect(check_build("", none, settings), Level::kOk, "for CPUs");
  expect(check_driver(none, settings), Level::kOk, "no NVIDIA driver was found; models run on the CPU");
  GpuReport one{.gpus = {card()}, .driver_version = "580.82.07", .cuda_version = 13000};
  expect(check_build("", one, settings), Level::kWarning, "has a GPU", "DEEPINFER_CUDA=ON");
  expect(check_build(kBuilt, one, settings), Level::kOk, kBuilt);
  expect(check_driver(one, settings), Level::kOk, "580.82.07, runs CUDA up to 13.0");
  settings.device = "cuda:0";
  expect(check_driver(none, settings), Level::kProblem, "no NVIDIA driver", "nvidia-smi");
  expect(check_build("", one, settings), Level::kProblem, "gpu.device is cuda:0", "DEEPINFER_CUDA=ON");
}

TEST(GpuFindings, Libraries) {
  GpuReport report{
      .gpus = {card()},
      .libraries = {{"cuBLASLt", "13.1.0", "/l/libcublasLt.so.13", ""}, {"NCCL", "", "", "NCCL: not found"}}};
  auto all = check_libraries(report);
  expect(of(all, "cuBLASLt"), Level::kOk, "13.1.0 (/l/libcublasLt.so.13)");
  expect(of(all, "NCCL"), Level::kOk, "one GPU does not need");
  report.gpus.push_back(card());
  report.libraries[0] = {"cuBLASLt", "", "", "cuBLASLt: not found"};
  all = check_libraries(report);
  expect(of(all, "NCCL"), Level::kWarning, "not found", "DEEPINFER_CUDA_LIB_DIR");
  expect(of(all, "cuBLASLt"), Level::kWarning, "not found");
}

TEST(GpuFindings, ThroughTheDriversLibrary) {
  setenv(
      "FAKE_NVML",
      "driver=580.82.07;cuda=13000;"
      "gpu=NVIDIA GeForce RTX 5090|GPU-1|32768|32000|12.0|7|85|300000|450000||36|1500|2900|575000|1|2|0|8|16;"
      "gpu=NVIDIA GeForce RTX 4090|GPU-2|24564|24000|8.9|0|40|20000|450000|",
      1);
  DetectorOptions options{.folders = {{FAKE_NVML_DIR, "the test"}}, .health = true};
  const GpuReport report = GpuDetector(options).detect();
  ASSERT_EQ(report.gpus.size(), 2u) << report.message;
  const auto bad = judged(report.gpus[0]);
  expect(of(bad, "GPU 0 clocks"), Level::kWarning,
         "1500 of 2900 MHz, held down by the power limit, the temperature");
  expect(of(bad, "GPU 0 power"), Level::kWarning, "limit 450 W, made for 575 W");
  expect(of(bad, "GPU 0 ECC"), Level::kProblem, "2 errors");
  expect(of(bad, "GPU 0 persistence"), Level::kWarning, "off");
  expect(of(bad, "GPU 0 PCIe"), Level::kWarning, "8 of 16");
  ASSERT_TRUE(report.gpus[1].health);  // a driver that says nothing of it
  for (const Finding& f : judged(report.gpus[1])) expect(f, Level::kOk, "");
  options.health = false;
  EXPECT_FALSE(GpuDetector(options).detect().gpus[0].health);
}

}  // namespace
}  // namespace deepinfer::doctor
