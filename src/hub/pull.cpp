#include "hub/pull.h"

#include <algorithm>
#include <atomic>
#include <deque>
#include <list>
#include <mutex>
#include <thread>
#include <vector>

#include "base/check.h"
#include "hub/blob_writer.h"
#include "hub/curl_library.h"
#include "hub/download.h"
#include "hub/file_lock.h"
#include "hub/hub_client.h"
#include "hub/select.h"

namespace deepinfer::hub {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxIndex = 64 << 20;

// One pull: a commit of a repository, its listing, its connections.
class Pull {
 public:
  Pull(const Settings& settings, const ModelRef& ref, Progress& progress, HubClient& hub,
       const std::shared_ptr<const CurlLibrary>& curl)
      : settings_(settings), ref_(ref), progress_(progress), hub_(hub), cache_(settings.cache) {
    for (int i = 0; i < std::max(settings.connections, 1); ++i)
      clients_.emplace_back(curl, settings, [&hub] { return hub.stopped(); });
  }

  Result<Pulled> run(const std::string& revision);

 private:
  Result<RemoteFile> find(const std::string& name);
  Result<void> add_shards(std::vector<std::string>& names);
  Result<void> get(const std::vector<std::string>& names);
  bool is_there(const RemoteFile& file) const;
  uint64_t missing(const RemoteFile& file) const;
  Result<void> get_small(std::deque<RemoteFile> files);
  Result<void> get_one(const RemoteFile& file, const std::vector<HttpClient*>& clients);
  Result<void> fetch(const RemoteFile& file, const std::vector<HttpClient*>& clients);

  const Settings& settings_;
  const ModelRef& ref_;
  Progress& progress_;
  HubClient& hub_;
  Cache cache_;
  std::list<HttpClient> clients_;
  RepoInfo info_;
  uint64_t files_ = 0;
  std::atomic<uint64_t> fetched_{0};
};

Result<Pulled> Pull::run(const std::string& revision) {
  const std::string wanted = revision.empty() ? "main" : revision;
  DI_TRY(check_relative_path(wanted, "revision"));
  DI_ASSIGN(info_, hub_.info(clients_.front(), ref_.repo, wanted));
  std::vector<Listed> listed;
  for (const RemoteFile& f : info_.files) listed.push_back({f.name, f.size});
  DI_ASSIGN(Selection selection, select_files(listed, ref_.file, ref_.repo));
  DI_TRY(get(selection.files));
  if (selection.needs_index) {
    std::vector<std::string> shards;
    DI_TRY(add_shards(shards));
    DI_TRY(get(shards));
  }
  DI_TRY(cache_.write_ref(ref_.repo, wanted, info_.commit));
  const fs::path folder = cache_.snapshot(ref_.repo, info_.commit);
  return Pulled{selection.main.empty() ? folder : folder / selection.main, info_.commit, files_, fetched_};
}

Result<RemoteFile> Pull::find(const std::string& name) {
  for (const RemoteFile& f : info_.files) {
    if (f.name != name) continue;
    if (!f.etag.empty()) return f;
    return hub_.describe(clients_.front(), ref_.repo, info_.commit, name);
  }
  return make_error(ErrorCode::kModel, "{}: {} names {}, which the repository does not have", ref_.repo,
                    kIndexFile, printable(name));
}

Result<void> Pull::add_shards(std::vector<std::string>& names) {
  const fs::path file = cache_.snapshot(ref_.repo, info_.commit) / kIndexFile;
  const std::optional<std::string> text = read_small(file, kMaxIndex);
  if (!text)
    return make_error(ErrorCode::kModel, "{}: cannot be read, or has more than {} bytes", file.string(),
                      kMaxIndex);
  DI_ASSIGN(names, shards_of_index(*text, file.string()));
  return {};
}

bool Pull::is_there(const RemoteFile& file) const {
  std::error_code error;
  return fs::file_size(cache_.blob(ref_.repo, file.etag), error) == file.size && !error;
}

uint64_t Pull::missing(const RemoteFile& file) const {
  if (is_there(file)) return 0;
  std::error_code error;
  const auto begun = fs::file_size(cache_.incomplete(ref_.repo, file.etag), error);
  return error || begun > file.size ? file.size : file.size - begun;
}

Result<void> Pull::get(const std::vector<std::string>& names) {
  std::deque<RemoteFile> small;
  std::vector<RemoteFile> large;
  uint64_t need = 0, size = 0;
  for (const std::string& name : names) {
    DI_ASSIGN(RemoteFile file, find(name));
    if (size > UINT64_MAX / 2 || need > UINT64_MAX / 2)
      return make_error(ErrorCode::kModel, "{}: the announced sizes are too large", ref_.repo);
    need += missing(file);
    size += file.size;
    if (file.size > settings_.piece_bytes)
      large.push_back(std::move(file));
    else
      small.push_back(std::move(file));
  }
  DI_TRY(check_space(cache_.repo(ref_.repo), need));
  files_ += names.size();
  progress_.expect(names.size(), size);
  DI_TRY(get_small(std::move(small)));
  std::vector<HttpClient*> all;
  for (HttpClient& c : clients_) all.push_back(&c);
  for (const RemoteFile& file : large) DI_TRY(get_one(file, all));
  return {};
}

// One connection a file, several files at a time.
Result<void> Pull::get_small(std::deque<RemoteFile> files) {
  std::mutex mutex;
  std::optional<Error> first;
  const auto work = [&](HttpClient& http) {
    for (;;) {
      std::unique_lock lock(mutex);
      if (first || files.empty()) return;
      const RemoteFile file = std::move(files.front());
      files.pop_front();
      lock.unlock();
      Result<void> got = get_one(file, {&http});
      if (got) continue;
      lock.lock();
      if (!first) first = std::move(got).error();
      hub_.abandon();
    }
  };
  std::vector<std::thread> threads;
  const size_t count = std::min(files.size(), clients_.size());
  for (auto it = clients_.begin(); threads.size() < count; ++it) threads.emplace_back([&, it] { work(*it); });
  for (std::thread& t : threads) t.join();
  if (first) return *first;
  return {};
}

Result<void> Pull::get_one(const RemoteFile& file, const std::vector<HttpClient*>& clients) {
  const auto waiting = [&] {
    progress_.note(fmt::format("{}: another process fetches {}: waiting for it", ref_.repo, file.name));
  };
  DI_ASSIGN(const FileLock lock,
            FileLock::take(cache_.lock(ref_.repo, file.etag), waiting, [&] { return hub_.stopped(); }));
  if (is_there(file)) {
    progress_.had(file.size);
  } else {
    DI_TRY(fetch(file, clients));
  }
  DI_TRY(cache_.link(ref_.repo, info_.commit, file.name, file.etag));
  progress_.finished_file(file.name, file.size);
  return {};
}

Result<void> Pull::fetch(const RemoteFile& file, const std::vector<HttpClient*>& clients) {
  FileSource source(ref_.repo, info_.commit, file);
  for (;;) {
    DI_ASSIGN(BlobWriter writer, BlobWriter::open(cache_.incomplete(ref_.repo, file.etag), file,
                                                  [&] { return hub_.stopped(); }));
    const bool resumed = writer.resumed();
    progress_.had(writer.size());
    DI_TRY(Download(hub_, source, writer, progress_).run(clients));
    bool wrong_hash = false;
    Result<void> done = writer.finish(cache_.blob(ref_.repo, file.etag), wrong_hash);
    if (done) break;
    // The beginning may be what a crash of the machine left: once more, from nothing.
    if (!wrong_hash || !resumed) return done;
    progress_.lost(file.size);
    progress_.note(
        fmt::format("{}: {}: what was there before is wrong: fetching it anew", ref_.repo, file.name));
  }
  ++fetched_;
  return {};
}

}  // namespace

Result<Pulled> pull(const Settings& settings, const ModelRef& ref, const std::string& revision,
                    Progress& progress, const std::function<bool()>& stop) {
  if (settings.offline)
    return make_error(
        ErrorCode::kModel,
        "{}: not in the cache ({}), and HF_HUB_OFFLINE forbids to fetch it: unset it, or copy the model "
        "there",
        ref.text(), settings.cache.string());
  DI_ASSIGN(const std::shared_ptr<const CurlLibrary> curl, CurlLibrary::load());
  HubClient hub(settings, stop);
  return Pull(settings, ref, progress, hub, curl).run(revision);
}

}  // namespace deepinfer::hub
