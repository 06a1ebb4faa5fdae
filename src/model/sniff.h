// What a file looks like, for the message when it is not what was expected.
#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace deepinfer {

// "a Git LFS pointer (the real file was not downloaded: git lfs pull)", or "an unknown format".
std::string looks_like(std::span<const std::byte> file);

}  // namespace deepinfer
