// The log of the process, on standard error. Nothing below the engine's loop logs per token.
#pragma once

#include <spdlog/spdlog.h>

#include <string_view>

namespace deepinfer {

// level: trace, debug, info, warning, error. Unknown names mean info; the key table refuses them before.
void set_log_level(std::string_view level);

namespace log = spdlog;  // log::info("...", args)

}  // namespace deepinfer
