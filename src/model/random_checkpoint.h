// Checkpoints without a file: the shape of a known model with random weights. For measurements, which depend
// on the shape alone, and for machines that have no such file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "model/checkpoint.h"

namespace deepinfer {

// "llama-3.1-8b", "tiny", ...
std::vector<std::string> random_shapes();

// bf16 weights of a shape, without a tokenizer; the same for the same seed, norms 1. Matrices take no memory:
// each device makes them where it packs them (RawTensor::random). kConfig for an unknown shape.
Result<Checkpoint> random_checkpoint(const std::string& shape, uint64_t seed);

// The same of any shape; `name` is what messages call it. kMemory.
Result<Checkpoint> random_checkpoint(const ModelConfig& config, const std::string& name, uint64_t seed);

// Writes config.json and model-*.safetensors into a folder that is new or empty: what open_weights() reads
// back, random values as a device would make them. kModel with the path and the reason.
Result<void> save_checkpoint(const Checkpoint& checkpoint, const std::filesystem::path& folder);

}  // namespace deepinfer
