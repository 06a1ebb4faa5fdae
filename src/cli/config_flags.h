// Every setting as a flag of a command.
#pragma once

#include <CLI/CLI.hpp>
#include <filesystem>
#include <optional>
#include <utility>
#include <vector>

#include "config/config.h"

namespace deepinfer {

// Adds --config and one flag per key to a command, grouped by section in its --help. Keep it until the
// command line was parsed; it borrows the command.
class ConfigFlags {
 public:
  explicit ConfigFlags(CLI::App& command);

  // After parsing: what was given.
  std::optional<std::filesystem::path> config() const;
  std::vector<FlagValue> values() const;

  // All sources of this process together. kConfig.
  Result<LoadedConfig> load(const DeviceDescription& device = {}) const;

 private:
  CLI::Option* config_ = nullptr;
  std::vector<std::pair<const Key*, CLI::Option*>> options_;
};

// " (did you mean --max-num-seqs?)" for a flag that the command does not know; empty when nothing is near.
std::string flag_hint(const CLI::App& command, const std::string& unknown);

}  // namespace deepinfer
