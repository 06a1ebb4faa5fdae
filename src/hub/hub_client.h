// The hub's protocol: where things are, who gets the token, which redirects are followed, what is tried
// again.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>

#include "deepinfer/result.h"
#include "hub/http_client.h"
#include "hub/hub_error.h"
#include "hub/repo_info.h"
#include "hub/settings.h"

namespace deepinfer::hub {

// A file of a commit, and where it was found last. Any thread.
class FileSource {
 public:
  FileSource(std::string repo, std::string commit, RemoteFile file)
      : repo_(std::move(repo)), commit_(std::move(commit)), file_(std::move(file)) {}

  const std::string& repo() const { return repo_; }
  const std::string& commit() const { return commit_; }
  const RemoteFile& file() const { return file_; }
  Asked asked() const { return {repo_, commit_, file_.name}; }

  // The address behind the hub's redirects, good for a while; empty: unknown.
  std::string location() const;
  void set_location(const std::string& url);

 private:
  std::string repo_, commit_;
  RemoteFile file_;
  mutable std::mutex mutex_;
  std::string location_;
};

// Bytes [begin, end) of a file.
struct Range {
  uint64_t begin = 0, end = 0;
};

struct Fetched {
  enum class End {
    kDone,          // the server has sent all that it will
    kRangeIgnored,  // it sends the whole file whatever is asked for; nothing was delivered
    kStopped,       // by the sink
    kRetry,
    kFatal,
  };
  End end = End::kDone;
  Error error;       // of kRetry and kFatal
  double wait = -1;  // seconds that the server asks for; negative: none
};

// Any thread, each with its own HttpClient.
class HubClient {
 public:
  HubClient(const Settings& settings, std::function<bool()> stop)
      : settings_(settings), stop_(std::move(stop)) {}

  const Settings& settings() const { return settings_; }
  // By the user, or because one of the threads of a pull has failed: the others end soon.
  bool stopped() const { return abandoned_ || stop_(); }
  void abandon() { abandoned_ = true; }

  // The commit that a revision means, and its files. Tries again what may work later.
  Result<RepoInfo> info(HttpClient& http, const std::string& repo, const std::string& revision) const;

  // Hash and size of a file whose listing lacks them.
  Result<RemoteFile> describe(HttpClient& http, const std::string& repo, const std::string& commit,
                              const std::string& name) const;

  // One try. Without a range the whole file. The sink gets at most the bytes that were asked for, in order;
  // false stops.
  Fetched fetch(HttpClient& http, FileSource& source, const std::optional<Range>& range,
                const std::function<bool(std::string_view)>& sink) const;

  // Sleeps before try `attempt` (from 1); false when it was stopped.
  bool wait(int attempt, double asked) const;

 private:
  struct Call;
  HttpResult follow(HttpClient& http, Call& call) const;
  Result<HttpHead> retried(HttpClient& http, Call& call, const Asked& asked) const;
  Fetched judge(const HttpResult& result, const Call& call, FileSource& source) const;
  std::string resolve_url(const std::string& repo, const std::string& commit, const std::string& name) const;

  const Settings& settings_;
  std::function<bool()> stop_;
  std::atomic<bool> abandoned_{false};
};

// For addresses: all but letters, digits and -._~ as %XX, slashes too unless `keep_slashes`.
std::string url_escaped(std::string_view text, bool keep_slashes);

// The first byte and the size of "bytes 0-99/1000"; nothing when it is none. A size of "*" is 0.
struct ContentRange {
  uint64_t begin = 0, end = 0, size = 0;  // [begin, end)
};
std::optional<ContentRange> parse_content_range(std::string_view text);

}  // namespace deepinfer::hub
