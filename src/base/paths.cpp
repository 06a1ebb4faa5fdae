#include "base/paths.h"

#include <cstdlib>
#include <string>
#include <system_error>

namespace deepinfer {
namespace {

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

}  // namespace

std::filesystem::path cache_dir() {
  if (const std::string own = variable("DEEPINFER_CACHE_DIR"); !own.empty()) return own;
  if (const std::string xdg = variable("XDG_CACHE_HOME"); !xdg.empty())
    return std::filesystem::path(xdg) / "deepinfer";
  const std::string home = variable("HOME");
  return std::filesystem::path(home.empty() ? "/tmp" : home) / ".cache" / "deepinfer";
}

std::filesystem::path share_dir() {
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  return program.parent_path().parent_path() / "share" / "deepinfer";
}

}  // namespace deepinfer
