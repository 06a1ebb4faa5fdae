// The hub's cache on disk, as huggingface_hub lays it out, so that each uses what the other fetched:
//   models--ORG--NAME/blobs/<hash>                 the files, <hash>.incomplete while they come
//   models--ORG--NAME/refs/<revision>              a commit
//   models--ORG--NAME/snapshots/<commit>/<name>    links to blobs
//   .locks/models--ORG--NAME/<hash>.lock           see file_lock.h
// Everything here is a file operation; any thread may call it.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "deepinfer/result.h"
#include "hub/model_ref.h"
#include "hub/select.h"

namespace deepinfer::hub {

// A model in the cache that has all of its files.
struct LocalModel {
  std::filesystem::path path;  // what the engine opens: a GGUF file, or the folder of the snapshot
  std::string commit;
};

class Cache {
 public:
  explicit Cache(std::filesystem::path root) : root_(std::move(root)) {}

  const std::filesystem::path& root() const { return root_; }
  std::filesystem::path repo(const std::string& repo) const;
  std::filesystem::path blob(const std::string& repo, const std::string& etag) const;
  std::filesystem::path incomplete(const std::string& repo, const std::string& etag) const;
  std::filesystem::path locks(const std::string& repo) const;
  std::filesystem::path lock(const std::string& repo, const std::string& etag) const;
  std::filesystem::path snapshot(const std::string& repo, const std::string& commit) const;

  // "ORG/NAME" of each folder that is one.
  std::vector<std::string> repos() const;
  std::vector<std::string> commits(const std::string& repo) const;  // newest first
  std::optional<std::string> read_ref(const std::string& repo, const std::string& revision) const;
  Result<void> write_ref(const std::string& repo, const std::string& revision,
                         const std::string& commit) const;

  // Makes snapshots/<commit>/<name> a link to the blob, replacing what is there. `name` is checked.
  Result<void> link(const std::string& repo, const std::string& commit, const std::string& name,
                    const std::string& etag) const;

  // The files of a snapshot whose blobs are there.
  std::vector<Listed> files(const std::string& repo, const std::string& commit) const;

  // Nothing: it must be fetched. `revision` empty: what refs/main names, else the newest that is complete.
  // kModel: several files fit.
  Result<std::optional<LocalModel>> find(const ModelRef& ref, const std::string& revision) const;

 private:
  Result<std::optional<LocalModel>> find_in(const ModelRef& ref, const std::string& commit) const;

  std::filesystem::path root_;
};

// The whole file when it has at most `limit` bytes.
std::optional<std::string> read_small(const std::filesystem::path& file, size_t limit);

// Makes what was renamed in a folder last.
void sync_folder(const std::filesystem::path& folder);

}  // namespace deepinfer::hub
