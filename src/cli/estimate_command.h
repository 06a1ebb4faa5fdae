// deepinfer estimate: what of a model fits on a device, before anything but config.json is here.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>

#include "cli/config_flags.h"
#include "deepinfer/result.h"

namespace deepinfer {

struct EstimateOptions {
  std::string gpu;     // a card by name
  std::string memory;  // of a card or a machine that has no name: "24GiB"
  int count = 1;
  bool json = false;
};

// Adds the command, and runs it: keep it until the command line was parsed.
class EstimateCommand {
 public:
  explicit EstimateCommand(CLI::App& app);

  // The exit code, when the command was given: 0 it fits, 4 it does not, 2 and 3 as everywhere.
  std::optional<int> run() const;

 private:
  CLI::App* app_;
  EstimateOptions options_;
  ConfigFlags flags_;
};

// "24GiB", "24GB", "24G" (GiB), "500MiB", or bytes. kConfig.
Result<int64_t> parse_memory_size(const std::string& text);

}  // namespace deepinfer
