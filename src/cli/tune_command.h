// deepinfer tune: measures settings on this machine with this model, and writes the best as a YAML file.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "deepinfer/config.h"

namespace deepinfer {

struct TuneCommandOptions {
  std::string workload = "chat";
  std::string slo;
  double minutes = 5;
  int concurrency = 0;  // 0: the workload's own
  std::string out = "tuned.yaml";
  bool json = false;
};

void add_tune_options(CLI::App& command, TuneCommandOptions& options);

// Returns the exit code: 0 a file was written; 1 one was written, but nothing meets the SLO; 130 interrupted.
int tune_command(const Config& config, const TuneCommandOptions& options);

}  // namespace deepinfer
