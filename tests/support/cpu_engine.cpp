#include "support/cpu_engine.h"

#include <condition_variable>
#include <mutex>

#include "base/check.h"
#include "engine/parallel_runner.h"
#include "model/checkpoint.h"

namespace deepinfer {

Result<std::unique_ptr<Engine>> make_cpu_engine(const std::filesystem::path& path,
                                                const CpuEngineOptions& options) {
  DI_ASSIGN(Checkpoint checkpoint, open_weights(path));
  if (options.ranks > 1) {
    const std::chrono::seconds timeout(60);
    DI_ASSIGN(RankModels models, make_rank_models(checkpoint, options.ranks, options.threads, timeout));
    DI_ASSIGN(std::unique_ptr<ParallelRunner> runner,
              ParallelRunner::create(std::move(models), options.runner, timeout));
    return std::make_unique<Engine>(std::move(runner), options.engine);
  }
  auto pool = std::make_unique<ThreadPool>(options.threads);
  Context context{.pool = pool.get()};
  DI_ASSIGN(std::unique_ptr<Model> model, make_model(checkpoint.config, checkpoint.weights, context));
  DI_ASSIGN(std::unique_ptr<CpuRunner> runner,
            CpuRunner::create(std::move(pool), std::move(model), options.runner));
  return std::make_unique<Engine>(std::move(runner), options.engine);
}

std::vector<Answer> run_all(Engine& engine, const std::vector<EngineRequest>& requests) {
  std::vector<Answer> answers(requests.size());
  std::mutex mutex;
  std::condition_variable done;
  size_t finished = 0;
  for (size_t i = 0; i < requests.size(); ++i) {
    const Result<uint64_t> id = engine.submit(requests[i], [&, i](const OutputEvent& e) {
      std::lock_guard lock(mutex);
      answers[i].tokens.insert(answers[i].tokens.end(), e.tokens.begin(), e.tokens.end());
      answers[i].scores.insert(answers[i].scores.end(), e.prompt_logprobs.begin(), e.prompt_logprobs.end());
      answers[i].cached_tokens = e.cached_tokens;
      if (e.error != nullptr) answers[i].error = e.error->message;
      if (e.finish == FinishReason::kNone) return;
      answers[i].finish = e.finish;
      ++finished;
      done.notify_all();
    });
    if (!id) {
      std::lock_guard lock(mutex);
      answers[i].error = id.error().message;
      ++finished;
    }
  }
  std::unique_lock lock(mutex);
  done.wait(lock, [&] { return finished == requests.size(); });
  return answers;
}

}  // namespace deepinfer
