#include "hub/curl_library.h"

#include <filesystem>
#include <utility>

#include "base/check.h"
#include "base/paths.h"
#include "base/shared_library.h"

namespace deepinfer::hub {
namespace {

template <class Function>
Result<void> need(const SharedLibrary& library, const char* name, Function*& out) {
  DI_ASSIGN(out, library.symbol<Function>(name));
  return {};
}

Result<void> bind(const SharedLibrary& library, CurlLibrary& out) {
  DI_TRY(need(library, "curl_global_init", out.global_init));
  DI_TRY(need(library, "curl_easy_init", out.easy_init));
  DI_TRY(need(library, "curl_easy_setopt", out.easy_setopt));
  DI_TRY(need(library, "curl_easy_perform", out.easy_perform));
  DI_TRY(need(library, "curl_easy_getinfo", out.easy_getinfo));
  DI_TRY(need(library, "curl_easy_reset", out.easy_reset));
  DI_TRY(need(library, "curl_easy_cleanup", out.easy_cleanup));
  DI_TRY(need(library, "curl_easy_strerror", out.easy_strerror));
  DI_TRY(need(library, "curl_slist_append", out.slist_append));
  DI_TRY(need(library, "curl_slist_free_all", out.slist_free_all));
  DI_TRY(need(library, "curl_url", out.url));
  DI_TRY(need(library, "curl_url_set", out.url_set));
  DI_TRY(need(library, "curl_url_get", out.url_get));
  DI_TRY(need(library, "curl_url_cleanup", out.url_cleanup));
  DI_TRY(need(library, "curl_free", out.free));
  return {};
}

// The bundle of the portable folder, or of the Python package, first.
std::vector<LibraryFolder> folders() {
  return {{install_prefix() / "lib", "beside the program"}};
}

}  // namespace

Result<std::shared_ptr<const CurlLibrary>> CurlLibrary::load() {
  auto curl = std::make_shared<CurlLibrary>();
  const LibrarySpec spec{.name = "libcurl",
                         .files = {"libcurl.so.4"},
                         .remedy = "Models are fetched with it: apt-get install libcurl4",
                         .check = [&](const SharedLibrary& library) { return bind(library, *curl); }};
  const Result<SharedLibrary> library = load_library(spec, folders());
  if (!library) return make_error(ErrorCode::kModel, "{}", library.error().message);
  if (const CURLcode code = curl->global_init(CURL_GLOBAL_DEFAULT); code != CURLE_OK)
    return make_error(ErrorCode::kModel, "libcurl: cannot be initialized: {}", curl->easy_strerror(code));
  return std::shared_ptr<const CurlLibrary>(std::move(curl));
}

}  // namespace deepinfer::hub
