// Runs one model directly, without an engine: logits of every position of one sequence.
#pragma once

#include <filesystem>
#include <memory>
#include <span>
#include <vector>

#include "model/checkpoint.h"
#include "model/model.h"

namespace deepinfer {

class ModelHarness {
 public:
  struct Options {
    int threads = 1;
    int max_tokens = 512;  // of one sequence, and of one step
    DType kv_dtype = DType::kF32;
    LayerRange layers;  // empty: all
  };

  static Result<std::unique_ptr<ModelHarness>> open(const std::filesystem::path& path,
                                                    const Options& options);
  static Result<std::unique_ptr<ModelHarness>> open(Checkpoint checkpoint, const Options& options);

  // Logits [tokens, V], computed in steps of at most `chunk` tokens (0: all at once) on an empty cache.
  std::vector<float> logits(std::span<const int32_t> tokens, int chunk = 0);

  // One stage of a pipeline on an empty cache: hidden_in and hidden_out as in StageIO, [tokens, hidden].
  void stage(std::span<const int32_t> tokens, const StageIO& io) { step(tokens, 0, io); }

  const ModelConfig& config() const { return model_->config(); }
  int vocab_size() const { return config().vocab_size; }

 private:
  ModelHarness() = default;
  void step(std::span<const int32_t> tokens, int first, const StageIO& io);

  Checkpoint checkpoint_;
  std::unique_ptr<ThreadPool> pool_;
  Arena scratch_;
  Context context_;
  std::unique_ptr<Model> model_;
  Buffer kv_memory_;
  std::unique_ptr<KvCache> kv_;
};

}  // namespace deepinfer
