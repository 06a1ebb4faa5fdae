// Whether the hub answers at all, for people who look for what is wrong.
#pragma once

#include "deepinfer/result.h"
#include "hub/settings.h"

namespace deepinfer::hub {

// One request to the endpoint: the status of its answer. kUnavailable: there is none, and why.
Result<int> reach(const Settings& settings);

}  // namespace deepinfer::hub
