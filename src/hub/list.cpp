#include "hub/list.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <set>

#include "base/paths.h"
#include "hub/cache.h"
#include "hub/repo_info.h"
#include "hub/select.h"

namespace deepinfer::hub {
namespace {

namespace fs = std::filesystem;
using Time = std::chrono::system_clock::time_point;

constexpr size_t kMaxConfig = 1 << 20;

Time last_use(const fs::path& file) {
  struct stat info{};
  if (stat(file.c_str(), &info) != 0) return {};
  return std::chrono::system_clock::from_time_t(std::max(info.st_atime, info.st_mtime));
}

std::string quantization_or_name(const GgufModel& m) {
  return m.quantization.empty() ? m.parts.front().name : m.quantization;
}

class Lister {
 public:
  Lister(const Cache& cache, std::vector<ListedModel>& out) : cache_(cache), out_(out) {}

  void add(const std::string& repo) {
    const size_t before = out_.size();
    std::set<std::string> shown;
    const auto main = cache_.read_ref(repo, "main");
    std::vector<std::string> commits = cache_.commits(repo);
    // What --model takes without a revision comes first; the same blobs are not shown again.
    if (const auto it = main ? std::find(commits.begin(), commits.end(), *main) : commits.end();
        it != commits.end())
      std::rotate(commits.begin(), it, it + 1);
    for (const std::string& commit : commits) {
      const std::string suffix = main && commit != *main ? " @" + commit.substr(0, 7) : "";
      add_snapshot(repo, commit, suffix, shown);
    }
    add_incomplete(repo);
    if (out_.size() == before) out_.push_back({repo, "no model", blobs_size(repo), cache_.repo(repo), {}});
  }

 private:
  void add_snapshot(const std::string& repo, const std::string& commit, const std::string& suffix,
                    std::set<std::string>& shown) {
    const fs::path folder = cache_.snapshot(repo, commit);
    const std::vector<Listed> files = cache_.files(repo, commit);
    ListedModel weights{repo + suffix, "", 0, folder, {}};
    std::string blobs;
    for (const Listed& f : files) {
      if (f.name.find('/') != std::string::npos || f.name.ends_with(".gguf")) continue;
      weights.size += f.size;
      if (!f.name.ends_with(".safetensors")) continue;
      std::error_code error;
      blobs += fs::read_symlink(folder / f.name, error).filename().string() + " ";
      weights.used = std::max(weights.used, last_use(folder / f.name));
    }
    if (!blobs.empty() && shown.insert(blobs).second) {
      weights.file = weights_text(read_small(folder / "config.json", kMaxConfig).value_or(""));
      const auto found = cache_.find({repo, ""}, commit);
      if (!found || !*found) weights.file += ", files are missing";
      out_.push_back(std::move(weights));
    }
    for (const GgufModel& m : gguf_models(files)) {
      const fs::path path = folder / m.parts.front().name;
      std::error_code error;
      if (!shown.insert(fs::read_symlink(path, error).filename().string()).second) continue;
      out_.push_back({repo + suffix, quantization_or_name(m), m.size, path, last_use(path)});
    }
  }

  void add_incomplete(const std::string& repo) {
    ListedModel rest{repo, "not complete", 0, cache_.repo(repo) / "blobs", {}};
    each_blob(repo, [&](const fs::path& path, uint64_t size) {
      if (path.extension() != ".incomplete") return;
      rest.size += size;
      rest.used = std::max(rest.used, last_use(path));
    });
    if (rest.size > 0) out_.push_back(std::move(rest));
  }

  uint64_t blobs_size(const std::string& repo) {
    uint64_t sum = 0;
    each_blob(repo, [&](const fs::path&, uint64_t size) { sum += size; });
    return sum;
  }

  template <class Visit>
  void each_blob(const std::string& repo, Visit visit) {
    std::error_code error;
    for (fs::directory_iterator it(cache_.repo(repo) / "blobs", error), end; !error && it != end;
         it.increment(error)) {
      std::error_code ignored;
      const auto size = fs::file_size(it->path(), ignored);
      if (!ignored) visit(it->path(), size);
    }
  }

  const Cache& cache_;
  std::vector<ListedModel>& out_;
};

// Models that quickstart.sh or a user put into this program's own cache.
void add_own(const fs::path& folder, std::vector<ListedModel>& out) {
  std::vector<ListedModel> found;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    const fs::path path = it->path();
    std::error_code ignored;
    if (path.extension() != ".gguf" || !it->is_regular_file(ignored)) continue;
    const bool is_default = path.filename() == kDefaultModelFile;
    found.push_back({is_default ? kDefaultModelName : path.string(),
                     quantization_of(path.filename().string()), it->file_size(ignored), path,
                     last_use(path)});
  }
  std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  out.insert(out.end(), found.begin(), found.end());
}

}  // namespace

std::vector<ListedModel> list_models(const Settings& settings) {
  std::vector<ListedModel> out;
  const Cache cache(settings.cache);
  Lister lister(cache, out);
  for (const std::string& repo : cache.repos()) lister.add(repo);
  add_own(settings.own_cache / "models", out);
  return out;
}

std::string ago_text(std::chrono::seconds age) {
  const int64_t s = age.count();
  const auto count = [](int64_t n, const char* unit) {
    return fmt::format("{} {}{} ago", n, unit, n == 1 ? "" : "s");
  };
  if (s < 60) return "just now";
  if (s < 3600) return count(s / 60, "minute");
  if (s < 86400) return count(s / 3600, "hour");
  if (s < 2 * 86400) return "yesterday";
  return count(s / 86400, "day");
}

std::string list_text(const std::vector<ListedModel>& models, Time now) {
  if (models.empty())
    return "No models yet. deepinfer pull ORG/NAME fetches one; quickstart.sh fetches the default model.\n";
  size_t name = 5, file = 4;
  for (const ListedModel& m : models) {
    name = std::max(name, m.name.size());
    file = std::max(file, m.file.size());
  }
  std::string out = fmt::format("{:<{}}  {:<{}}  {:>9}  {:<14}  {}\n", "MODEL", name, "FILE", file, "SIZE",
                                "LAST USED", "WHERE");
  for (const ListedModel& m : models) {
    const auto age = std::chrono::duration_cast<std::chrono::seconds>(now - m.used);
    out += fmt::format("{:<{}}  {:<{}}  {:>9}  {:<14}  {}\n", m.name, name, m.file, file, size_text(m.size),
                       m.used == Time() ? "" : ago_text(age), m.path.string());
  }
  return out;
}

}  // namespace deepinfer::hub
