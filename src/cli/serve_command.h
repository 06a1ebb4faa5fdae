// deepinfer serve: the server, from its first line of output to its exit code.
#pragma once

#include <string>

#include "deepinfer/config.h"

namespace deepinfer {

// Returns the exit code. SIGTERM and SIGINT drain; a second one ends at once. `settings`: what it says it was
// told (serve_banner.h).
int serve_command(const Config& config, const std::string& settings = {});

}  // namespace deepinfer
