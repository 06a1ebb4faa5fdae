// What the CPU of this machine reaches in the operations of a model: the figures that predictions start from.
#pragma once

#include "deepinfer/config.h"
#include "deepinfer/result.h"
#include "engine/step_time.h"
#include "model/checkpoint.h"

namespace deepinfer {

struct HostRates {
  int threads = 1;       // of the machine
  DeviceSpeed one, all;  // of a rank of one thread that is alone, and of all threads
  DeviceSpeed one_busy;  // of one of as many ranks as there are threads, all of them at work
  LinkSpeed link;        // between two ranks that are threads
};

// Packs some layers of the model, 500 MB where it has them, and runs them: some seconds. Checkpoints
// without data are measured with random weights. kModel, kConfig: a layer of this model cannot be made.
Result<HostRates> measure_host(const Config& config, const Checkpoint& checkpoint, int threads);

// Of one of `ranks` that share the machine's threads, all of them at work, or one alone.
DeviceSpeed rank_speed(const HostRates& host, int ranks, bool all_busy);

}  // namespace deepinfer
