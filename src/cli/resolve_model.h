// From --model to a file or folder: a path of this machine, or a model of a hub, which is fetched when it is
// missing.
#pragma once

#include "deepinfer/config.h"
#include "deepinfer/result.h"

namespace deepinfer {

// Replaces config.model.name by the path of the model, and names it by its hub id unless served_model_name is
// set. What exists on this machine wins over a hub's model. Progress goes to standard error; Ctrl-C may end
// the program at any time, a later call goes on. kNotFound, kModel.
Result<void> resolve_model(Config& config);

}  // namespace deepinfer
