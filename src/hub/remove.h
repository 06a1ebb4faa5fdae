// Takes models out of the caches.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "deepinfer/result.h"
#include "hub/model_ref.h"
#include "hub/settings.h"

namespace deepinfer::hub {

// What a removal would take, for the question before it.
struct Removal {
  std::string repo;                            // empty: not from a hub
  std::vector<std::filesystem::path> folders;  // with all that is in them
  std::vector<std::filesystem::path> files;    // links and blobs
  uint64_t bytes = 0;                          // that become free

  std::string text() const;  // "ORG/NAME: 1 folder, 2.7 GB: /.../models--ORG--NAME"
};

// Without a file: the whole repository with every revision. With one: this file in every revision, and the
// blobs that no other link needs. kNotFound, kModel (several files fit).
Result<Removal> plan_removal(const Settings& settings, const ModelRef& ref);

// The same for the default model of this program's own cache.
Result<Removal> plan_default_removal(const Settings& settings);

// kModel: another process fetches the model, or a file cannot be removed.
Result<void> remove(const Settings& settings, const Removal& removal);

}  // namespace deepinfer::hub
