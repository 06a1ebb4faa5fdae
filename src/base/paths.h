// Where the program keeps and finds its files.
#pragma once

#include <filesystem>

namespace deepinfer {

// DEEPINFER_CACHE_DIR, else $XDG_CACHE_HOME/deepinfer, else ~/.cache/deepinfer. Need not exist.
std::filesystem::path cache_dir();

// What the program serves when no model is named: its name, and its file in cache_dir()/models.
constexpr const char* kDefaultModelName = "smollm2-135m-instruct";
constexpr const char* kDefaultModelFile = "SmolLM2-135M-Instruct.Q4_1.gguf";

// <prefix>/share/deepinfer, where the running program is <prefix>/bin/deepinfer. Need not exist.
std::filesystem::path share_dir();

}  // namespace deepinfer
