// What `deepinfer tune` found, as text: a table, the YAML for `serve --config`, an SVG plot, JSON.
#pragma once

#include <boost/json/object.hpp>
#include <string>

#include "tune/tuner.h"

namespace deepinfer::tune {

// "max_num_seqs 64, max_num_batched_tokens 2048".
std::string point_text(const std::vector<Axis>& axes, const Point& point);
// "812.4 tok/s, TTFT 0.120 / 0.410 s, ITL 0.0201 / 0.0310 s"; why, when it was stopped or cannot run.
std::string trial_text(const Trial& trial);

// A row a trial, the best marked, with a bar for its throughput.
std::string table(const TuneResult& result, const Slo& slo);

// The tuned keys alone, with what was measured as comments. `date` as in 2026-01-31.
std::string yaml(const TuneResult& result, const Slo& slo, const std::string& date);

// Throughput over each setting, the others as in the best.
std::string svg(const TuneResult& result, const Slo& slo);

boost::json::object to_json(const TuneResult& result, const Slo& slo);

}  // namespace deepinfer::tune
