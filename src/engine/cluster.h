// Ranks of a model that are processes, as settings say (cluster.*): how they join, and what each does then.
#pragma once

#include <chrono>

#include "deepinfer/config.h"
#include "deepinfer/result.h"
#include "engine/load.h"

namespace deepinfer {

// How long a rank waits for another: server.stall_timeout.
std::chrono::milliseconds stall_limit(const Config& config);

// Rank 0. Blocks until all ranks are there. kConfig: settings that do not fit, or that differ between ranks,
// as builds and weights; kTimeout, kAddressInUse, kUnsupported (a build without Gloo).
Result<LoadedRunner> load_leader(const Config& config, const Checkpoint& checkpoint, Profiler* profiler);

// Another rank: opens the model, joins, and runs the steps of rank 0 until that ends. kMemory when the group
// is lost.
Result<void> serve_rank(const Config& config);

}  // namespace deepinfer
