// The phases that are one product: project, gate_up, head.
#include "backend/cuda.h"
#include "backend/cuda/device_batch.h"
#include "backend/cuda/linear.h"
#include "base/check.h"

namespace deepinfer::cuda {

void project(Context& context, const ProjectParams& p) {
  linear(context, {.weight = p.weight,
                   .x = p.x,
                   .epilogue = p.replace ? Epilogue::kStore : Epilogue::kAdd,
                   .bias = p.bias,
                   .out = p.residual});
}

void gate_up(Context& context, const GateUpParams& p) {
  linear(context, {.weight = p.weight,
                   .x = p.hidden,
                   .norm = &p.norm,
                   .epilogue = Epilogue::kGated,
                   .activation = p.activation,
                   .bias = p.bias,
                   .out = p.out});
}

void head(Context& context, const HeadParams& p) {
  DI_CHECK(p.batch->device != nullptr, "head: the batch has no device view");
  linear(context, {.weight = p.weight,
                   .x = p.hidden,
                   .norm = &p.norm,
                   .x_row = p.batch->device->logit_token,
                   .epilogue = Epilogue::kStore,
                   .scale = p.scale,
                   .out = p.logits});
}

}  // namespace deepinfer::cuda
