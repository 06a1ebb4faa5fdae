// The settings of a command, with the layer of the device that it will run on.
#pragma once

#include "cli/config_flags.h"

namespace deepinfer {

// gpu.device itself comes from the other layers; the device that it names brings the settings that suit it. A
// device that cannot be used is no error here: whoever loads a model says so. kConfig.
Result<LoadedConfig> load_settings(const ConfigFlags& flags);

}  // namespace deepinfer
