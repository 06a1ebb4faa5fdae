// Fetches a model from a hub into the cache, or finds it there.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>

#include "deepinfer/result.h"
#include "hub/cache.h"
#include "hub/model_ref.h"
#include "hub/progress.h"
#include "hub/settings.h"

namespace deepinfer::hub {

struct Pulled {
  std::filesystem::path path;  // what the engine opens
  std::string commit;
  uint64_t files = 0, fetched = 0;  // of the model; fetched now
};

// Brings the cache to what `revision` (empty: main) means now: fetches what is missing, and writes the
// reference when all files are there. `stop` is asked from several threads; then kCancelled, and a later call
// goes on. kModel, kNotFound: what is wrong and what to do.
Result<Pulled> pull(const Settings& settings, const ModelRef& ref, const std::string& revision,
                    Progress& progress, const std::function<bool()>& stop);

}  // namespace deepinfer::hub
