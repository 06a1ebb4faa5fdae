// Ranks that are threads of one process: they read each other's memory.
#pragma once

#include <chrono>
#include <memory>
#include <vector>

#include "comm/communicator.h"

namespace deepinfer {

// One for each rank, to be moved to its thread; they share the group's state and may outlive each other. A
// call that waits longer than `timeout` for a peer ends the group. Calls allocate nothing, but for a
// pair's first send. At least 1 rank.
std::vector<std::unique_ptr<Communicator>> local_communicators(int ranks, std::chrono::milliseconds timeout);

}  // namespace deepinfer
