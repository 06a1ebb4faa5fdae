// One HTTP request after the other over a kept connection. Redirects are the caller's business
// (hub_client.h).
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "deepinfer/result.h"
#include "hub/settings.h"

namespace deepinfer::hub {

struct CurlLibrary;

struct HttpHead {
  int status = 0;
  std::map<std::string, std::string> headers;  // names in lower case; the last of equal ones
  std::string redirect;                        // the address that Location means, when status is 3xx

  // Empty when there is none.
  std::string header(const std::string& name) const;
  bool is_redirect() const;
};

struct HttpRequest {
  std::string url;
  bool head = false;                 // HEAD instead of GET
  std::vector<std::string> headers;  // "Name: value"
  // Before the first byte of the body, and when there is none: false ends the transfer.
  std::function<bool(const HttpHead&)> on_head;
  std::function<bool(std::string_view)> on_body;  // false ends the transfer
};

enum class HttpEnd {
  kComplete,
  kStopped,    // by on_head or on_body
  kCancelled,  // by `stop`
  kFailed,     // connection refused, cut, stalled: another try may work
  kRefused,    // certificate, address, header limits: another try will not work
};

struct HttpResult {
  HttpEnd end = HttpEnd::kComplete;
  HttpHead head;
  std::string error;  // when it failed or was refused
};

// Scheme, host and port of an address; nothing for one that is no http or https address.
struct Origin {
  std::string scheme, host, port;
  bool operator==(const Origin&) const = default;
};

// Owned by one thread at a time.
class HttpClient {
 public:
  // `stop` is asked several times a second, on the thread of send().
  HttpClient(std::shared_ptr<const CurlLibrary> curl, const Settings& settings, std::function<bool()> stop);
  ~HttpClient();
  HttpClient(HttpClient&&) noexcept;
  HttpClient& operator=(HttpClient&&) = delete;

  HttpResult send(const HttpRequest& request);
  std::optional<Origin> origin(const std::string& url) const;

 private:
  struct Transfer;
  void set_options(const HttpRequest& request, Transfer& transfer);

  std::shared_ptr<const CurlLibrary> curl_;
  void* easy_ = nullptr;
  double stall_seconds_;
  std::string ca_file_;
  std::function<bool()> stop_;
};

}  // namespace deepinfer::hub
