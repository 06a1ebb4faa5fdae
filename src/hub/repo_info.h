// What a hub says about a repository, read from its JSON with limits.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "deepinfer/result.h"

namespace deepinfer::hub {

struct RemoteFile {
  std::string name;   // checked: it stays below the folder of the model
  std::string etag;   // the hash that names its blob; empty: the listing does not say
  uint64_t size = 0;  // known when etag is
};

struct RepoInfo {
  std::string commit;  // 40 hexadecimal digits
  std::vector<RemoteFile> files;
};

// The answer of /api/models/ORG/NAME/revision/REV. `where` begins messages. kModel.
Result<RepoInfo> parse_repo_info(std::string_view json, const std::string& where);

// The files that a model.safetensors.index.json names, sorted, each once. kModel.
Result<std::vector<std::string>> shards_of_index(std::string_view json, const std::string& where);

// "safetensors bfloat16", "safetensors gptq" from a config.json; "safetensors" when it does not say.
std::string weights_text(std::string_view config_json);

}  // namespace deepinfer::hub
