// Which layers each stage of a pipeline holds.
#pragma once

#include "deepinfer/result.h"
#include "model/model.h"

namespace deepinfer {

// Stages take about equally long. The first one has embedding and head besides, so it has fewer layers:
// decoding reads all of the head, a prompt uses it for one token, and it counts as half of what it holds.
// kConfig: more stages than layers.
Result<LayerRange> plan_stage(const ModelConfig& config, int stage, int stages);

}  // namespace deepinfer
