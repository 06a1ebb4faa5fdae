// The phases that are one matmul: project, gate_up, head.
#include "backend/cpu.h"
#include "backend/cpu/linear.h"

namespace deepinfer::cpu {

void project(Context& context, const ProjectParams& p) {
  linear(context, {.weight = p.weight,
                   .x = p.x.as<float>(),
                   .x_stride = p.x.stride[0],
                   .count = p.x.shape[0],
                   .epilogue = p.replace ? Epilogue::kStore : Epilogue::kAdd,
                   .bias = p.bias.as<float>(),
                   .out = p.residual.as<float>(),
                   .out_stride = p.residual.stride[0]});
}

void gate_up(Context& context, const GateUpParams& p) {
  linear(context, {.weight = p.weight,
                   .x = p.hidden.as<float>(),
                   .x_stride = p.hidden.stride[0],
                   .count = p.hidden.shape[0],
                   .norm = &p.norm,
                   .epilogue = Epilogue::kGated,
                   .activation = p.activation,
                   .bias = p.bias.as<float>(),
                   .out = p.out.as<float>(),
                   .out_stride = p.out.stride[0]});
}

void head(Context& context, const HeadParams& p) {
  linear(context, {.weight = p.weight,
                   .x = p.hidden.as<float>(),
                   .x_stride = p.hidden.stride[0],
                   .x_row = p.batch->logit_token,
                   .count = static_cast<int64_t>(p.batch->logit_token.size()),
                   .norm = &p.norm,
                   .epilogue = Epilogue::kStore,
                   .scale = p.scale,
                   .out = p.logits.as<float>(),
                   .out_stride = p.logits.stride[0]});
}

}  // namespace deepinfer::cpu
