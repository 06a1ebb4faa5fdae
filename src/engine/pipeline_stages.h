// The models and runners of all ranks of a pipeline whose ranks are threads of this process.
#pragma once

#include <chrono>
#include <memory>

#include "engine/parallel_runner.h"
#include "engine/pipeline_runner.h"

namespace deepinfer {

// What of the model a rank holds. kConfig: more stages than layers, or more shares than can be dealt.
Result<ModelPart> plan_part(const Checkpoint& checkpoint, const PipelinePlace& place);

// `threads` in all, at least one a rank. Errors as of plan_part() and make_model(). No communicators: the
// runner's team makes them.
Result<RankModels> make_stage_models(const Checkpoint& checkpoint, const PipelinePlace& grid, int threads);

// kMemory as CpuRunner::create(). A profiler sees rank 0.
Result<std::unique_ptr<PipelineRunner>> make_pipeline(RankModels models, const PipelinePlace& grid,
                                                      const CpuRunnerOptions& options,
                                                      std::chrono::milliseconds timeout);

}  // namespace deepinfer
