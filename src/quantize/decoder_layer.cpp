#include "quantize/decoder_layer.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "quant/formats.h"
#include "quantize/gemm.h"

namespace deepinfer::quantize {
namespace {

std::string layer_prefix(int layer) {
  return fmt::format("model.layers.{}.", layer);
}

// y [rows, linear.rows] = x [rows, linear.cols] W^T + bias
void apply(const Linear& linear, const float* x, int64_t rows, float* y, bool add = false) {
  multiply({.a = row_major(x, rows, linear.cols),
            .b = row_major(linear.weight.data(), linear.rows, linear.cols).transposed(),
            .c = y,
            .c_stride = linear.rows,
            .add = add});
  if (linear.bias.empty()) return;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < linear.rows; ++j) y[i * linear.rows + j] += linear.bias[j];
}

void normalize(const float* x, const Norm& norm, float eps, int64_t rows, float* out) {
  const auto n = static_cast<int64_t>(norm.weight.size());
  for (int64_t i = 0; i < rows; ++i, x += n, out += n) {
    double squares = 0;
    for (int64_t j = 0; j < n; ++j) squares += static_cast<double>(x[j]) * x[j];
    const auto scale = static_cast<float>(1.0 / std::sqrt(squares / static_cast<double>(n) + eps));
    for (int64_t j = 0; j < n; ++j) out[j] = x[j] * scale * norm.weight[j];
  }
}

Result<Linear> load_linear(const Checkpoint& checkpoint, const LinearShape& shape, bool bias) {
  Linear linear{.name = shape.name, .rows = shape.rows, .cols = shape.cols};
  DI_ASSIGN(linear.weight, load_values(checkpoint.weights, shape.name + ".weight", {shape.rows, shape.cols}));
  if (bias) {
    DI_ASSIGN(linear.bias, load_values(checkpoint.weights, shape.name + ".bias", {shape.rows}));
  }
  return linear;
}

Result<Norm> load_norm(const Checkpoint& checkpoint, const std::string& name) {
  Norm norm{.name = name};
  DI_ASSIGN(norm.weight, load_values(checkpoint.weights, name + ".weight", {checkpoint.config.hidden}));
  return norm;
}

}  // namespace

std::vector<LinearShape> linear_shapes(const ModelConfig& c, int layer) {
  const std::string a = layer_prefix(layer) + "self_attn.", m = layer_prefix(layer) + "mlp.";
  const int64_t H = c.hidden, F = c.ffn, Q = int64_t{c.heads} * c.head_dim,
                KV = int64_t{c.kv_heads} * c.head_dim;
  return {{a + "q_proj", Q, H},    {a + "k_proj", KV, H}, {a + "v_proj", KV, H},  {a + "o_proj", H, Q},
          {m + "gate_proj", F, H}, {m + "up_proj", F, H}, {m + "down_proj", H, F}};
}

Result<std::vector<float>> load_values(const Weights& weights, const std::string& name,
                                       const std::vector<int64_t>& shape) {
  DI_ASSIGN(const RawTensor* t, weights.get(name, shape));
  const QuantFormat* format = info(t->dtype).block_elems == 1 ? find_format(t->dtype) : nullptr;
  if (format == nullptr || t->data == nullptr)
    return make_error(ErrorCode::kModel, "{}: got {}, expected F32, F16 or BF16", t->origin,
                      info(t->dtype).name);
  int64_t n = 1;
  for (const int64_t extent : shape) n *= extent;
  std::vector<float> values(static_cast<size_t>(n));
  format->dequantize(t->data, n, values.data());
  if (!std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); }))
    return make_error(ErrorCode::kModel, "{}: holds NaN or infinity, expected finite weights: fetch it again",
                      t->origin);
  return values;
}

Result<DecoderLayer> load_layer(const Checkpoint& checkpoint, int layer) {
  const ModelConfig& c = checkpoint.config;
  const std::vector<LinearShape> shapes = linear_shapes(c, layer);
  DecoderLayer l;
  DI_ASSIGN(l.attention_norm, load_norm(checkpoint, layer_prefix(layer) + "input_layernorm"));
  DI_ASSIGN(l.mlp_norm, load_norm(checkpoint, layer_prefix(layer) + "post_attention_layernorm"));
  Linear* const linears[] = {&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down};
  for (size_t i = 0; i < shapes.size(); ++i) {
    DI_ASSIGN(*linears[i], load_linear(checkpoint, shapes[i], i < 4 ? c.attention_bias : c.mlp_bias));
  }
  return l;
}

// q, k, v of one sample after RoPE, row-major.
struct LayerForward::Heads {
  std::vector<float> q, k, v;
};

template <class Work>
void LayerForward::for_samples(const Hidden& hidden, const Work& work) const {
  pool_.run([&](int thread) {
    for (int64_t s = thread; s < hidden.samples; s += pool_.size()) work(s * hidden.length);
  });
}

void LayerForward::normalized(const Hidden& hidden, const Norm& norm, std::vector<float>& out) const {
  out.resize(hidden.values.size());
  for_samples(hidden, [&](int64_t first) {
    normalize(hidden.values.data() + first * c_.hidden, norm, c_.norm_eps, hidden.length,
              out.data() + first * c_.hidden);
  });
}

void LayerForward::rotate(float* x, int64_t length, int64_t heads) const {
  const int64_t half = c_.head_dim / 2;
  std::vector<float> cosines(half), sines(half);
  for (int64_t t = 0; t < length; ++t) {
    for (int64_t i = 0; i < half; ++i) {
      const float angle = static_cast<float>(t) * inv_freq_[i];
      cosines[i] = std::cos(angle);
      sines[i] = std::sin(angle);
    }
    for (int64_t h = 0; h < heads; ++h, x += c_.head_dim)
      for (int64_t i = 0; i < half; ++i) {
        const float a = x[i], b = x[i + half];
        x[i] = a * cosines[i] - b * sines[i];
        x[i + half] = b * cosines[i] + a * sines[i];
      }
  }
}

void LayerForward::attend(const Heads& in, int64_t length, std::vector<float>& scores, float* out) const {
  constexpr int64_t kRows = 128;  // of queries at a time: they see the keys up to the last of them
  const int64_t D = c_.head_dim, Q = c_.heads * D, KV = c_.kv_heads * D;
  const float scale = 1.0f / std::sqrt(static_cast<float>(D));
  scores.resize(kRows * length);
  for (int64_t h = 0; h < c_.heads; ++h) {
    const int64_t kv = h / (c_.heads / c_.kv_heads) * D;
    for (int64_t first = 0; first < length; first += kRows) {
      const int64_t rows = std::min(kRows, length - first), keys = first + rows;
      multiply({.a = {in.q.data() + first * Q + h * D, rows, D, Q, 1},
                .b = MatrixView{in.k.data() + kv, keys, D, KV, 1}.transposed(),
                .c = scores.data(),
                .c_stride = keys});
      for (int64_t i = 0; i < rows; ++i) {
        float* row = scores.data() + i * keys;
        const int64_t seen = first + i + 1;
        const float most = *std::max_element(row, row + seen);
        double sum = 0;
        for (int64_t j = 0; j < seen; ++j) sum += row[j] = std::exp((row[j] - most) * scale);
        const auto inverse = static_cast<float>(1.0 / sum);
        for (int64_t j = 0; j < seen; ++j) row[j] *= inverse;
        std::fill(row + seen, row + keys, 0.0f);
      }
      multiply({.a = {scores.data(), rows, keys, keys, 1},
                .b = {in.v.data() + kv, keys, D, KV, 1},
                .c = out + first * Q + h * D,
                .c_stride = Q});
    }
  }
}

void LayerForward::attention(const Hidden& hidden, const DecoderLayer& l, std::vector<float>& out) const {
  const int64_t H = c_.hidden, T = hidden.length, Q = l.q.rows, KV = l.k.rows;
  out.resize(hidden.tokens() * Q);
  for_samples(hidden, [&](int64_t first) {
    std::vector<float> x(T * H), scores;
    Heads heads{std::vector<float>(T * Q), std::vector<float>(T * KV), std::vector<float>(T * KV)};
    normalize(hidden.values.data() + first * H, l.attention_norm, c_.norm_eps, T, x.data());
    apply(l.q, x.data(), T, heads.q.data());
    apply(l.k, x.data(), T, heads.k.data());
    apply(l.v, x.data(), T, heads.v.data());
    rotate(heads.q.data(), T, c_.heads);
    rotate(heads.k.data(), T, c_.kv_heads);
    attend(heads, T, scores, out.data() + first * Q);
  });
}

void LayerForward::activated(const Hidden& hidden, const DecoderLayer& l, std::vector<float>& out) const {
  const int64_t H = c_.hidden, T = hidden.length, F = l.gate.rows;
  out.resize(hidden.tokens() * F);
  for_samples(hidden, [&](int64_t first) {
    std::vector<float> x(T * H), gate(T * F);
    float* up = out.data() + first * F;
    normalize(hidden.values.data() + first * H, l.mlp_norm, c_.norm_eps, T, x.data());
    apply(l.gate, x.data(), T, gate.data());
    apply(l.up, x.data(), T, up);
    for (int64_t i = 0; i < T * F; ++i) up[i] *= gate[i] / (1.0f + std::exp(-gate[i]));
  });
}

void LayerForward::add_projection(const std::vector<float>& x, const Linear& linear, Hidden& hidden) const {
  for_samples(hidden, [&](int64_t first) {
    apply(linear, x.data() + first * linear.cols, hidden.length, hidden.values.data() + first * linear.rows,
          true);
  });
}

}  // namespace deepinfer::quantize
