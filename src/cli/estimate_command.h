// deepinfer estimate: what of a model fits on a device, before anything but config.json is here.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>

#include "cli/config_flags.h"
#include "deepinfer/result.h"
#include "engine/split.h"

namespace deepinfer {

struct EstimateOptions {
  std::string gpu;      // a card by name
  std::string memory;   // of a card or a machine that has no name: "24GiB"
  int count = 0;        // cards; 0: those of this machine, or as many as the split takes
  SplitWish wish;       // what was asked for of a split
  bool splits = false;  // all of them, on the CPU too
  Load load;            // that the rates are for
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
