#include "base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>

#include <memory>
#include <string>

namespace deepinfer {
namespace {

void use_own_logger() {
  static const bool once = [] {
    auto logger = spdlog::stderr_color_mt("deepinfer");
    logger->set_formatter(std::make_unique<LineFormatter>(LogFormat::kText));
    spdlog::set_default_logger(std::move(logger));
    return true;
  }();
  (void)once;
}

}  // namespace

void set_log_level(std::string_view level) {
  use_own_logger();
  spdlog::set_level(spdlog::level::from_str(std::string(level)));
}

void set_log_format(LogFormat format) {
  use_own_logger();
  spdlog::default_logger()->set_formatter(std::make_unique<LineFormatter>(format));
}

void log_with(spdlog::level::level_enum level, const LogFields& fields, std::string_view message) {
  spdlog::default_logger_raw()->log(spdlog::source_loc{fields.json().c_str(), 1, fields.text().c_str()},
                                    level, "{}", message);
}

}  // namespace deepinfer
