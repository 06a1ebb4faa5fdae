#include "engine/pipeline_stages.h"

#include <algorithm>
#include <optional>

#include "base/check.h"
#include "model/stages.h"

namespace deepinfer {

Result<ModelPart> plan_part(const Checkpoint& checkpoint, const PipelinePlace& place) {
  ModelPart part{.head_with_first = true};
  DI_ASSIGN(part.layers, plan_stage(checkpoint.config, place.stage(), place.stages));
  DI_ASSIGN(part.shard, plan_shard(checkpoint.config, checkpoint.weights, place.share(), place.shares));
  return part;
}

Result<RankModels> make_stage_models(const Checkpoint& checkpoint, const PipelinePlace& grid, int threads) {
  const int ranks = grid.ranks();
  std::vector<ModelPart> parts;
  RankModels out;
  for (PipelinePlace place = grid; place.rank < ranks; ++place.rank) {
    DI_ASSIGN(ModelPart part, plan_part(checkpoint, place));
    parts.push_back(std::move(part));
    const int own = threads * (place.rank + 1) / ranks - threads * place.rank / ranks;
    out.pools.push_back(std::make_unique<ThreadPool>(std::max(own, 1)));
  }
  std::vector<std::optional<Result<std::unique_ptr<Model>>>> made(ranks);
  std::vector<int64_t> bytes(ranks);
  ThreadPool team(ranks);
  team.run([&](int r) {
    Context context{.pool = out.pools[r].get()};
    made[r].emplace(make_model_part(checkpoint.config, checkpoint.weights, context, parts[r]));
    if (context.weights != nullptr) bytes[r] = static_cast<int64_t>(context.weights->allocated());
  });
  for (int r = 0; r < ranks; ++r) {
    if (!*made[r]) return std::move(*made[r]).error();
    out.models.push_back(std::move(**made[r]));
    out.weight_bytes += bytes[r];
  }
  return out;
}

Result<std::unique_ptr<PipelineRunner>> make_pipeline(RankModels models, const PipelinePlace& grid,
                                                      const CpuRunnerOptions& options,
                                                      std::chrono::milliseconds timeout) {
  std::vector<std::unique_ptr<CpuRunner>> runners;
  for (PipelinePlace place = grid; place.rank < grid.ranks(); ++place.rank) {
    CpuRunnerOptions own = options;
    own.head = place.first();
    if (place.rank != 0) own.profiler = nullptr;  // of one thread
    DI_ASSIGN(
        std::unique_ptr<CpuRunner> runner,
        CpuRunner::create(std::move(models.pools[place.rank]), std::move(models.models[place.rank]), own));
    runners.push_back(std::move(runner));
  }
  std::unique_ptr<CpuRunner> first = std::move(runners.front());
  runners.erase(runners.begin());
  auto team = std::make_unique<PipelineTeam>(grid, std::move(runners), timeout);
  return std::make_unique<PipelineRunner>(grid, PipelineComms{}, std::move(first), timeout, std::move(team));
}

}  // namespace deepinfer
