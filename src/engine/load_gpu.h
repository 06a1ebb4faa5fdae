// What loading on one GPU and on several have in common.
#pragma once

#include <memory>
#include <string>

#include "comm/communicator.h"
#include "engine/cuda_runner.h"
#include "engine/load.h"
#include "engine/load_plan.h"

namespace deepinfer {

// A model that is to stand on a card, or a rank's share of it.
struct GpuJob {
  const Config& config;
  const Checkpoint& checkpoint;
  GpuTuning tuning;
  GpuTypes types;
  int max_model_len = 0;
  MemoryRequest request;
  Profiler* profiler = nullptr;
};

// kConfig, kModel: settings and models that a GPU does not take.
Result<GpuJob> make_gpu_job(const Config& config, const Checkpoint& checkpoint, const GpuInfo& info,
                            Profiler* profiler);

// Before anything is copied: the card has room for one of `ranks` equal shares. kMemory.
Result<void> check_card(const GpuJob& job, const cuda::Gpu& gpu, int ranks);

// Packs the weights onto the device, or the share of ranks->rank(). Their checkpoint is not read again.
Result<std::unique_ptr<Model>> pack_model(const GpuJob& job, cuda::Gpu& gpu, Communicator* ranks);

CudaRunnerOptions runner_options(const GpuJob& job);

std::string memory_text(const MeasuredMemory& measured);

}  // namespace deepinfer
