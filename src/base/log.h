// The log of the process, on standard error. Nothing below the engine's loop logs per token.
#pragma once

#include <spdlog/spdlog.h>

#include <string_view>

#include "base/log_format.h"

namespace deepinfer {

// level: trace, debug, info, warning, error. Unknown names mean info; the key table refuses them before.
void set_log_level(std::string_view level);
void set_log_format(LogFormat format);

// A line with fields besides its message: which request it is about, counts and times.
void log_with(spdlog::level::level_enum level, const LogFields& fields, std::string_view message);

namespace log = spdlog;  // log::info("...", args)

}  // namespace deepinfer
