// The makers of all architectures: one line here, one in archs.cpp, one file.
#pragma once

#include "model/model.h"

namespace deepinfer {

Result<std::unique_ptr<Model>> make_llama(const ModelConfig& config, const Weights& weights, Context& context,
                                          const ModelPart& part);

}  // namespace deepinfer
