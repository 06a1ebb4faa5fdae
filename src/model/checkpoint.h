// Opens a model: a GGUF file or a Hugging Face folder. After this nobody cares which it was.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "deepinfer/result.h"
#include "model/model_config.h"
#include "model/weights.h"
#include "text/tokenizer.h"

namespace deepinfer {

struct Checkpoint {
  std::filesystem::path path;
  ModelConfig config;
  GenerationDefaults generation;
  Weights weights;
  std::unique_ptr<Tokenizer> tokenizer;
  std::string chat_template;  // source; empty: the model has none
  int64_t weight_bytes = 0;   // of the tensors on disk
};

// kNotFound, kModel: what, where, expected. Every count, offset and extent in the files is checked before
// use.
Result<Checkpoint> open_checkpoint(const std::filesystem::path& path);

// The same without the tokenizer (null), which may be missing: for what works on token ids alone.
Result<Checkpoint> open_weights(const std::filesystem::path& path);

}  // namespace deepinfer
