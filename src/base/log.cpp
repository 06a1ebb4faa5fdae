#include "base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>

#include <string>

namespace deepinfer {

void set_log_level(std::string_view level) {
  static const bool once = [] {
    auto logger = spdlog::stderr_color_mt("deepinfer");
    logger->set_pattern("%Y-%m-%d %H:%M:%S.%e %^%l%$ %v");
    spdlog::set_default_logger(std::move(logger));
    return true;
  }();
  (void)once;
  spdlog::set_level(spdlog::level::from_str(std::string(level)));
}

}  // namespace deepinfer
