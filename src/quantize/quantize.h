// Makes a quantized checkpoint of a model, layer by layer.
#pragma once

#include <functional>

#include "deepinfer/result.h"
#include "quantize/plan.h"

namespace deepinfer::quantize {

struct Hooks {
  std::function<void(int finished, int layers)> progress;  // at the start, and after each layer
  std::function<bool()> stopped;  // asked now and then; true ends the work, which may go on another time
};

// plan.options.out appears complete or not at all. kCancelled when stopped; what is finished then stays in
// plan.partial(), and the same plan goes on from there with the same result, byte by byte.
Result<void> quantize(const Plan& plan, const Hooks& hooks);

}  // namespace deepinfer::quantize
