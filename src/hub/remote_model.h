// A model of a hub that is not fetched: its files' sizes, and the small ones that describe it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "deepinfer/result.h"
#include "hub/http_client.h"
#include "hub/hub_client.h"
#include "hub/model_ref.h"
#include "hub/repo_info.h"
#include "hub/select.h"
#include "hub/settings.h"

namespace deepinfer::hub {

// One thread at a time. `settings` must outlive it.
class RemoteModel {
 public:
  // Asks the hub for the listing, and which of its files are the model. kModel, kNotFound.
  static Result<RemoteModel> open(const Settings& settings, const ModelRef& ref, const std::string& revision,
                                  std::function<bool()> stop);

  const std::string& gguf() const { return selection_.main; }  // the file to open; empty: a folder
  uint64_t weight_bytes() const;                               // of all files with weights, as listed
  uint64_t size(const std::string& name) const;                // as listed; 0: unknown

  // The first `bytes` of a file, or all of it when it is smaller.
  Result<std::string> head(const std::string& name, uint64_t bytes);

 private:
  RemoteModel(const Settings& settings, std::function<bool()> stop);
  Result<RemoteFile> find(const std::string& name);

  std::unique_ptr<HubClient> hub_;
  std::unique_ptr<HttpClient> http_;
  std::string repo_;
  RepoInfo info_;
  Selection selection_;
};

}  // namespace deepinfer::hub
