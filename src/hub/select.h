// Which files of a repository make a model. The same rules hold for a listing of the hub and for a snapshot
// in the cache.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "deepinfer/result.h"

namespace deepinfer::hub {

constexpr const char* kIndexFile = "model.safetensors.index.json";
constexpr const char* kSingleFile = "model.safetensors";

struct Listed {
  std::string name;
  uint64_t size = 0;  // 0: unknown
};

struct Selection {
  std::vector<std::string> files;  // sorted
  std::string main;                // what is opened; empty: the folder itself
  bool needs_index = false;        // the weights are what kIndexFile, one of `files`, names
};

// One GGUF file, or the parts of a split one.
struct GgufModel {
  std::vector<Listed> parts;  // sorted by name
  std::string quantization;   // may be empty
  uint64_t size = 0;
};

// Without projectors of images and importance matrices, which are no models.
std::vector<GgufModel> gguf_models(const std::vector<Listed>& files);

// `file`: a name or a quantization, empty: whatever the repository has one of. `where` begins messages.
// kNotFound: nothing fits; kModel: several do, and the message lists them.
Result<Selection> select_files(const std::vector<Listed>& files, const std::string& file,
                               const std::string& where);

}  // namespace deepinfer::hub
