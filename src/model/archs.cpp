// The table of architectures.
#include "base/check.h"
#include "comm/communicator.h"
#include "model/arch/arch.h"
#include "model/model.h"

namespace deepinfer {
namespace {

constexpr ModelArch kArchs[] = {
    {"LlamaForCausalLM", "llama", make_llama},
};

}  // namespace

const ModelArch* find_arch(const std::string& name) {
  for (const ModelArch& a : kArchs)
    if (name == a.hf_name || name == a.gguf_name) return &a;
  return nullptr;
}

std::string known_archs() {
  std::string names;
  for (const ModelArch& a : kArchs)
    names += fmt::format("{}{} ({} in GGUF files)", names.empty() ? "" : ", ", a.hf_name, a.gguf_name);
  return names;
}

Result<std::unique_ptr<Model>> make_model_part(const ModelConfig& config, const Weights& weights,
                                               Context& context, const ModelPart& part) {
  const ModelArch* arch = find_arch(config.arch);
  if (arch == nullptr)
    return make_error(
        ErrorCode::kModel,
        "model architecture: got '{}', expected one of {}: choose a model of one of these families",
        config.arch, known_archs());
  return arch->make(config, weights, context, part);
}

Result<std::unique_ptr<Model>> make_model(const ModelConfig& config, const Weights& weights, Context& context,
                                          const Shard& shard) {
  return make_model_part(config, weights, context, {{0, config.layers}, shard});
}

Result<std::unique_ptr<Model>> make_model(const ModelConfig& config, const Weights& weights,
                                          Context& context) {
  const Communicator* const comm = context.comm;
  DI_ASSIGN(const Shard shard, plan_shard(config, weights, comm != nullptr ? comm->rank() : 0,
                                          comm != nullptr ? comm->size() : 1));
  return make_model(config, weights, context, shard);
}

}  // namespace deepinfer
