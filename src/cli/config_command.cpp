#include <fmt/format.h>

#include <cstdio>

#include "cli/commands.h"
#include "cli/config_flags.h"
#include "config/config.h"

namespace deepinfer {

int exit_code(ErrorCode code) {
  switch (code) {
    case ErrorCode::kConfig:
      return 2;
    case ErrorCode::kModel:
      return 3;
    case ErrorCode::kMemory:
      return 4;
    case ErrorCode::kAddressInUse:
      return 5;
    default:
      return 1;
  }
}

int config_command(const ConfigFlags& flags, bool markdown) {
  if (markdown) {
    fmt::print("{}", config_markdown());
    return 0;
  }
  const Result<LoadedConfig> loaded = flags.load();
  if (!loaded) {
    fmt::print(stderr, "error: {}\n", loaded.error().message);
    return exit_code(loaded.error().code);
  }
  for (const std::string& warning : loaded->warnings) fmt::print(stderr, "warning: {}\n", warning);
  fmt::print("{}", print_config(*loaded));
  return 0;
}

}  // namespace deepinfer
