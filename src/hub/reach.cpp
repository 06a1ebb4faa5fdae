#include "hub/reach.h"

#include "base/check.h"
#include "hub/curl_library.h"
#include "hub/http_client.h"

namespace deepinfer::hub {

Result<int> reach(const Settings& settings) {
  DI_ASSIGN(std::shared_ptr<const CurlLibrary> curl, CurlLibrary::load());
  HttpClient client(std::move(curl), settings, [] { return false; });
  const HttpResult result = client.send({.url = settings.endpoint, .head = true});
  if (result.end == HttpEnd::kComplete) return result.head.status;
  return make_error(ErrorCode::kUnavailable, "{}", result.error);
}

}  // namespace deepinfer::hub
