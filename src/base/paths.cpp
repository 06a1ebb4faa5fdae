#include "base/paths.h"

#include <dlfcn.h>
#include <link.h>

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

std::filesystem::path own_file() {
  static const char here = 0;
  Dl_info place{};
  link_map* map = nullptr;
  std::error_code error;
  // The loader calls every object by its path but the program itself.
  if (dladdr1(&here, &place, reinterpret_cast<void**>(&map), RTLD_DL_LINKMAP) != 0 && map != nullptr &&
      map->l_name != nullptr && *map->l_name != '\0')
    return std::filesystem::absolute(map->l_name, error);
  return std::filesystem::read_symlink("/proc/self/exe", error);
}

std::filesystem::path install_prefix(const std::filesystem::path& file) {
  const bool module = file.filename().string().find(".so") != std::string::npos;
  return module ? file.parent_path() : file.parent_path().parent_path();
}

std::filesystem::path install_prefix() {
  return install_prefix(own_file());
}

std::filesystem::path share_dir() {
  return install_prefix() / "share" / "deepinfer";
}

}  // namespace deepinfer
