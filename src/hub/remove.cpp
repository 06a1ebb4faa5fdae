#include "hub/remove.h"

#include <algorithm>
#include <map>
#include <set>

#include "base/check.h"
#include "base/paths.h"
#include "hub/cache.h"
#include "hub/file_lock.h"
#include "hub/select.h"

namespace deepinfer::hub {
namespace {

namespace fs = std::filesystem;

uint64_t size_below(const fs::path& folder) {
  uint64_t sum = 0;
  std::error_code error;
  for (fs::recursive_directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    std::error_code ignored;
    if (fs::is_regular_file(it->symlink_status(ignored))) sum += it->file_size(ignored);
  }
  return sum;
}

Removal whole(const Cache& cache, const std::string& repo) {
  Removal r{repo, {cache.repo(repo)}, {}, size_below(cache.repo(repo))};
  return r;
}

// The blob that a link of a snapshot means; empty for what is no link.
std::string blob_of(const fs::path& link) {
  std::error_code error;
  const fs::path target = fs::read_symlink(link, error);
  return error ? "" : target.filename().string();
}

// Of every snapshot the links that `ref.file` chooses.
Result<std::set<fs::path>> chosen_links(const Cache& cache, const ModelRef& ref) {
  std::set<fs::path> links;
  for (const std::string& commit : cache.commits(ref.repo)) {
    const auto selection = select_files(cache.files(ref.repo, commit), ref.file, ref.repo);
    if (!selection && selection.error().code != ErrorCode::kNotFound) return selection.error();
    if (!selection) continue;
    for (const std::string& name : selection->files) links.insert(cache.snapshot(ref.repo, commit) / name);
  }
  return links;
}

std::vector<fs::path> all_links(const Cache& cache, const std::string& repo) {
  std::vector<fs::path> out;
  std::error_code error;
  for (fs::recursive_directory_iterator it(cache.repo(repo) / "snapshots", error), end; !error && it != end;
       it.increment(error)) {
    std::error_code ignored;
    if (!fs::is_directory(it->symlink_status(ignored))) out.push_back(it->path());
  }
  return out;
}

// Folders of snapshots that a removal left empty, from the inside out.
void remove_empty(const fs::path& root) {
  std::vector<fs::path> folders;
  std::error_code error;
  for (fs::recursive_directory_iterator it(root, error), end; !error && it != end; it.increment(error)) {
    std::error_code ignored;
    if (fs::is_directory(it->symlink_status(ignored))) folders.push_back(it->path());
  }
  std::sort(folders.rbegin(), folders.rend());
  for (const fs::path& folder : folders) fs::remove(folder, error);  // fails where something is inside
}

// References to snapshots that are gone.
void remove_dead_refs(const Cache& cache, const std::string& repo) {
  const fs::path root = cache.repo(repo) / "refs";
  std::vector<fs::path> dead;
  std::error_code error;
  for (fs::recursive_directory_iterator it(root, error), end; !error && it != end; it.increment(error)) {
    const auto commit = cache.read_ref(repo, it->path().lexically_relative(root).generic_string());
    std::error_code ignored;
    if (commit && !fs::exists(cache.snapshot(repo, *commit), ignored)) dead.push_back(it->path());
  }
  for (const fs::path& file : dead) fs::remove(file, error);
}

// The lock of every file that was ever fetched: whoever fetches one now holds it.
Result<std::vector<FileLock>> lock_all(const Cache& cache, const std::string& repo) {
  std::vector<FileLock> held;
  std::error_code error;
  for (fs::directory_iterator it(cache.locks(repo), error), end; !error && it != end; it.increment(error)) {
    DI_ASSIGN(std::optional<FileLock> lock, FileLock::try_take(it->path()));
    if (!lock)
      return make_error(ErrorCode::kModel, "{}: another process fetches it now: wait for its end, or stop it",
                        repo);
    held.push_back(std::move(*lock));
  }
  return held;
}

}  // namespace

std::string Removal::text() const {
  std::string out = fmt::format("{} ({})", size_text(bytes), repo.empty() ? "the default model" : repo);
  for (const fs::path& p : folders) out += "\n  " + p.string();
  for (const fs::path& p : files) out += "\n  " + p.string();
  return out;
}

Result<Removal> plan_default_removal(const Settings& settings) {
  const fs::path file = settings.own_cache / "models" / kDefaultModelFile;
  std::error_code error;
  const auto size = fs::file_size(file, error);
  if (error) return make_error(ErrorCode::kNotFound, "{}: not there: {}", kDefaultModelName, file.string());
  return Removal{"", {}, {file}, size};
}

Result<Removal> plan_removal(const Settings& settings, const ModelRef& ref) {
  const Cache cache(settings.cache);
  std::error_code error;
  if (!fs::is_directory(cache.repo(ref.repo), error))
    return make_error(ErrorCode::kNotFound, "{}: not in the cache: no {}; deepinfer list shows what is there",
                      ref.repo, cache.repo(ref.repo).string());
  if (ref.file.empty()) return whole(cache, ref.repo);
  DI_ASSIGN(const std::set<fs::path> links, chosen_links(cache, ref));
  if (links.empty())
    return make_error(ErrorCode::kNotFound, "{}: no file and no quantization '{}' in the cache ({})",
                      ref.repo, printable(ref.file), cache.repo(ref.repo).string());
  std::set<std::string> needed;
  bool others = false;
  for (const fs::path& link : all_links(cache, ref.repo))
    if (!links.contains(link)) {
      others = true;
      needed.insert(blob_of(link));
    }
  if (!others) return whole(cache, ref.repo);
  Removal r{ref.repo, {}, {links.begin(), links.end()}, 0};
  std::set<std::string> blobs;
  for (const fs::path& link : links) blobs.insert(blob_of(link));
  for (const std::string& blob : blobs) {
    if (blob.empty() || needed.contains(blob)) continue;
    const fs::path path = cache.blob(ref.repo, blob);
    const auto size = fs::file_size(path, error);
    if (error) continue;
    r.files.push_back(path);
    r.bytes += size;
  }
  return r;
}

Result<void> remove(const Settings& settings, const Removal& removal) {
  const Cache cache(settings.cache);
  std::vector<FileLock> locks;
  if (!removal.repo.empty()) {
    DI_ASSIGN(locks, lock_all(cache, removal.repo));
  }
  std::error_code error;
  const auto failed = [&](const fs::path& path) {
    return make_error(ErrorCode::kModel, "{}: cannot be removed: {}", path.string(), error.message());
  };
  for (const fs::path& file : removal.files)
    if (!fs::remove(file, error) && error) return failed(file);
  for (const fs::path& folder : removal.folders)
    if (fs::remove_all(folder, error); error) return failed(folder);
  if (!removal.folders.empty()) {
    fs::remove_all(cache.locks(removal.repo), error);
  } else if (!removal.repo.empty()) {
    remove_empty(cache.repo(removal.repo) / "snapshots");
    remove_dead_refs(cache, removal.repo);
  }
  return {};
}

}  // namespace deepinfer::hub
