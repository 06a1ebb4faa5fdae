// One random layer and its cache, run by the operations.
#pragma once

#include "fixture.h"

namespace deepinfer::test {

struct LayerShape {
  int64_t hidden = 64;
  int heads = 4, kv_heads = 2, dim_k = 64, dim_v = 64;
  int rotary = 64;
  int64_t ffn = 48;
  DType weight = DType::kF32;
  DType kv = DType::kF16;
  int window = 0;
  float soft_cap = 0;
  bool interleaved = false;
  bool qk_norm = false;
  bool bias = false;
};

// A pool of blocks with this one layer in two (so that offsets are not zero).
struct Cache {
  Cache(const LayerShape& s, int64_t blocks) : memory(std::move(Buffer::allocate(bytes(s, blocks))).value()) {
    kv = KvCache({spec(s)}, 16, blocks, memory.data(), {});
  }
  static KvGroupSpec spec(const LayerShape& s) {
    return {.kind = s.window > 0 ? KvGroupSpec::Kind::kWindow : KvGroupSpec::Kind::kFull,
            .window = s.window,
            .num_layers = 2,
            .kv_heads = s.kv_heads,
            .head_dim_k = s.dim_k,
            .head_dim_v = s.dim_v,
            .dtype = s.kv};
  }
  static size_t bytes(const LayerShape& s, int64_t blocks) {
    return KvCache::block_bytes({spec(s)}, 16) * blocks;
  }
  KvLayer layer() const { return kv.layer(0, 1); }

  Buffer memory;
  KvCache kv{{}, 16, 0, nullptr, {}};
};

struct Layer {
  Layer(Context& context, const LayerShape& s, uint64_t seed) : shape(s), random(seed) {
    q = random_matrix(random, s.weight, int64_t{s.heads} * s.dim_k, s.hidden, 0.2);
    k = random_matrix(random, s.weight, int64_t{s.kv_heads} * s.dim_k, s.hidden, 0.2);
    v = random_matrix(random, s.weight, int64_t{s.kv_heads} * s.dim_v, s.hidden, 0.2);
    qkv = pack(context, {&q, &k, &v});
    norm = random_floats(random, s.hidden);
    q_norm = random_floats(random, s.dim_k);
    k_norm = random_floats(random, s.dim_k);
    qkv_bias = random_floats(random, qkv.rows);
    const auto packed = [&](int64_t rows, int64_t cols) {
      const Matrix m = random_matrix(random, s.weight, rows, cols, 0.1);
      return pack(context, {&m});
    };
    o = packed(s.hidden, int64_t{s.heads} * s.dim_v);
    down = packed(s.hidden, s.ffn);
    head = packed(kVocab, s.hidden);
    const Matrix gate = random_matrix(random, s.weight, s.ffn, s.hidden, 0.1);
    const Matrix up = random_matrix(random, s.weight, s.ffn, s.hidden, 0.1);
    gate_up = pack(context, {&gate, &up}, RowOrder::kPaired);
    for (int i = 0; i < s.rotary / 2; ++i)
      inv_freq.push_back(static_cast<float>(std::pow(10000.0, -2.0 * i / s.rotary)));
  }

  float scale() const { return 1.0f / std::sqrt(static_cast<float>(shape.dim_k)); }
  const std::byte* qkv_row(int64_t row) const {
    if (row < q.rows) return q.row(row);
    return row < q.rows + k.rows ? k.row(row - q.rows) : v.row(row - q.rows - k.rows);
  }

  void run_qkv(Context& context, const StepBatch& batch, const KvLayer& kv, std::vector<float>& hidden,
               std::vector<float>& q_out) {
    std::vector<float> table(size_t(batch.num_tokens) * inv_freq.size() * 2);
    const int64_t t = batch.num_tokens, rotary = static_cast<int64_t>(inv_freq.size()) * 2;
    const Tensor rope = tensor(table, {t, rotary});
    ops::rope(context, {&batch, tensor(inv_freq, {rotary / 2}), 1.0f, rope});
    ops::qkv(context, {.batch = &batch,
                       .hidden = tensor(hidden, {t, shape.hidden}),
                       .norm = {tensor(norm, {shape.hidden}), eps},
                       .weight = &qkv,
                       .bias = shape.bias ? tensor(qkv_bias, {qkv.rows}) : Tensor{},
                       .q_norm = shape.qk_norm ? Norm{tensor(q_norm, {shape.dim_k}), eps} : Norm{},
                       .k_norm = shape.qk_norm ? Norm{tensor(k_norm, {shape.dim_k}), eps} : Norm{},
                       .rope = rope,
                       .rope_interleaved = shape.interleaved,
                       .kv = kv,
                       .heads = shape.heads,
                       .q = tensor(q_out, {t, int64_t{shape.heads} * shape.dim_k})});
  }

  void run_attention(Context& context, const StepBatch& batch, const KvLayer& kv, std::vector<float>& q_in,
                     std::vector<float>& out) {
    const int64_t t = batch.num_tokens;
    ops::attention(context, {.batch = &batch,
                             .q = tensor(q_in, {t, int64_t{shape.heads} * shape.dim_k}),
                             .kv = kv,
                             .heads = shape.heads,
                             .scale = scale(),
                             .soft_cap = shape.soft_cap,
                             .out = tensor(out, {t, int64_t{shape.heads} * shape.dim_v})});
  }

  // A whole layer and the head: hidden [T, H] is changed, returns the logits [S, kVocab].
  std::vector<float> run(Context& context, const StepBatch& batch, const KvLayer& kv,
                         std::vector<float>& hidden_values) {
    const int64_t t = batch.num_tokens, wanted = static_cast<int64_t>(batch.logit_token.size());
    const int64_t width = int64_t{shape.heads} * shape.dim_v;
    std::vector<float> q_out(t * shape.heads * shape.dim_k), attended(t * width), ffn(t * shape.ffn);
    std::vector<float> logits(wanted * kVocab);
    const Tensor hidden = tensor(hidden_values, {t, shape.hidden});
    const Norm hidden_norm{tensor(norm, {shape.hidden}), eps};
    run_qkv(context, batch, kv, hidden_values, q_out);
    run_attention(context, batch, kv, q_out, attended);
    ops::project(context, {.x = tensor(attended, {t, width}), .weight = &o, .bias = {}, .residual = hidden});
    ops::gate_up(context, {.hidden = hidden,
                           .norm = hidden_norm,
                           .weight = &gate_up,
                           .bias = {},
                           .out = tensor(ffn, {t, shape.ffn})});
    ops::project(context,
                 {.x = tensor(ffn, {t, shape.ffn}), .weight = &down, .bias = {}, .residual = hidden});
    ops::head(context, {.batch = &batch,
                        .hidden = hidden,
                        .norm = hidden_norm,
                        .weight = &head,
                        .logits = tensor(logits, {wanted, kVocab})});
    return logits;
  }

  static constexpr int64_t kVocab = 50;
  LayerShape shape;
  Random random;
  float eps = 1e-5f;
  Matrix q, k, v;
  LinearWeight qkv, o, gate_up, down, head;
  std::vector<float> norm, q_norm, k_norm, qkv_bias, inv_freq;
};

}  // namespace deepinfer::test
