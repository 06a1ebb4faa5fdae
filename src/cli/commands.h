// One function a command; each returns the exit code of the program.
#pragma once

#include "deepinfer/result.h"

namespace deepinfer {

class ConfigFlags;

// 2 settings and usage, 3 model, 4 device or memory, 5 address in use, 1 anything else.
int exit_code(ErrorCode code);

// Prints every setting with its origin; with `markdown` the page of all settings. Errors go to standard
// error.
int config_command(const ConfigFlags& flags, bool markdown);

}  // namespace deepinfer
