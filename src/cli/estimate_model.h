// --model of `deepinfer estimate`: what describes a model, wherever it is, without its weights.
#pragma once

#include <string>

#include "deepinfer/config.h"
#include "deepinfer/result.h"
#include "model/checkpoint.h"

namespace deepinfer {

struct DescribedModel {
  Checkpoint checkpoint;  // of a model that is not here: without data
  std::string source;     // what was read: "config.json and the sizes of its files, from https://..."
};

// A GGUF file, a folder (one with config.json alone will do), a config.json, or a model of a hub, of which
// config.json (or the header of a GGUF file) is fetched and nothing else. kNotFound, kModel.
Result<DescribedModel> describe_model(const Config& config);

}  // namespace deepinfer
