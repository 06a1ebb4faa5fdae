#include "hub/hub_client.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <thread>

#include "base/check.h"
#include "hub/model_ref.h"

namespace deepinfer::hub {
namespace {

constexpr int kMaxRedirects = 10;
constexpr size_t kMaxListing = 32 << 20;
constexpr double kLongestDelay = 20;

std::optional<uint64_t> number(std::string_view text) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || text.empty()) return std::nullopt;
  return value;
}

Fetched fatal(Error error) {
  return {Fetched::End::kFatal, std::move(error), -1};
}

}  // namespace

std::string url_escaped(std::string_view text, bool keep_slashes) {
  std::string out;
  for (const char c : text) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                       c == '-' || c == '.' || c == '_' || c == '~' || (c == '/' && keep_slashes);
    if (plain)
      out += c;
    else
      out += fmt::format("%{:02X}", static_cast<unsigned char>(c));
  }
  return out;
}

std::optional<ContentRange> parse_content_range(std::string_view text) {
  if (!text.starts_with("bytes ")) return std::nullopt;
  text.remove_prefix(6);
  const size_t dash = text.find('-');
  const size_t slash = text.find('/');
  if (dash == std::string_view::npos || slash == std::string_view::npos || dash > slash) return std::nullopt;
  const auto begin = number(text.substr(0, dash));
  const auto last = number(text.substr(dash + 1, slash - dash - 1));
  const std::string_view size = text.substr(slash + 1);
  const auto total = size == "*" ? std::optional<uint64_t>(0) : number(size);
  if (!begin || !last || !total || *last < *begin || *last == UINT64_MAX) return std::nullopt;
  return ContentRange{*begin, *last + 1, *total};
}

std::string FileSource::location() const {
  std::lock_guard lock(mutex_);
  return location_;
}

void FileSource::set_location(const std::string& url) {
  std::lock_guard lock(mutex_);
  location_ = url;
}

// One request through its redirects.
struct HubClient::Call {
  std::string url;
  bool head = false;
  bool stay = false;  // a redirect to another host is the answer: its headers describe the file
  std::vector<std::string> headers;
  std::function<bool(std::string_view)> on_body;
  // Of each answer of the hub's own host: an error ends the call.
  std::function<Result<void>(const HttpHead&)> on_hub;
  std::function<bool(const HttpHead&)> on_head;  // of the last answer

  std::string error;             // why a redirect was not followed
  std::optional<Error> refused;  // what on_hub said
};

HttpResult HubClient::follow(HttpClient& http, Call& call) const {
  const std::optional<Origin> home = http.origin(settings_.endpoint);
  for (int hop = 0;; ++hop) {
    const std::optional<Origin> here = http.origin(call.url);
    if (!here)
      return {.end = HttpEnd::kRefused,
              .head = {},
              .error = fmt::format("no http address: '{}'", printable(call.url))};
    const bool at_home = home && *here == *home;
    HttpRequest request{
        .url = call.url, .head = call.head, .headers = call.headers, .on_head = {}, .on_body = {}};
    if (at_home && !settings_.token.empty())
      request.headers.push_back("Authorization: Bearer " + settings_.token);
    request.on_head = [&](const HttpHead& head) {
      if (at_home && call.on_hub && head.status < 400)
        if (Result<void> fine = call.on_hub(head); !fine) {
          call.refused = std::move(fine).error();
          return false;
        }
      if (head.is_redirect() || head.status >= 300) return false;
      return !call.on_head || call.on_head(head);
    };
    request.on_body = call.on_body;
    HttpResult result = http.send(request);
    if (call.refused || !result.head.is_redirect()) return result;
    const std::optional<Origin> there = http.origin(result.head.redirect);
    if (call.stay && there != here) return result;
    result.end = HttpEnd::kRefused;
    if (hop >= kMaxRedirects) {
      result.error = fmt::format("more than {} redirects", kMaxRedirects);
      return result;
    }
    if (!there || (here->scheme == "https" && there->scheme != "https")) {
      result.error = fmt::format("a redirect to '{}'", printable(result.head.redirect));
      return result;
    }
    call.url = result.head.redirect;
  }
}

bool HubClient::wait(int attempt, double asked) const {
  using Clock = std::chrono::steady_clock;
  const double own = std::min(settings_.backoff_seconds * std::exp2(attempt - 1), kLongestDelay);
  const auto end = Clock::now() + std::chrono::duration<double>(std::max(own, asked));
  while (Clock::now() < end) {
    if (stopped()) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return !stopped();
}

Result<HttpHead> HubClient::retried(HttpClient& http, Call& call, const Asked& asked) const {
  const std::string url = call.url;
  for (int attempt = 1;; ++attempt) {
    call.url = url;
    const HttpResult result = follow(http, call);
    if (call.refused) return *call.refused;
    if (result.end == HttpEnd::kCancelled || stopped()) return make_error(ErrorCode::kCancelled, "stopped");
    if (result.end == HttpEnd::kRefused)
      return make_error(ErrorCode::kModel, "{}: {}: {}", asked.repo, call.url, result.error);
    const bool answered = result.end != HttpEnd::kFailed;
    // on_body stops what is too long.
    if (answered && result.head.status < 300 && result.end == HttpEnd::kStopped)
      return make_error(ErrorCode::kModel, "{}: {}: an answer of more than {} bytes", asked.repo, call.url,
                        kMaxListing);
    if (answered && result.head.status < 400) return result.head;
    if (answered && !may_work_later(result.head.status)) return status_error(settings_, asked, result.head);
    if (attempt >= settings_.attempts)
      return answered ? status_error(settings_, asked, result.head)
                      : make_error(ErrorCode::kModel,
                                   "{}: {} cannot be reached: {} (HF_HUB_OFFLINE=1 uses what the cache has)",
                                   asked.repo, settings_.endpoint, result.error);
    if (!wait(attempt, retry_after(result.head))) return make_error(ErrorCode::kCancelled, "stopped");
  }
}

Result<RepoInfo> HubClient::info(HttpClient& http, const std::string& repo,
                                 const std::string& revision) const {
  std::string body;
  Call call;
  call.url = fmt::format("{}/api/models/{}/revision/{}?blobs=true", settings_.endpoint, repo,
                         url_escaped(revision, false));
  call.headers = {"Accept: application/json"};
  call.on_head = [&](const HttpHead&) {
    body.clear();
    return true;
  };
  call.on_body = [&](std::string_view bytes) {
    body += bytes;
    return body.size() <= kMaxListing;
  };
  DI_ASSIGN(const HttpHead head, retried(http, call, {repo, revision, ""}));
  if (head.status != 200)
    return make_error(ErrorCode::kModel, "{}: {} answers {}, expected 200", repo, settings_.endpoint,
                      head.status);
  return parse_repo_info(body, fmt::format("{}: the listing of {}", repo, settings_.endpoint));
}

Result<RemoteFile> HubClient::describe(HttpClient& http, const std::string& repo, const std::string& commit,
                                       const std::string& name) const {
  Call call;
  call.url = resolve_url(repo, commit, name);
  call.head = true;
  call.stay = true;
  call.headers = {"Accept-Encoding: identity"};
  DI_ASSIGN(const HttpHead head, retried(http, call, {repo, commit, name}));
  const std::string linked = head.header("x-linked-etag");
  const std::string size = head.header("x-linked-size");
  RemoteFile file{name, plain_etag(linked.empty() ? head.header("etag") : linked), 0};
  const auto bytes = number(!size.empty() || head.is_redirect() ? size : head.header("content-length"));
  if (!is_blob_hash(file.etag) || !bytes)
    return make_error(
        ErrorCode::kModel,
        "{}: {} gives no hash and size of {}: got ETag '{}', size '{}', expected a SHA-1 or SHA-256; is "
        "HF_ENDPOINT a hub?",
        repo, settings_.endpoint, name, printable(file.etag), printable(size));
  file.size = *bytes;
  return file;
}

std::string HubClient::resolve_url(const std::string& repo, const std::string& commit,
                                   const std::string& name) const {
  return fmt::format("{}/{}/resolve/{}/{}", settings_.endpoint, repo, commit, url_escaped(name, true));
}

Fetched HubClient::judge(const HttpResult& result, const Call& call, FileSource& source) const {
  const std::string& name = source.file().name;
  if (call.refused) return fatal(*call.refused);
  if (result.end == HttpEnd::kCancelled) return {Fetched::End::kStopped, {}, -1};
  if (result.end == HttpEnd::kRefused)
    return fatal(make_error(ErrorCode::kModel, "{}: {}: {}", source.repo(), name, result.error));
  if (result.end == HttpEnd::kFailed) {
    source.set_location("");
    return {Fetched::End::kRetry,
            make_error(ErrorCode::kModel, "{}: {}: the connection broke off: {}", source.repo(), name,
                       result.error),
            -1};
  }
  const int status = result.head.status;
  if (status < 300)
    return {result.end == HttpEnd::kStopped ? Fetched::End::kStopped : Fetched::End::kDone, {}, -1};
  Error error = status_error(settings_, source.asked(), result.head);
  // The signed address behind the hub has expired: the next try asks the hub for a new one.
  const bool expired = call.url == source.location() && status < 500;
  if (expired) source.set_location("");
  if (!expired && !may_work_later(status)) return fatal(std::move(error));
  return {Fetched::End::kRetry, std::move(error), retry_after(result.head)};
}

Fetched HubClient::fetch(HttpClient& http, FileSource& source, const std::optional<Range>& range,
                         const std::function<bool(std::string_view)>& sink) const {
  const RemoteFile& file = source.file();
  const Range wanted = range.value_or(Range{0, file.size});
  const auto differs = [&](const char* what, const std::string& got, const std::string& expected) {
    return make_error(ErrorCode::kModel, "{}: {}: the hub announces the {} {}, expected {}: pull it again",
                      source.repo(), file.name, what, printable(got), expected);
  };
  Call call;
  const std::string known = source.location();
  const std::string resolve = resolve_url(source.repo(), source.commit(), file.name);
  call.url = known.empty() ? resolve : known;
  call.headers = {"Accept-Encoding: identity"};
  if (range) call.headers.push_back(fmt::format("Range: bytes={}-{}", wanted.begin, wanted.end - 1));
  call.on_hub = [&](const HttpHead& head) -> Result<void> {
    const std::string linked = head.header("x-linked-etag");
    const std::string etag = plain_etag(linked.empty() && !head.is_redirect() ? head.header("etag") : linked);
    if (is_blob_hash(etag) && etag != file.etag) return differs("hash", etag, file.etag);
    const std::string size = head.header("x-linked-size");
    if (!size.empty() && number(size) != file.size) return differs("size", size, std::to_string(file.size));
    const std::string commit = head.header("x-repo-commit");
    if (!commit.empty() && commit != source.commit()) return differs("commit", commit, source.commit());
    return {};
  };
  std::optional<Fetched> early;
  call.on_head = [&](const HttpHead& head) {
    if (range && head.status != 206) {
      early = Fetched{Fetched::End::kRangeIgnored, {}, -1};
      return false;
    }
    const auto part = parse_content_range(head.header("content-range"));
    const auto length = number(head.header("content-length"));
    if (range && (!part || part->begin != wanted.begin || (part->size != 0 && part->size != file.size)))
      early = fatal(differs("range", head.header("content-range"),
                            fmt::format("bytes {}-{}/{}", wanted.begin, wanted.end - 1, file.size)));
    else if (!range && length && *length != file.size)
      early = fatal(differs("size", std::to_string(*length), std::to_string(file.size)));
    return !early;
  };
  uint64_t got = 0;
  call.on_body = [&](std::string_view bytes) {
    if (bytes.size() > wanted.end - wanted.begin - got) {
      early = fatal(make_error(ErrorCode::kModel, "{}: {}: more bytes came than were asked for",
                               source.repo(), file.name));
      return false;
    }
    got += bytes.size();
    return sink(bytes);
  };
  const HttpResult result = follow(http, call);
  if (early) return *early;
  Fetched fetched = judge(result, call, source);
  if (fetched.end == Fetched::End::kDone && call.url != resolve) source.set_location(call.url);
  return fetched;
}

}  // namespace deepinfer::hub
