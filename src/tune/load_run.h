// One run of a workload on an engine: as many requests under way as it says, until all are answered.
#pragma once

#include <functional>
#include <optional>

#include "deepinfer/engine.h"
#include "deepinfer/result.h"
#include "tune/search.h"
#include "tune/workload.h"

namespace deepinfer::tune {

struct RunLimits {
  // How many requests; unset: new ones are sent for `send_seconds`, and those under way are waited for.
  std::optional<int> requests;
  double send_seconds = 0;
  double seconds = 0;  // the run is stopped then, and not complete
};

// `interrupted` is asked several times a second: kCancelled. The engine is of no more use when the run was
// stopped. Errors of a request are the run's.
Result<Measurement> run_workload(Engine& engine, const Workload& workload, const RunLimits& limits,
                                 const std::function<bool()>& interrupted);

// Sorted or not; 0 of none.
Percentiles percentiles(std::vector<double> values);

}  // namespace deepinfer::tune
