// A model: layers written over the operations, for a range of layers (a pipeline stage).
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "deepinfer/result.h"
#include "model/model_config.h"
#include "model/shard.h"
#include "model/weights.h"
#include "ops/ops.h"

namespace deepinfer {

struct LayerRange {
  int first = 0, last = 0;  // [first, last)
};

struct StageIO {
  Tensor hidden_in;   // [T, H] from the stage before, or none: this stage embeds
  Tensor hidden_out;  // [T, H] for the stage behind (hidden_in itself, when there is one), or none: logits
  Tensor logits;      // [S, V] F32; none on ranks other than 0
};

class Model {
 public:
  virtual ~Model() = default;
  virtual const ModelConfig& config() const = 0;
  virtual std::vector<KvGroupSpec> kv_groups(DType kv_dtype) const = 0;
  virtual void forward(Context& context, const StepBatch& batch, const KvCache& kv, const SlotTable& slots,
                       const StageIO& io) = 0;
  // The end of forward() alone: logits [S, V] of batch.logit_token out of the last layer's hidden [T, H]. For
  // logits that are computed in pieces.
  virtual void head(Context& context, const StepBatch& batch, const Tensor& hidden, const Tensor& logits) = 0;
  virtual size_t scratch_bytes(const Context& context, int64_t tokens, int64_t logit_rows) const = 0;
};

// What of a model is made: some layers (a stage), and a rank's share of each. The stage with the first layers
// embeds; the one with the last has the head, or the first one has that too.
struct ModelPart {
  LayerRange layers;
  Shard shard;
  bool head_with_first = false;
};

using MakeModel = Result<std::unique_ptr<Model>> (*)(const ModelConfig& config, const Weights& weights,
                                                     Context& context, const ModelPart& part);

struct ModelArch {
  const char* hf_name;    // "LlamaForCausalLM"
  const char* gguf_name;  // "llama"
  MakeModel make;
};

// archs.cpp: the table of architectures. Null when the name is not in it; known_archs() is for the message.
const ModelArch* find_arch(const std::string& hf_or_gguf_name);
std::string known_archs();

// All layers; of each the share of context.comm's rank, or all of it when there is none. Nobody is talked to.
Result<std::unique_ptr<Model>> make_model(const ModelConfig& config, const Weights& weights,
                                          Context& context);
// The same of a share that was planned before.
Result<std::unique_ptr<Model>> make_model(const ModelConfig& config, const Weights& weights, Context& context,
                                          const Shard& shard);
// Some of the layers.
Result<std::unique_ptr<Model>> make_model_part(const ModelConfig& config, const Weights& weights,
                                               Context& context, const ModelPart& part);

}  // namespace deepinfer
