// An engine over a model folder on the CPU, without text: for tests that look at tokens and
// log-probabilities.
#pragma once

#include <filesystem>
#include <memory>
#include <vector>

#include "deepinfer/engine.h"
#include "engine/cpu_runner.h"

namespace deepinfer {

struct CpuEngineOptions {
  int threads = 1;  // of all ranks
  int ranks = 1;
  CpuRunnerOptions runner;
  EngineOptions engine;
};

Result<std::unique_ptr<Engine>> make_cpu_engine(const std::filesystem::path& model,
                                                const CpuEngineOptions& options);

struct Answer {
  std::vector<OutputToken> tokens;
  std::vector<OutputToken> scores;  // of the prompt
  FinishReason finish = FinishReason::kNone;
  int cached_tokens = 0;
  std::string error;
};

// Submits all at once; returns when all are finished. One answer per request (n = 1).
std::vector<Answer> run_all(Engine& engine, const std::vector<EngineRequest>& requests);

}  // namespace deepinfer
