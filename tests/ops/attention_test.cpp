// qkv and attention against tests/ref: what goes into the cache must come out of it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "backend/cpu/kernels.h"
#include "fixture.h"
#include "layer.h"

namespace deepinfer::test {
namespace {

struct Case {
  std::string name;
  int heads = 4, kv_heads = 2, dim_k = 64, dim_v = 64;
  DType kv = DType::kF16;
  DType weight = DType::kF32;
  int window = 0;
  float soft_cap = 0;
  bool interleaved = false;
  int rotary = 64;
  bool qk_norm = false;
  bool bias = false;
};

class Attention : public testing::TestWithParam<Case> {};

// The reference's view of one sequence: its k and v, rounded as the cache rounds them.
struct RefSequence {
  std::vector<std::vector<std::vector<double>>> q, k, v;  // [head][position][dim]
};

RefSequence project(const Layer& layer, const std::vector<float>& hidden) {
  const LayerShape& s = layer.shape;
  RefSequence r;
  r.q.resize(s.heads);
  r.k.resize(s.kv_heads);
  r.v.resize(s.kv_heads);
  std::vector<std::vector<double>> rows;
  for (int64_t i = 0; i < layer.qkv.rows; ++i)
    rows.push_back(ref::dequantize_row(s.weight, layer.qkv_row(i), s.hidden));
  const int64_t tokens = static_cast<int64_t>(hidden.size()) / s.hidden;
  for (int64_t t = 0; t < tokens; ++t) {
    const std::vector<float> x =
        ref::rms_norm({hidden.data() + t * s.hidden, size_t(s.hidden)}, layer.norm, layer.eps);
    const std::vector<double> a = ref::activations(s.weight, x);
    const auto head = [&](int64_t first_row, int dim, const std::vector<float>* norm, bool turn) {
      std::vector<double> out(dim);
      for (int d = 0; d < dim; ++d) {
        const int64_t row = first_row + d;
        out[d] = std::inner_product(a.begin(), a.end(), rows[row].begin(),
                                    s.bias ? double{layer.qkv_bias[row]} : 0.0);
      }
      if (norm != nullptr) {
        const std::vector<float> in(out.begin(), out.end());
        const std::vector<float> normed = ref::rms_norm(in, *norm, layer.eps);
        out.assign(normed.begin(), normed.end());
      }
      if (turn) ref::rotate(out, layer.inv_freq, t, s.interleaved, 1.0);
      return out;
    };
    const int64_t k0 = int64_t{s.heads} * s.dim_k, v0 = k0 + int64_t{s.kv_heads} * s.dim_k;
    for (int h = 0; h < s.heads; ++h)
      r.q[h].push_back(head(int64_t{h} * s.dim_k, s.dim_k, s.qk_norm ? &layer.q_norm : nullptr, true));
    for (int h = 0; h < s.kv_heads; ++h) {
      r.k[h].push_back(head(k0 + int64_t{h} * s.dim_k, s.dim_k, s.qk_norm ? &layer.k_norm : nullptr, true));
      r.v[h].push_back(head(v0 + int64_t{h} * s.dim_v, s.dim_v, nullptr, false));
      for (double& x : r.k[h].back()) x = ref::round_to(s.kv, x);
      for (double& x : r.v[h].back()) x = ref::round_to(s.kv, x);
    }
  }
  return r;
}

LayerShape layer_shape(const Case& c) {
  LayerShape s{.hidden = 64, .heads = c.heads, .kv_heads = c.kv_heads, .dim_k = c.dim_k, .dim_v = c.dim_v};
  s.rotary = c.rotary;
  s.ffn = 64;
  s.weight = c.weight;
  s.kv = c.kv;
  s.window = c.window;
  s.soft_cap = c.soft_cap;
  s.interleaved = c.interleaved;
  s.qk_norm = c.qk_norm;
  s.bias = c.bias;
  return s;
}

TEST_P(Attention, MatchesDoublePrecision) {
  Machine m(2);
  const Case& c = GetParam();
  Layer layer(m.context, layer_shape(c), 7);
  const LayerShape& s = layer.shape;
  // Past three chunks of keys, at the ends of blocks and chunks.
  const int tokens = 150;
  Random random(99);
  std::vector<float> hidden = random_floats(random, tokens * s.hidden);
  Cache cache(s, 16);
  const std::vector<int32_t> blocks = {7, 3, 11, 0, 15, 2, 9, 4, 1, 8};
  Batch batch({{.tokens = std::vector<int32_t>(tokens, 1), .blocks = {blocks}}});
  std::vector<float> q(size_t(tokens) * s.heads * s.dim_k), out(size_t(tokens) * s.heads * s.dim_v);
  layer.run_qkv(m.context, batch.step, cache.layer(), hidden, q);
  layer.run_attention(m.context, batch.step, cache.layer(), q, out);

  const RefSequence r = project(layer, hidden);
  const ref::AttentionShape shape{s.dim_k, s.dim_v, layer.scale(), s.soft_cap, s.window};
  // One unit of the cache's type, where F32 values near a tie fall on the other side (the rounding itself is
  // tested bit by bit below), and F32 elsewhere.
  const double unit = s.kv == DType::kF32 ? 1e-6 : s.kv == DType::kF16 ? 1.0 / 1024 : 1.0 / 128;
  const double quantized = c.weight == DType::kF32 ? 0 : 3e-3;
  double q_error = 0, q_size = 0, error = 0, size = 0;
  for (int t = 0; t < tokens; ++t) {
    for (int h = 0; h < s.heads; ++h) {
      for (int d = 0; d < s.dim_k; ++d) {
        const double expected = r.q[h][t][d];
        q_size = std::max(q_size, std::fabs(expected));
        q_error = std::max(q_error, std::fabs(q[(size_t(t) * s.heads + h) * s.dim_k + d] - expected));
      }
      const int kv = h / (s.heads / s.kv_heads);
      const std::vector<double> expected = ref::attend(shape, r.q[h][t], r.k[kv], r.v[kv], t);
      for (int d = 0; d < s.dim_v; ++d) {
        size = std::max(size, std::fabs(expected[d]));
        error = std::max(error, std::fabs(out[(size_t(t) * s.heads + h) * s.dim_v + d] - expected[d]));
      }
    }
  }
  EXPECT_LT(q_error, (3e-6 + quantized) * q_size);
  EXPECT_LT(error, (3e-6 + unit + 2 * quantized) * size) << "largest value " << size;
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, Attention,
    testing::Values(
        Case{.name = "plain", .kv = DType::kF32}, Case{.name = "f16"},
        Case{.name = "bf16", .kv = DType::kBF16},
        Case{.name = "smollm", .heads = 9, .kv_heads = 3, .weight = DType::kQ4_1},
        Case{.name = "interleaved", .kv = DType::kF32, .interleaved = true},
        Case{.name = "window", .kv = DType::kF32, .window = 20},
        Case{.name = "window_one", .kv = DType::kF32, .window = 1},
        Case{.name = "window_long", .kv = DType::kF32, .window = 129},
        Case{.name = "soft_cap", .kv = DType::kF32, .soft_cap = 2.0f},
        Case{.name = "qk_norm", .kv = DType::kF32, .qk_norm = true},
        Case{.name = "bias", .kv = DType::kF32, .bias = true},
        Case{.name = "odd_dim", .dim_k = 40, .dim_v = 24, .kv = DType::kF32, .rotary = 16},
        Case{.name = "odd_half", .dim_k = 10, .dim_v = 6, .rotary = 10},
        Case{.name = "wide", .heads = 2, .kv_heads = 1, .dim_k = 256, .dim_v = 128},
        Case{.name = "many_heads", .heads = 60, .kv_heads = 1, .dim_k = 16, .dim_v = 16, .rotary = 16}),
    [](const auto& i) { return i.param.name; });

// Every way into the cache rounds to the nearest, ties to even, whatever the instruction set.
TEST(CacheTypes, RoundAsTheReferenceDoes) {
  Random random(5);
  std::vector<float> x = {0.0f,    -0.0f,   1.0f,     65504.0f, 65519.0f, 65520.0f, -1e6f,
                          6e-8f,   3e-8f,   2.98e-8f, 6.1e-5f,  6.0e-5f,  1e-10f,   -5e-5f,
                          2049.0f, 2051.0f, 1.0e38f,  INFINITY, -INFINITY};
  for (int i = 0; i < 4000; ++i)
    x.push_back(
        std::ldexp(static_cast<float>(random() % 8192) - 4096.0f, static_cast<int>(random() % 40) - 36));
  const int n = static_cast<int>(x.size());
  std::vector<uint16_t> v(n), k(size_t(n) * 16);
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    cpu::KvPlace to{.head = reinterpret_cast<std::byte*>(v.data()), .dim = n, .dtype = dtype};
    cpu::kernels().store_v(x.data(), to);
    to.head = reinterpret_cast<std::byte*>(k.data());
    to.position = 3;
    cpu::kernels().store_k(x.data(), to);
    for (int i = 0; i < n; ++i) {
      const uint16_t expected = dtype == DType::kF16 ? ref::to_f16(x[i]) : ref::to_bf16(x[i]);
      ASSERT_EQ(v[i], expected) << x[i];
      ASSERT_EQ(k[size_t(i) * 16 + 3], expected) << x[i];
    }
  }
}

TEST(AttentionChecks, RefuseBlocksThatAreMissing) {
  Machine m(1);
  Layer layer(m.context, {}, 1);
  Cache cache(layer.shape, 4);
  std::vector<float> hidden(17 * layer.shape.hidden, 1.0f),
      q(size_t(17) * layer.shape.heads * layer.shape.dim_k);
  Batch batch({{.tokens = std::vector<int32_t>(17, 1), .blocks = {{2, -1}}}});
  EXPECT_THROW(layer.run_qkv(m.context, batch.step, cache.layer(), hidden, q), InternalError);
  std::vector<float> out(size_t(17) * layer.shape.heads * layer.shape.dim_v);
  EXPECT_THROW(layer.run_attention(m.context, batch.step, cache.layer(), q, out), InternalError);
}

TEST(CopyBlocks, CopiesWholeBlocks) {
  Machine m(1);
  const LayerShape shape;
  Cache cache(shape, 4);
  const size_t bytes = KvCache::block_bytes(cache.kv.groups(), 16);
  for (size_t i = 0; i < bytes * 4; ++i)
    cache.memory.data()[i] = static_cast<std::byte>(i / bytes * 40 + i % 31);
  const BlockCopy copies[] = {{0, 2}, {1, 1}, {2, 3}};
  ops::copy_blocks(m.context, cache.kv, copies);
  for (const int block : {2, 3})
    EXPECT_EQ(std::memcmp(cache.memory.data(), cache.memory.data() + bytes * block, bytes), 0);
  EXPECT_NE(std::memcmp(cache.memory.data(), cache.memory.data() + bytes, bytes), 0);
  const BlockCopy bad[] = {{0, 4}};
  EXPECT_THROW(ops::copy_blocks(m.context, cache.kv, bad), InternalError);
}

TEST(Rope, TableHoldsCosinesThenSines) {
  Machine m(2);
  std::vector<float> inv_freq = {1.0f, 0.25f, 1e-3f};
  Batch batch({{.context_len = 0, .tokens = {1, 2}}, {.context_len = 100000, .tokens = {1}}});
  std::vector<float> out(3 * 6);
  ops::rope(m.context, {&batch.step, tensor(inv_freq, {3}), 1.5f, tensor(out, {3, 6})});
  const int position[] = {0, 1, 100000};
  for (int t = 0; t < 3; ++t) {
    for (int i = 0; i < 3; ++i) {
      const double angle = static_cast<float>(position[t]) * inv_freq[i];
      EXPECT_NEAR(out[t * 6 + i], 1.5 * std::cos(angle), 3e-7);
      EXPECT_NEAR(out[t * 6 + 3 + i], 1.5 * std::sin(angle), 3e-7);
    }
  }
}

TEST(Device, CudaOperationsSayThatThereIsNone) {
  Machine m(1);
  m.context.device.kind = Device::Kind::kCuda;
  EXPECT_THROW(ops::scratch_bytes(m.context, 1, 1, 1, 1), std::runtime_error);
}

}  // namespace
}  // namespace deepinfer::test
