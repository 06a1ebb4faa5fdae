#include "hub/http_client.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <utility>

#include "base/check.h"
#include "hub/curl_library.h"
#include "hub/model_ref.h"

namespace deepinfer::hub {
namespace {

constexpr size_t kMaxHeaders = 64 << 10;
constexpr long kConnectSeconds = 20;

std::string trimmed(std::string_view text) {
  const char* spaces = " \t\r\n";
  const size_t first = text.find_first_not_of(spaces);
  if (first == std::string_view::npos) return "";
  return std::string(text.substr(first, text.find_last_not_of(spaces) - first + 1));
}

HttpEnd kind(CURLcode code) {
  switch (code) {
    case CURLE_OK:
      return HttpEnd::kComplete;
    case CURLE_ABORTED_BY_CALLBACK:
      return HttpEnd::kCancelled;
    case CURLE_WRITE_ERROR:
      return HttpEnd::kStopped;
    case CURLE_COULDNT_RESOLVE_PROXY:
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_COULDNT_CONNECT:
    case CURLE_OPERATION_TIMEDOUT:
    case CURLE_PARTIAL_FILE:
    case CURLE_GOT_NOTHING:
    case CURLE_SEND_ERROR:
    case CURLE_RECV_ERROR:
    case CURLE_SSL_CONNECT_ERROR:
      return HttpEnd::kFailed;
    default:
      return HttpEnd::kRefused;
  }
}

// Distributions keep the certificates in different places; a bundled libcurl knows its own's alone.
std::string system_certificates() {
  static constexpr std::array<const char*, 4> kFiles = {"/etc/ssl/certs/ca-certificates.crt",
                                                        "/etc/pki/tls/certs/ca-bundle.crt",
                                                        "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem"};
  std::error_code error;
  for (const char* file : kFiles)
    if (std::filesystem::exists(file, error)) return file;
  return "";
}

}  // namespace

std::string HttpHead::header(const std::string& name) const {
  const auto it = headers.find(name);
  return it == headers.end() ? "" : it->second;
}

bool HttpHead::is_redirect() const {
  return status == 301 || status == 302 || status == 303 || status == 307 || status == 308;
}

struct HttpClient::Transfer {
  HttpClient* client = nullptr;
  const HttpRequest* request = nullptr;
  HttpHead head;
  size_t header_bytes = 0;
  bool announced = false;  // on_head was called
  bool too_long = false;

  bool announce() {
    if (announced) return true;
    announced = true;
    char* redirect = nullptr;
    client->curl_->easy_getinfo(client->easy_, CURLINFO_REDIRECT_URL, &redirect);
    if (redirect != nullptr) head.redirect = redirect;
    return !request->on_head || request->on_head(head);
  }

  static size_t on_header(char* data, size_t size, size_t count, void* self) {
    auto& t = *static_cast<Transfer*>(self);
    const std::string_view line(data, size * count);
    t.header_bytes += line.size();
    if (t.header_bytes > kMaxHeaders) {
      t.too_long = true;
      return 0;
    }
    if (line.starts_with("HTTP/")) {  // "100 Continue" may come before the answer
      t.head = {};
      const size_t space = std::min(line.find(' '), line.size());
      t.head.status = std::atoi(std::string(line.substr(space)).c_str());
    } else if (const size_t colon = line.find(':'); colon != std::string_view::npos) {
      t.head.headers[lower(trimmed(line.substr(0, colon)))] = trimmed(line.substr(colon + 1));
    }
    return line.size();
  }

  static size_t on_body(char* data, size_t size, size_t count, void* self) {
    auto& t = *static_cast<Transfer*>(self);
    if (!t.announce()) return 0;
    const std::string_view bytes(data, size * count);
    return !t.request->on_body || t.request->on_body(bytes) ? bytes.size() : 0;
  }

  static int on_progress(void* self, curl_off_t, curl_off_t, curl_off_t, curl_off_t) {
    return static_cast<Transfer*>(self)->client->stop_() ? 1 : 0;
  }
};

HttpClient::HttpClient(std::shared_ptr<const CurlLibrary> curl, const Settings& settings,
                       std::function<bool()> stop)
    : curl_(std::move(curl)),
      easy_(curl_->easy_init()),
      stall_seconds_(settings.stall_seconds),
      ca_file_(settings.ca_file.empty() ? system_certificates() : settings.ca_file),
      stop_(std::move(stop)) {
  DI_CHECK(easy_ != nullptr, "libcurl gives no handle");
}

HttpClient::~HttpClient() {
  if (easy_ != nullptr) curl_->easy_cleanup(easy_);
}

HttpClient::HttpClient(HttpClient&& other) noexcept
    : curl_(other.curl_),
      easy_(std::exchange(other.easy_, nullptr)),
      stall_seconds_(other.stall_seconds_),
      ca_file_(std::move(other.ca_file_)),
      stop_(std::move(other.stop_)) {}

void HttpClient::set_options(const HttpRequest& request, Transfer& transfer) {
  const auto set = curl_->easy_setopt;
  set(easy_, CURLOPT_URL, request.url.c_str());
  set(easy_, CURLOPT_NOBODY, request.head ? 1L : 0L);
  set(easy_, CURLOPT_FOLLOWLOCATION, 0L);
  set(easy_, CURLOPT_PROTOCOLS_STR, "http,https");
  set(easy_, CURLOPT_HTTP_VERSION, static_cast<long>(CURL_HTTP_VERSION_1_1));
  set(easy_, CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
  set(easy_, CURLOPT_NOSIGNAL, 1L);
  set(easy_, CURLOPT_CONNECTTIMEOUT, kConnectSeconds);
  set(easy_, CURLOPT_LOW_SPEED_LIMIT, 1L);
  set(easy_, CURLOPT_LOW_SPEED_TIME, static_cast<long>(stall_seconds_));
  set(easy_, CURLOPT_USERAGENT, "deepinfer/" DEEPINFER_VERSION);
  set(easy_, CURLOPT_BUFFERSIZE, 256L << 10);
  if (!ca_file_.empty()) set(easy_, CURLOPT_CAINFO, ca_file_.c_str());
  set(easy_, CURLOPT_HEADERFUNCTION, &Transfer::on_header);
  set(easy_, CURLOPT_HEADERDATA, &transfer);
  set(easy_, CURLOPT_WRITEFUNCTION, &Transfer::on_body);
  set(easy_, CURLOPT_WRITEDATA, &transfer);
  set(easy_, CURLOPT_NOPROGRESS, 0L);
  set(easy_, CURLOPT_XFERINFOFUNCTION, &Transfer::on_progress);
  set(easy_, CURLOPT_XFERINFODATA, &transfer);
}

HttpResult HttpClient::send(const HttpRequest& request) {
  Transfer transfer{.client = this, .request = &request};
  curl_->easy_reset(easy_);  // keeps the connection
  set_options(request, transfer);
  curl_slist* headers = nullptr;
  for (const std::string& line : request.headers) headers = curl_->slist_append(headers, line.c_str());
  curl_->easy_setopt(easy_, CURLOPT_HTTPHEADER, headers);
  std::array<char, CURL_ERROR_SIZE> text{};
  curl_->easy_setopt(easy_, CURLOPT_ERRORBUFFER, text.data());
  const CURLcode code = curl_->easy_perform(easy_);
  curl_->easy_setopt(easy_, CURLOPT_ERRORBUFFER, nullptr);
  curl_->slist_free_all(headers);

  HttpResult result{.end = kind(code), .head = {}, .error = {}};
  if (result.end == HttpEnd::kComplete && !transfer.announce()) result.end = HttpEnd::kStopped;
  result.head = std::move(transfer.head);
  if (transfer.too_long) {
    result.end = HttpEnd::kRefused;
    result.error = fmt::format("headers of more than {} bytes", kMaxHeaders);
  } else if (code == CURLE_OPERATION_TIMEDOUT && result.head.status != 0) {
    result.error = fmt::format("nothing came for {} s", stall_seconds_);
  } else if (code != CURLE_OK) {
    result.error = text[0] != '\0' ? text.data() : curl_->easy_strerror(code);
  }
  return result;
}

std::optional<Origin> HttpClient::origin(const std::string& url) const {
  CURLU* parsed = curl_->url();
  std::optional<Origin> out;
  if (curl_->url_set(parsed, CURLUPART_URL, url.c_str(), 0) == CURLUE_OK) {
    const auto part = [&](CURLUPart which, unsigned flags) {
      char* text = nullptr;
      if (curl_->url_get(parsed, which, &text, flags) != CURLUE_OK) return std::string();
      std::string value(text);
      curl_->free(text);
      return value;
    };
    Origin o{lower(part(CURLUPART_SCHEME, 0)), lower(part(CURLUPART_HOST, 0)),
             part(CURLUPART_PORT, CURLU_DEFAULT_PORT)};
    if ((o.scheme == "http" || o.scheme == "https") && !o.host.empty()) out = std::move(o);
  }
  curl_->url_cleanup(parsed);
  return out;
}

}  // namespace deepinfer::hub
