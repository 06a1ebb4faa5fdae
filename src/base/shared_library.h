// Libraries that are looked for when the program runs (cuBLASLt, NCCL, NVML), so that one binary starts on
// machines without them. A loaded library stays mapped until the process ends: a symbol never dangles.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "deepinfer/result.h"

namespace deepinfer {

// A library that was found, loaded and accepted. Copies are cheap and borrow nothing; any thread may use
// them.
class SharedLibrary {
 public:
  const std::string& name() const { return name_; }            // what messages call it: "cuBLASLt"
  const std::filesystem::path& path() const { return path_; }  // the file that the loader took

  // The address of a function: symbol<int(char*, unsigned)>("nvmlSystemGetDriverVersion"). The error names
  // the library and the file that lacks it.
  template <class Function>
  Result<Function*> symbol(const char* name) const {
    static_assert(std::is_function_v<Function>, "give the type of the function, as int(char*)");
    auto address = find(name);
    if (!address) return std::move(address).error();
    return reinterpret_cast<Function*>(*address);
  }

 private:
  friend class LibraryLoader;
  Result<void*> find(const char* name) const;

  std::string name_;
  std::filesystem::path path_;
  void* handle_ = nullptr;
};

// What is looked for, and what is good enough.
struct LibrarySpec {
  std::string name;                // "cuBLASLt"
  std::vector<std::string> files;  // tried in this order in each place: {"libcublasLt.so.13"}
  std::string remedy;              // ends the message when there is none: what to install or set
  // Called after a file is loaded; an error (too old, a symbol is missing) passes on to the next place.
  std::function<Result<void>(const SharedLibrary&)> check;
};

// A place to look in, and why it is one (for the message).
struct LibraryFolder {
  std::filesystem::path folder;
  std::string origin;
};

// The places before the loader's own path, in order: the folders of DEEPINFER_CUDA_LIB_DIR (separated by
// colons), the bundle (lib in install_prefix(), see base/paths.h), NVIDIA's Python packages beside ours, what
// the set-up recorded in <prefix>/share/deepinfer/cuda_library_dirs (a folder a line).
std::vector<LibraryFolder> library_folders();
// The same for another prefix and value of the variable, for tests.
std::vector<LibraryFolder> library_folders(const std::filesystem::path& prefix, std::string_view variable);

// Loads the first file that the loader takes and `check` accepts, from the folders in order, then by its bare
// name on the loader's path. The error lists every place with what was wrong there, then the remedy.
Result<SharedLibrary> load_library(const LibrarySpec& spec);
Result<SharedLibrary> load_library(const LibrarySpec& spec, const std::vector<LibraryFolder>& folders);

}  // namespace deepinfer
