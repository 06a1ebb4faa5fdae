// Where the program keeps and finds its files.
#pragma once

#include <filesystem>

namespace deepinfer {

// DEEPINFER_CACHE_DIR, else $XDG_CACHE_HOME/deepinfer, else ~/.cache/deepinfer. Need not exist.
std::filesystem::path cache_dir();

// What the program serves when no model is named: its name, and its file in cache_dir()/models.
constexpr const char* kDefaultModelName = "smollm2-135m-instruct";
constexpr const char* kDefaultModelFile = "SmolLM2-135M-Instruct.Q4_1.gguf";

// The file that this code was loaded from: the running program, or the Python package's extension module.
// Empty when the system does not say.
std::filesystem::path own_file();

// What share/deepinfer and lib stand in: /usr/local for /usr/local/bin/deepinfer, the package's own folder
// for its extension module. Empty when the system does not say.
std::filesystem::path install_prefix();
// The same for another file, for tests.
std::filesystem::path install_prefix(const std::filesystem::path& file);

// <install_prefix()>/share/deepinfer. Need not exist.
std::filesystem::path share_dir();

}  // namespace deepinfer
