// `deepinfer tune` without the terminal: a model, a workload, an SLO and a budget in, measured settings out.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "deepinfer/config.h"
#include "deepinfer/result.h"
#include "model/checkpoint.h"
#include "tune/search.h"
#include "tune/workload.h"

namespace deepinfer::tune {

struct TuneOptions {
  std::string workload = "chat";  // a name, or a file
  int concurrency = 0;            // requests at a time; 0: the workload's own
  Slo slo;
  double minutes = 5;
};

struct TuneResult {
  std::string model, device, workload;  // for people
  std::vector<Axis> axes;
  Outcome outcome;
  int requests = 0;    // of a run
  double seconds = 0;  // that all took
};

// What a tuner tells while it works.
struct TuneHooks {
  std::function<bool()> interrupted;
  std::function<void(const std::string& line)> note = {};
  std::function<void(const std::vector<Axis>& axes, const Trial& trial, bool best, double elapsed)> on_trial =
      {};
};

// "ttft=0.5,itl=0.05", either alone. kConfig.
Result<Slo> parse_slo(const std::string& text);

// What a model may be tuned on.
struct TuneMachine {
  bool gpu = false;
  int devices = 1;  // that may share every layer: cards, or the ranks that a CPU's threads make
};

// The settings to try, around those of `config`: concurrency bounds what more sequences could change.
std::vector<Axis> axes_for(const Config& config, const TuneMachine& machine, int concurrency);

// Loads the model, finds with the settings of `config` how many requests a run may have, and searches.
// kConfig: a workload or budget that cannot be used. kCancelled: interrupted before anything was measured.
Result<TuneResult> tune(const Config& config, const TuneOptions& options, const TuneHooks& hooks);

}  // namespace deepinfer::tune
