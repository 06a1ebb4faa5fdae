// A model ready to serve: engine, tokenizer, template and defaults, made from settings. The server, the
// commands and Python stand on it.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "deepinfer/config.h"
#include "deepinfer/engine.h"
#include "engine/load_summary.h"
#include "model/checkpoint.h"
#include "model/model_config.h"
#include "profile/profiler.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace deepinfer {

struct Llm {
  std::vector<std::string> names;  // served_model_name; the first is the main one
  ModelConfig model;
  GenerationDefaults generation;
  int max_model_len = 0;
  bool on_gpu = false;
  std::string fingerprint;  // hashes build, weights and kernel configuration: "fp_..."
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<ChatTemplate> chat_template;  // null: the model has none
  std::string template_error;                   // why there is none, when its source could not be parsed
  LoadSummary summary;
  std::unique_ptr<Profiler> profiler;  // of engine and text; off until it is started
  std::unique_ptr<Engine> engine;      // last: it uses what stands above

  // Opens the checkpoint, packs the weights, sizes the KV cache, starts the engine.
  static Result<std::unique_ptr<Llm>> load(const Config& config);
  // The same with a checkpoint that is open already. Without a tokenizer: for what works on token ids alone.
  static Result<std::unique_ptr<Llm>> load(const Config& config, Checkpoint checkpoint);
};

// The file or folder that model.name means; the default model when it is empty. kModel when that is not
// there.
Result<std::filesystem::path> locate_model(const Config& config);

// What a request that leaves a field out gets: sampling.* where set, else generation_config.json, else
// built-in.
SamplingParams default_sampling(const Config& config, const GenerationDefaults& generation);

}  // namespace deepinfer
