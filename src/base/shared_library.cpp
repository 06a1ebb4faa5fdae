#include "base/shared_library.h"

#include <dlfcn.h>
#include <fmt/format.h>
#include <link.h>

#include <cstdlib>
#include <fstream>
#include <system_error>
#include <utility>

#include "base/check.h"
#include "base/paths.h"

namespace deepinfer {
namespace {

namespace fs = std::filesystem;

std::string loader_error() {
  const char* text = dlerror();
  return text == nullptr ? "unknown error of the loader" : text;
}

std::string_view trimmed(std::string_view text) {
  const auto is_space = [](char c) { return c == ' ' || c == '\t' || c == '\r'; };
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}

}  // namespace

// One search: remembers what was wrong in each place.
class LibraryLoader {
 public:
  explicit LibraryLoader(const LibrarySpec& spec) : spec_(spec) {}

  // True when the library of this name (a path or a bare file name) is loaded and accepted.
  bool try_file(const std::string& file, const std::string& origin) {
    // Not RTLD_NODELETE yet: a rejected library must go, for its SONAME would answer for the next place.
    void* handle = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
      reject(file, origin, loader_error());
      return false;
    }
    SharedLibrary library;
    library.name_ = spec_.name;
    library.handle_ = handle;
    link_map* map = nullptr;
    library.path_ = dlinfo(handle, RTLD_DI_LINKMAP, &map) == 0 && map != nullptr ? map->l_name : file.c_str();
    if (spec_.check) {
      if (Result<void> accepted = spec_.check(library); !accepted) {
        reject(library.path_.string(), origin, accepted.error().message);
        dlclose(handle);
        return false;
      }
    }
    dlopen(library.path_.c_str(), RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE);
    found_ = std::move(library);
    return true;
  }

  bool try_folder(const LibraryFolder& place) {
    for (const std::string& name : spec_.files) {
      const fs::path file = place.folder / name;
      std::error_code error;
      if (!fs::exists(file, error))
        reject(file.string(), place.origin, error ? error.message() : "not there");
      else if (try_file(file.string(), place.origin))
        return true;
    }
    return false;
  }

  Result<SharedLibrary> finish(bool found) {
    if (found) return std::move(found_);
    return make_error(ErrorCode::kUnavailable, "{}: no usable library. Tried:{}{}{}", spec_.name, tried_,
                      spec_.remedy.empty() ? "" : "\n", spec_.remedy);
  }

 private:
  void reject(const std::string& file, const std::string& origin, const std::string& why) {
    tried_ += fmt::format("\n  {} ({}): {}", file, origin, why);
  }

  const LibrarySpec& spec_;
  SharedLibrary found_;
  std::string tried_;
};

Result<void*> SharedLibrary::find(const char* name) const {
  DI_CHECK(handle_ != nullptr, "symbol {} of a library that is not loaded", name);
  dlerror();
  void* address = dlsym(handle_, name);
  if (address == nullptr)
    return make_error(ErrorCode::kUnavailable, "{} ({}): has no function {}: it is too old or too new", name_,
                      path_.string(), name);
  return address;
}

std::vector<LibraryFolder> library_folders(const fs::path& prefix, std::string_view variable) {
  std::vector<LibraryFolder> folders;
  while (!variable.empty()) {
    const size_t end = std::min(variable.find(':'), variable.size());
    if (const std::string_view one = variable.substr(0, end); !one.empty())
      folders.push_back({fs::path(one), "DEEPINFER_CUDA_LIB_DIR"});
    variable.remove_prefix(std::min(end + 1, variable.size()));
  }
  folders.push_back({prefix / "lib", "beside the program"});
  // Where pip puts NVIDIA's packages: next to ours.
  for (const char* folder : {"nvidia/cu13/lib", "nvidia/nccl/lib"}) {
    std::error_code error;
    if (const fs::path path = prefix.parent_path() / folder; fs::is_directory(path, error))
      folders.push_back({path, "beside the Python package"});
  }
  const fs::path record = prefix / "share" / "deepinfer" / "cuda_library_dirs";
  std::ifstream file(record);
  for (std::string line; std::getline(file, line);) {
    if (const std::string_view folder = trimmed(line); !folder.empty())
      folders.push_back({fs::path(folder), "recorded at set-up in " + record.string()});
  }
  return folders;
}

std::vector<LibraryFolder> library_folders() {
  const char* variable = std::getenv("DEEPINFER_CUDA_LIB_DIR");
  return library_folders(install_prefix(), variable == nullptr ? "" : variable);
}

Result<SharedLibrary> load_library(const LibrarySpec& spec, const std::vector<LibraryFolder>& folders) {
  LibraryLoader loader(spec);
  for (const LibraryFolder& place : folders) {
    if (loader.try_folder(place)) return loader.finish(true);
  }
  for (const std::string& name : spec.files) {
    if (loader.try_file(name, "the loader's path")) return loader.finish(true);
  }
  return loader.finish(false);
}

Result<SharedLibrary> load_library(const LibrarySpec& spec) {
  return load_library(spec, library_folders());
}

}  // namespace deepinfer
