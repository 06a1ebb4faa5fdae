// What an answer of the hub means for the user.
#pragma once

#include <string>

#include "deepinfer/result.h"
#include "hub/http_client.h"
#include "hub/settings.h"

namespace deepinfer::hub {

// What was asked for.
struct Asked {
  std::string repo;      // "ORG/NAME"
  std::string revision;  // branch, tag or commit
  std::string file;      // empty: the listing of files
};

// The error of a status that is none of 2xx and 3xx.
Error status_error(const Settings& settings, const Asked& asked, const HttpHead& head);

// 408, 429, 5xx: another try may work.
bool may_work_later(int status);

// Seconds that the server asks to wait; negative: it does not. At most a minute.
double retry_after(const HttpHead& head);

}  // namespace deepinfer::hub
