// deepinfer config: the settings in force.
#pragma once

namespace deepinfer {

class ConfigFlags;

// Prints every setting with its origin; with `markdown` the page of all settings. Returns the exit code.
int config_command(const ConfigFlags& flags, bool markdown);

}  // namespace deepinfer
