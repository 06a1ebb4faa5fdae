// The result's folder: weights, config.json with what readers need to know, the model's other files.
#pragma once

#include <string>
#include <vector>

#include "quantize/partial.h"
#include "quantize/plan.h"

namespace deepinfer::quantize {

// config.json of the result: the model's, with quantization_config as the method's readers expect it, and the
// dtype of what is not quantized.
Result<std::string> config_of_result(const Plan& plan);

// Fills partial.out_folder(): the finished layers' tensors, those of the model that no layer's file has, and
// the other files.
Result<void> write_result(const Plan& plan, const Partial& partial);

}  // namespace deepinfer::quantize
