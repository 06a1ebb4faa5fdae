// The search over settings: measured runs, within a budget. Knows neither engine nor clock: both are given.
#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "deepinfer/result.h"

namespace deepinfer::tune {

// A setting, and the values that may be tried, ascending where they have an order.
struct Axis {
  std::string key;                  // "gpu.max_num_seqs"
  std::vector<std::string> values;  // as YAML
  size_t start = 0;                 // where the search begins
};

using Point = std::vector<size_t>;  // an index into the values of each axis

struct Percentiles {
  double p50 = 0, p99 = 0;  // seconds
};

struct Measurement {
  double tokens_per_second = 0;  // generated
  Percentiles ttft;              // from a request's arrival to its first token
  Percentiles itl;               // between tokens of one answer
  int requests = 0;              // that were finished
  double seconds = 0;            // of the run, without loading
  bool complete = false;         // all of the workload was done; false: stopped before
  std::string failure;           // these settings cannot run: why; empty: they can
};

// Upper limits of the 99th percentiles, seconds; 0: none.
struct Slo {
  double ttft = 0, itl = 0;
  bool any() const { return ttft > 0 || itl > 0; }
};

// The largest of measured / allowed; at most 1 when the SLO is met, 0 when there is none.
double excess(const Slo& slo, const Measurement& m);
bool meets(const Slo& slo, const Measurement& m);

struct Trial {
  Point point;
  std::vector<Measurement> runs;

  bool usable() const { return !runs.empty() && runs.front().complete; }
  Measurement mean() const;  // of the complete runs, else the only one
};

enum class End { kConverged, kBudget, kInterrupted };

struct Outcome {
  std::vector<Trial> trials;   // in the order in which they were first measured; the first is the start
  std::optional<size_t> best;  // of trials: the highest throughput that meets the SLO, else the nearest to it
  bool slo_met = false;        // by the best
  End end = End::kConverged;
};

struct SearchHooks {
  // Runs the workload. `seconds`: stop it then, the point is no good. kCancelled ends the search with what is
  // known; any other error is the result of the search.
  std::function<Result<Measurement>(const Point& point, double seconds)> measure;
  std::function<double()> elapsed;                                   // seconds since the search began
  std::function<void(const Trial& trial, bool best)> on_trial = {};  // after each run
};

// From the start along one axis after the other, up and then down, as long as it gets better by more than
// noise; again until nothing changes; then the best is measured once more, and gives way when it was luck, or
// when it is no more than noise above the start.
// Never runs beyond `budget` seconds but for what hooks.measure takes to stop.
Result<Outcome> search(const std::vector<Axis>& axes, const Slo& slo, double budget,
                       const SearchHooks& hooks);

}  // namespace deepinfer::tune
