// What a hub may send: the listing of a repository, an index of weights, a range, names of models and files.
#include <algorithm>

#include "base/check.h"
#include "hub/hub_client.h"
#include "hub/model_ref.h"
#include "hub/repo_info.h"
#include "hub/select.h"

using namespace deepinfer;

namespace {

// Whatever a server says, no path leaves the folder of the model.
void check_name(std::string_view name) {
  DI_CHECK(!name.empty() && name.front() != '/' && name.find('\0') == std::string_view::npos,
           "a name out of bounds");
  for (size_t begin = 0; begin <= name.size();) {
    const size_t end = std::min(name.find('/', begin), name.size());
    DI_CHECK(name.substr(begin, end - begin) != "..", "a name that leaves its folder");
    begin = end + 1;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (const auto info = hub::parse_repo_info(text, "listing")) {
    DI_CHECK(hub::is_commit(info->commit), "no commit");
    std::vector<hub::Listed> listed;
    for (const hub::RemoteFile& file : info->files) {
      check_name(file.name);
      DI_CHECK(file.etag.empty() || hub::is_blob_hash(file.etag), "no hash");
      listed.push_back({file.name, file.size});
    }
    if (const auto selection = hub::select_files(listed, "", "a/b"))
      DI_CHECK(!selection->files.empty(), "nothing was selected");
    (void)hub::select_files(listed, "Q4_0", "a/b");
  }
  if (const auto shards = hub::shards_of_index(text, "index"))
    for (const std::string& name : *shards) check_name(name);
  if (const auto range = hub::parse_content_range(text))
    DI_CHECK(range->begin < range->end, "an empty range");
  if (const auto ref = hub::parse_model_ref(text)) check_name(ref->repo);
  if (hub::check_relative_path(text, "name")) check_name(text);
  (void)hub::quantization_of(text);
  (void)hub::split_base(text);
  (void)hub::weights_text(text);
  return 0;
}
