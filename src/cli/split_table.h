// The splits of a model over several devices, for people and for programs.
#pragma once

#include <boost/json.hpp>
#include <string>
#include <vector>

#include "engine/split.h"

namespace deepinfer {

// A heading and a line a split, the best first; `most` of them.
std::string split_table(const std::vector<SplitPlan>& plans, const Load& load, size_t most);

// What the order and the figures stand on: which link, whether replicas come first, that nothing was
// measured.
std::string split_notes(const std::vector<SplitPlan>& plans, const SplitMachine& machine);

boost::json::array splits_json(const std::vector<SplitPlan>& plans);

}  // namespace deepinfer
