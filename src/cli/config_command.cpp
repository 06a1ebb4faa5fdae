#include "cli/config_command.h"

#include <fmt/format.h>

#include <cstdio>

#include "cli/exit_code.h"
#include "cli/load_settings.h"
#include "config/config.h"

namespace deepinfer {

int config_command(const ConfigFlags& flags, bool markdown) {
  if (markdown) {
    fmt::print("{}", config_markdown());
    return 0;
  }
  const Result<LoadedConfig> loaded = load_settings(flags);
  if (!loaded) return report(loaded.error());
  for (const std::string& warning : loaded->warnings) fmt::print(stderr, "warning: {}\n", warning);
  fmt::print("{}", print_config(*loaded));
  return 0;
}

}  // namespace deepinfer
