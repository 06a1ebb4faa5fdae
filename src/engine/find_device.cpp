#include "engine/find_device.h"

#include "base/check.h"
#include "base/log.h"
#include "comm/nccl.h"
#include "device/gpu_detector.h"

namespace deepinfer {
namespace {

GpuReport detect() {
  GpuReport report = GpuDetector().detect();
  // A container may have CUDA and not NVML. Then the facts come when the device is opened.
  return report.nvml ? report : without_nvml(std::move(report), cuda::device_count());
}

// Which cards read each other's memory, where CUDA numbers them as NVML does.
void add_peers(GpuReport& report) {
  const int count = static_cast<int>(report.gpus.size());
  if (count < 2 || cuda::device_count() != count) return;
  for (GpuInfo& gpu : report.gpus) {
    std::vector<int> peers;
    bool known = true;
    for (int peer = 0; peer < count; ++peer) {
      if (peer == gpu.id) continue;
      const std::optional<bool> can = cuda::can_access_peer(gpu.id, peer);
      known &= can.has_value();
      if (can == true) peers.push_back(peer);
    }
    if (known) gpu.peers = std::move(peers);
  }
}

// What the device itself says stands above what NVML said.
void take_facts(const cuda::GpuFacts& facts, GpuInfo& gpu) {
  gpu.name = facts.name;
  gpu.capability = ComputeCapability{facts.capability / 10, facts.capability % 10};
  gpu.total_bytes = facts.total_bytes;
}

}  // namespace

GpuReport without_nvml(GpuReport report, int device_count) {
  for (int i = 0; i < device_count; ++i) report.gpus.push_back({.id = i});
  if (device_count > 0) report.message.clear();
  return report;
}

Result<DeviceChoice> find_device(const std::string& setting) {
  const bool built = cuda::built();
  return choose_device(setting, wants_detection(setting, built) ? detect() : GpuReport{}, built);
}

Result<std::vector<GpuInfo>> find_gpus(const std::string& setting) {
  const bool built = cuda::built();
  GpuReport report = wants_detection(setting, built) ? detect() : GpuReport{};
  DI_ASSIGN(const DeviceChoice choice, choose_device(setting, report, built));
  std::vector<GpuInfo> gpus;
  if (!choice.gpu) return gpus;
  add_peers(report);
  for (GpuInfo& gpu : report.gpus)
    if (gpu.problem.empty() && gpu.id >= choice.gpu->id) gpus.push_back(std::move(gpu));
  return gpus;
}

Result<std::unique_ptr<cuda::Gpu>> open_device(const Config& config, DeviceChoice& choice) {
  DI_ASSIGN(choice, find_device(config.gpu.device));
  std::unique_ptr<cuda::Gpu> gpu;
  if (choice.gpu) {
    auto opened = cuda::Gpu::open({.index = choice.gpu->id, .deterministic = config.gpu.deterministic});
    const Result<void> ready = opened ? (*opened)->open_fast_paths() : Result<void>(opened.error());
    if (ready) {
      gpu = std::move(*opened);
      take_facts(gpu->facts(), *choice.gpu);
    } else if (config.gpu.device != "auto") {
      return ready.error();
    } else {
      choice = {std::nullopt, ready.error().message};
    }
  }
  if (!choice.gpu && !choice.reason.empty()) log::info("running on the CPU: {}", choice.reason);
  if (!choice.gpu && config.gpu.nvidia_5090_optimizations)
    log::warn("gpu.nvidia_5090_optimizations: does nothing on the CPU");
  return gpu;
}

void log_other_gpus(const DeviceChoice& choice) {
  if (!choice.gpu || choice.others == 0) return;
  std::optional<bool> any;
  for (int peer = 0; peer < cuda::device_count(); ++peer) {
    if (peer == choice.gpu->id) continue;
    if (const std::optional<bool> can = cuda::can_access_peer(choice.gpu->id, peer))
      any = *can || any == true;
  }
  log::info("{}", other_gpus_text(choice.others, any));
}

void add_cuda_facts(GpuReport& report) {
  if (report.gpus.empty()) return;
  if (const std::optional<cuda::CudaLibrary> library = cuda::cublaslt_library()) {
    report.libraries.push_back({"cuBLASLt", library->version, library->path, library->problem});
    const Result<NcclApi> nccl = load_nccl();
    report.libraries.push_back(nccl ? LibraryInfo{"NCCL", nccl_version_text(nccl->version), nccl->path, ""}
                                    : LibraryInfo{"NCCL", "", "", nccl.error().message});
  }
  add_peers(report);
}

}  // namespace deepinfer
