// What keeps a busy server from taking more, for the log: once for each reason.
#pragma once

#include <optional>
#include <set>
#include <string>

#include "cli/stats_line.h"
#include "deepinfer/config.h"
#include "engine/load_summary.h"

namespace deepinfer {

class LimitHint {
 public:
  LimitHint(const Config& config, bool on_gpu, const LoadSummary& summary);

  // Of a minute's begin and end. Nothing when requests do not wait, or when this was told before.
  std::optional<std::string> tell(const StatsSample& before, const StatsSample& now);

 private:
  std::optional<std::string> once(const std::string& reason, std::string text);
  std::string more_cache() const;

  const Config::Gpu settings_;
  const bool on_gpu_;
  const LoadSummary summary_;
  std::set<std::string> told_;
};

}  // namespace deepinfer
