// The Llama family: Llama 2, 3, 3.1, 3.2, SmolLM2, and others of the same shape.
// Source: transformers, models/llama/modeling_llama.py.
#include <cmath>

#include "base/check.h"
#include "model/arch/arch.h"
#include "model/blocks.h"

namespace deepinfer {
namespace {

struct Layer {
  Vector attention_norm, mlp_norm;
  LinearWeight qkv, o, gate_up, down;
  Vector qkv_bias, o_bias, gate_up_bias, down_bias;
  KvScales kv_scales;
};

class Llama final : public Model {
 public:
  const ModelConfig& config() const override { return c_; }

  std::vector<KvGroupSpec> kv_groups(DType kv_dtype) const override {
    return full_attention_groups(c_, shard_, static_cast<int>(layers_.size()), kv_dtype);
  }

  void forward(Context& context, const StepBatch& batch, const KvCache& kv, const SlotTable& slots,
               const StageIO& io) override;
  void head(Context& context, const StepBatch& batch, const Tensor& hidden, const Tensor& logits) override {
    const LinearWeight* weight = head_ ? &head_ : &embedding_;
    const Norm norm{final_norm_.tensor(), c_.norm_eps};
    ops::head(context, {.batch = &batch,
                        .hidden = hidden,
                        .norm = norm,
                        .weight = weight,
                        .logits = logits,
                        .vocab = shard_.vocab_of});
  }
  size_t scratch_bytes(const Context& context, int64_t tokens, int64_t logit_rows) const override {
    return decoder_scratch_bytes(c_, shard_, context, tokens, logit_rows);
  }

  Result<void> load(const ModelConfig& config, const Loader& loader, const ModelPart& part);

 private:
  Result<void> load_layer(const Loader& loader, int index, Layer& layer);

  ModelConfig c_;
  Shard shard_;
  std::vector<Layer> layers_;
  LinearWeight embedding_, head_;  // head_ is empty when tied
  Vector final_norm_, inv_freq_;
};

void Llama::forward(Context& context, const StepBatch& batch, const KvCache& kv, const SlotTable& slots,
                    const StageIO& io) {
  Arena& arena = *context.scratch;
  const size_t mark = arena.used();
  const int64_t T = batch.num_tokens;
  auto buffer = [&](int64_t cols, DType dtype) {
    return make_tensor(arena.allocate(T * row_bytes(dtype, cols)), dtype, {T, cols}, context.device);
  };
  const DType act = context.activation;
  const Tensor given = io.hidden_in ? io.hidden_in : io.hidden_out;
  const Tensor hidden = given ? given : buffer(c_.hidden, DType::kF32);
  const Tensor rope = buffer(c_.head_dim, DType::kF32), ffn = buffer(shard_.ffn.count, act);
  const int64_t q_dim = shard_.q(c_).run.count;
  const Tensor q = buffer(q_dim, act), mixed = buffer(q_dim, act);

  if (!io.hidden_in)
    ops::embed(
        context,
        {.batch = &batch, .slots = &slots, .table = &embedding_, .out = hidden, .vocab = shard_.vocab_of});
  ops::rope(context, {.batch = &batch, .inv_freq = inv_freq_.tensor(), .out = rope});
  const int heads = static_cast<int>(shard_.heads.count);
  const HeadGroups groups = shard_.head_groups(c_);
  const float scale = 1.0f / std::sqrt(static_cast<float>(c_.head_dim));
  for (size_t i = 0; i < layers_.size(); ++i) {
    const Layer& l = layers_[i];
    const KvLayer cache = l.kv_scales.of(kv.layer(0, static_cast<int>(i)));
    ops::qkv(context, {.batch = &batch,
                       .hidden = hidden,
                       .norm = {l.attention_norm.tensor(), c_.norm_eps},
                       .weight = &l.qkv,
                       .bias = l.qkv_bias.tensor(),
                       .rope = rope,
                       .rope_interleaved = c_.rope_interleaved,
                       .kv = cache,
                       .heads = heads,
                       .q = q});
    ops::attention(context, {.batch = &batch,
                             .q = q,
                             .kv = cache,
                             .heads = heads,
                             .groups = groups,
                             .scale = scale,
                             .out = mixed});
    ops::project(context, {.x = mixed, .weight = &l.o, .bias = l.o_bias.tensor(), .residual = hidden});
    ops::gate_up(context, {.hidden = hidden,
                           .norm = {l.mlp_norm.tensor(), c_.norm_eps},
                           .weight = &l.gate_up,
                           .bias = l.gate_up_bias.tensor(),
                           .out = ffn});
    ops::project(context, {.x = ffn, .weight = &l.down, .bias = l.down_bias.tensor(), .residual = hidden});
  }
  if (!io.hidden_out) head(context, batch, hidden, io.logits);
  arena.reset(mark);
}

Result<void> Llama::load_layer(const Loader& load, int index, Layer& l) {
  const std::string p = fmt::format("model.layers.{}.", index), a = p + "self_attn.", m = p + "mlp.";
  const int64_t H = c_.hidden;
  const Extent Q = shard_.q(c_), KV = shard_.kv(c_), F{c_.ffn, shard_.ffn};
  const bool ab = c_.attention_bias, mb = c_.mlp_bias;
  DI_ASSIGN(l.attention_norm, load.vector(p + "input_layernorm.weight", H));
  DI_ASSIGN(l.mlp_norm, load.vector(p + "post_attention_layernorm.weight", H));
  DI_ASSIGN(l.qkv,
            load.linear({{a + "q_proj.weight", Q}, {a + "k_proj.weight", KV}, {a + "v_proj.weight", KV}}, H));
  DI_ASSIGN(l.qkv_bias,
            load.biases(ab, {{a + "q_proj.bias", Q}, {a + "k_proj.bias", KV}, {a + "v_proj.bias", KV}}));
  DI_ASSIGN(l.kv_scales, load.kv_scales(a));
  DI_ASSIGN(l.o, load.linear({{a + "o_proj.weight", H}}, Q));
  DI_ASSIGN(l.o_bias, load.biases(ab, {{a + "o_proj.bias", H}}));
  DI_ASSIGN(l.gate_up,
            load.linear({{m + "gate_proj.weight", F}, {m + "up_proj.weight", F}}, H, RowOrder::kPaired));
  DI_ASSIGN(l.gate_up_bias, load.biases(mb, {{m + "gate_proj.bias", F}, {m + "up_proj.bias", F}}));
  DI_ASSIGN(l.down, load.linear({{m + "down_proj.weight", H}}, F));
  DI_ASSIGN(l.down_bias, load.biases(mb, {{m + "down_proj.bias", H}}));
  return {};
}

Result<void> Llama::load(const ModelConfig& config, const Loader& loader, const ModelPart& part) {
  c_ = config;
  shard_ = part.shard;
  const LayerRange range = part.layers;
  const Extent vocab = shard_.vocab(c_);
  layers_.resize(range.last - range.first);
  for (int i = range.first; i < range.last; ++i) DI_TRY(load_layer(loader, i, layers_[i - range.first]));
  const bool first = range.first == 0;
  const bool head = part.head_with_first ? first : range.last == c_.layers;
  if (first || (head && c_.tied_head)) {
    DI_ASSIGN(embedding_, loader.linear({{"model.embed_tokens.weight", vocab}}, c_.hidden));
  }
  if (head) {
    DI_ASSIGN(final_norm_, loader.vector("model.norm.weight", c_.hidden));
    if (!c_.tied_head) {
      DI_ASSIGN(head_, loader.linear({{"lm_head.weight", vocab}}, c_.hidden));
    }
  }
  DI_ASSIGN(inv_freq_, loader.rope_inv_freq(c_));
  return {};
}

}  // namespace

Result<std::unique_ptr<Model>> make_llama(const ModelConfig& config, const Weights& weights, Context& context,
                                          const ModelPart& part) {
  auto model = std::make_unique<Llama>();
  DI_TRY(model->load(config, Loader(weights, context), part));
  return std::unique_ptr<Model>(std::move(model));
}

}  // namespace deepinfer
