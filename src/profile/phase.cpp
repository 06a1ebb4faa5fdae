#include "profile/phase.h"

namespace deepinfer {

const PhaseInfo& info(Phase phase) {
  static constexpr std::array<PhaseInfo, kPhases> kTable = {{
      {"engine loop", "engine", {}},
      {"idle", "engine", {}},
      {"requests", "engine", {"new", "cancelled"}},
      {"schedule", "engine", {"running", "waiting"}},
      {"forward", "engine", {"step", "rows", "tokens"}},
      {"sampling", "engine", {"step", "rows"}},
      {"wait", "engine", {"step"}},
      {"commit", "engine", {"step", "rows"}},
      {"deliver", "engine", {"step", "events"}},
      {"embed", "model", {"tokens"}},
      {"rope", "model", {"tokens"}},
      {"qkv", "model", {"tokens", "in", "out"}},
      {"attention", "model", {"tokens", "rows"}},
      {"project", "model", {"tokens", "in", "out"}},
      {"gate_up", "model", {"tokens", "in", "out"}},
      {"head", "model", {"rows", "in", "out"}},
      {"sample", "model", {"rows"}},
      {"score", "model", {"rows"}},
      {"copy_blocks", "model", {"blocks"}},
      {"tokenize", "server", {"bytes"}},
      {"detokenize", "server", {"news"}},
      {"step", "engine", {"step", "rows", "tokens"}},
      {"counters", "engine", {"running", "waiting", "free_blocks"}},
  }};
  static_assert(static_cast<size_t>(Phase::kCounters) + 1 == kPhases);
  return kTable[static_cast<size_t>(phase)];
}

}  // namespace deepinfer
