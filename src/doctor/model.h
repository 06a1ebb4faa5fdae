// Whether the model that was named can be opened, and what it will take.
#pragma once

#include <filesystem>
#include <optional>

#include "deepinfer/config.h"
#include "doctor/finding.h"
#include "hub/settings.h"

namespace deepinfer::doctor {

struct ModelFacts {
  Finding finding;
  std::optional<std::filesystem::path> path;  // on this machine
  int64_t file_bytes = 0;                     // of its weights on disk
  int64_t weight_bytes = 0;                   // of them when loaded
};

// A path, a model of the hub's cache, or the default one. Fetches nothing.
ModelFacts check_model(const Config& config, const hub::Settings& hub);

// What a server on the CPU takes, about: weights, KV cache, workspace.
int64_t memory_needed(const Config& config, int64_t weight_bytes);

}  // namespace deepinfer::doctor
