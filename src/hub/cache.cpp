#include "hub/cache.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <system_error>

#include "base/check.h"
#include "hub/repo_info.h"

namespace deepinfer::hub {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "models--";
constexpr size_t kMaxIndex = 64 << 20;

std::string folder_name(const std::string& repo) {
  std::string name = std::string(kPrefix) + repo;
  for (size_t at = name.find('/'); at != std::string::npos; at = name.find('/')) name.replace(at, 1, "--");
  return name;
}

Error failed(const fs::path& path, const char* what, const std::error_code& error) {
  return make_error(ErrorCode::kModel, "{}: cannot {}: {}", path.string(), what, error.message());
}

// Beside the file that it will replace; another process has another name.
fs::path temporary(const fs::path& file) {
  return file.parent_path() / fmt::format(".{}.{}.tmp", file.filename().string(), getpid());
}

}  // namespace

std::optional<std::string> read_small(const fs::path& file, size_t limit) {
  std::error_code error;
  const auto size = fs::file_size(file, error);
  if (error || size > limit) return std::nullopt;
  std::ifstream in(file, std::ios::binary);
  std::string text(size, '\0');
  if (!in.read(text.data(), static_cast<std::streamsize>(size))) return std::nullopt;
  return text;
}

void sync_folder(const fs::path& folder) {
  const int fd = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;
  fsync(fd);  // some file systems cannot; then nothing better is to be had
  close(fd);
}

fs::path Cache::repo(const std::string& repo) const {
  return root_ / folder_name(repo);
}
fs::path Cache::blob(const std::string& repo, const std::string& etag) const {
  return this->repo(repo) / "blobs" / etag;
}
fs::path Cache::incomplete(const std::string& repo, const std::string& etag) const {
  return this->repo(repo) / "blobs" / (etag + ".incomplete");
}
fs::path Cache::locks(const std::string& repo) const {
  return root_ / ".locks" / folder_name(repo);
}
fs::path Cache::lock(const std::string& repo, const std::string& etag) const {
  return locks(repo) / (etag + ".lock");
}
fs::path Cache::snapshot(const std::string& repo, const std::string& commit) const {
  return this->repo(repo) / "snapshots" / commit;
}

std::vector<std::string> Cache::repos() const {
  std::vector<std::string> out;
  std::error_code error;
  for (fs::directory_iterator it(root_, error), end; !error && it != end; it.increment(error)) {
    std::string name = it->path().filename().string();
    if (!name.starts_with(kPrefix) || !it->is_directory(error)) continue;
    name.erase(0, kPrefix.size());
    const size_t dashes = name.find("--");
    if (dashes != std::string::npos) name.replace(dashes, 2, "/");
    out.push_back(name);  // an old name without ORG/ is one, too
  }
  std::sort(out.begin(), out.end());
  return out;
}

std::vector<std::string> Cache::commits(const std::string& repo) const {
  std::vector<std::pair<fs::file_time_type, std::string>> found;
  std::error_code error;
  for (fs::directory_iterator it(this->repo(repo) / "snapshots", error), end; !error && it != end;
       it.increment(error)) {
    std::error_code ignored;
    if (is_commit(it->path().filename().string()) && it->is_directory(ignored))
      found.emplace_back(it->last_write_time(ignored), it->path().filename().string());
  }
  std::sort(found.rbegin(), found.rend());
  std::vector<std::string> out;
  for (auto& [time, name] : found) out.push_back(std::move(name));
  return out;
}

std::optional<std::string> Cache::read_ref(const std::string& repo, const std::string& revision) const {
  if (!check_relative_path(revision, "revision")) return std::nullopt;
  std::optional<std::string> text = read_small(this->repo(repo) / "refs" / revision, 256);
  if (!text) return std::nullopt;
  while (!text->empty() && (text->back() == '\n' || text->back() == '\r' || text->back() == ' '))
    text->pop_back();
  if (!is_commit(*text)) return std::nullopt;
  return text;
}

Result<void> Cache::write_ref(const std::string& repo, const std::string& revision,
                              const std::string& commit) const {
  DI_TRY(check_relative_path(revision, "revision"));
  if (revision == commit || read_ref(repo, revision) == commit) return {};
  const fs::path file = this->repo(repo) / "refs" / revision;
  std::error_code error;
  fs::create_directories(file.parent_path(), error);
  if (error) return failed(file, "be made", error);
  const fs::path part = temporary(file);
  std::ofstream out(part, std::ios::binary | std::ios::trunc);
  out << commit;
  out.close();
  if (!out) {
    fs::remove(part, error);
    return make_error(ErrorCode::kModel, "{}: cannot be written", file.string());
  }
  fs::rename(part, file, error);
  if (error) return failed(file, "be written", error);
  sync_folder(file.parent_path());
  return {};
}

Result<void> Cache::link(const std::string& repo, const std::string& commit, const std::string& name,
                         const std::string& etag) const {
  DI_TRY(check_relative_path(name, repo));
  const fs::path file = snapshot(repo, commit) / name;
  fs::path target;
  for (auto depth = std::count(name.begin(), name.end(), '/') + 2; depth > 0; --depth) target /= "..";
  target /= fs::path("blobs") / etag;
  std::error_code error;
  if (fs::read_symlink(file, error) == target && !error) return {};
  fs::create_directories(file.parent_path(), error);
  if (error) return failed(file, "be made", error);
  const fs::path part = temporary(file);
  fs::remove(part, error);
  fs::create_symlink(target, part, error);
  if (error) return failed(file, "be made a link", error);
  fs::rename(part, file, error);
  if (error) return failed(file, "be made a link", error);
  sync_folder(file.parent_path());
  return {};
}

std::vector<Listed> Cache::files(const std::string& repo, const std::string& commit) const {
  std::vector<Listed> out;
  const fs::path folder = snapshot(repo, commit);
  std::error_code error;
  for (fs::recursive_directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    std::error_code ignored;
    const fs::file_status status = it->status(ignored);  // of what a link means
    if (!fs::is_regular_file(status)) continue;
    const auto size = fs::file_size(it->path(), ignored);
    out.push_back({it->path().lexically_relative(folder).generic_string(), ignored ? 0 : size});
  }
  std::sort(out.begin(), out.end(), [](const Listed& a, const Listed& b) { return a.name < b.name; });
  return out;
}

Result<std::optional<LocalModel>> Cache::find_in(const ModelRef& ref, const std::string& commit) const {
  const std::optional<LocalModel> nothing;
  const std::vector<Listed> there = files(ref.repo, commit);
  Result<Selection> chosen = select_files(there, ref.file, ref.repo);
  if (!chosen && chosen.error().code == ErrorCode::kNotFound) return nothing;
  if (!chosen) return std::move(chosen).error();
  const auto has = [&](const std::string& name) {
    return std::any_of(there.begin(), there.end(), [&](const Listed& f) { return f.name == name; });
  };
  const fs::path folder = snapshot(ref.repo, commit);
  if (!chosen->main.empty()) {
    // A split file whose last parts never came has fewer files than its name says.
    const std::string base = split_base(chosen->main);
    if (base != chosen->main) {
      const std::string count = chosen->main.substr(chosen->main.size() - 10, 5);
      if (std::stoul(count) != chosen->files.size()) return nothing;
    }
    return std::optional<LocalModel>({folder / chosen->main, commit});
  }
  if (!has("config.json") || !(has("tokenizer.json") || has("tokenizer.model"))) return nothing;
  if (chosen->needs_index) {
    const std::optional<std::string> index = read_small(folder / kIndexFile, kMaxIndex);
    if (!index) return nothing;
    const auto shards = shards_of_index(*index, (folder / kIndexFile).string());
    if (!shards || !std::all_of(shards->begin(), shards->end(), has)) return nothing;
  }
  return std::optional<LocalModel>({folder, commit});
}

Result<std::optional<LocalModel>> Cache::find(const ModelRef& ref, const std::string& revision) const {
  if (is_commit(revision)) return find_in(ref, revision);
  const std::optional<std::string> commit = read_ref(ref.repo, revision.empty() ? "main" : revision);
  if (commit) {
    DI_ASSIGN(std::optional<LocalModel> model, find_in(ref, *commit));
    if (model || !revision.empty()) return model;
  }
  if (!revision.empty()) return std::optional<LocalModel>();
  for (const std::string& other : commits(ref.repo)) {
    if (commit == other) continue;
    DI_ASSIGN(std::optional<LocalModel> model, find_in(ref, other));
    if (model) return model;
  }
  return std::optional<LocalModel>();
}

}  // namespace deepinfer::hub
