// deepinfer serve: the server, from its first line of output to its exit code.
#pragma once

#include "deepinfer/config.h"

namespace deepinfer {

// Returns the exit code. SIGTERM and SIGINT drain; a second one ends at once.
int serve_command(const Config& config);

}  // namespace deepinfer
