// Where the program keeps and finds its files.
#pragma once

#include <filesystem>

namespace deepinfer {

// DEEPINFER_CACHE_DIR, else $XDG_CACHE_HOME/deepinfer, else ~/.cache/deepinfer. Need not exist.
std::filesystem::path cache_dir();

// <prefix>/share/deepinfer, where the running program is <prefix>/bin/deepinfer. Need not exist.
std::filesystem::path share_dir();

}  // namespace deepinfer
