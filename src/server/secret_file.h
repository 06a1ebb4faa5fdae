// Files that the operator names in the settings: keys and certificates.
#pragma once

#include <string>
#include <string_view>

#include "deepinfer/result.h"

namespace deepinfer::server {

// kConfig with the setting, the file and the system's reason when `path` is not a file that can be read.
Result<void> check_readable(std::string_view setting, const std::string& path);

// A line of the log when users other than the owner and the group may read it.
void warn_if_others_read(std::string_view setting, const std::string& path);

}  // namespace deepinfer::server
