// embed, rope, qkv's way from its product to the cache, and copies of blocks, on CUDA against tests/ref.
#include <cuda_fp8.h>
#include <gtest/gtest.h>

#include "backend/cuda.h"
#include "backend/cuda/linear.h"
#include "backend/cuda/qkv.h"
#include "emulation/device_step.h"

namespace deepinfer::test {
namespace {

Batch::Row row_of(int context, int tokens, std::vector<int32_t> blocks) {
  return {.context_len = context, .tokens = std::vector<int32_t>(tokens, 1), .blocks = {std::move(blocks)}};
}

class CudaEmbed : public testing::TestWithParam<std::tuple<DType, DType>> {};

TEST_P(CudaEmbed, ReadsRows) {
  const auto [dtype, activation] = GetParam();
  CudaMachine m(activation);
  Random random(3);
  for (const int64_t cols : {32, 96, 576}) {
    const Matrix w = random_matrix(random, dtype, 37, cols);
    const LinearWeight table = pack(m.context, {&w});
    Batch batch({row_of(0, 1, {0}), row_of(0, 6, {1})});
    batch.token = {0, 36, 5, 17, 16, 15, 36};
    batch.step.token = batch.token;
    DeviceStep step(m, batch);
    const DeviceArray<float> out(m, std::vector<float>(7 * cols, NAN));
    ops::embed(m.context, {.batch = &batch.step,
                           .table = &table,
                           .out = make_tensor(out.data(), DType::kF32, {7, cols}, m.context.device)});
    const std::vector<float> got = out.read();
    for (int t = 0; t < 7; ++t) {
      const std::vector<double> row = ref::dequantize_row(dtype, w.row(batch.token[t]), cols);
      for (int64_t i = 0; i < cols; ++i) {
        // A dense table stands in A; d * q + m rounds once or twice.
        const bool quantized = dtype == DType::kQ4_0 || dtype == DType::kQ4_1 || dtype == DType::kQ8_0;
        const double expected = quantized ? row[i] : ref::round_to(activation, row[i]);
        const double slack = dtype == DType::kQ4_1 ? 1e-6 : 0;
        ASSERT_NEAR(got[t * cols + i], expected, slack) << "token " << t << " column " << i << " of " << cols;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Tables, CudaEmbed,
                         testing::Combine(testing::Values(DType::kF32, DType::kBF16, DType::kF16,
                                                          DType::kQ4_0, DType::kQ4_1, DType::kQ8_0),
                                          testing::Values(DType::kBF16, DType::kF16)),
                         [](const auto& i) {
                           return std::string(deepinfer::info(std::get<0>(i.param)).name) + "_" +
                                  std::string(deepinfer::info(std::get<1>(i.param)).name);
                         });

TEST(CudaRope, TableHoldsCosinesThenSines) {
  CudaMachine m(DType::kBF16);
  for (const int half : {1, 3, 32, 65, 130}) {
    std::vector<float> inv_freq(half);
    for (int i = 0; i < half; ++i) inv_freq[i] = static_cast<float>(std::pow(10000.0, -1.0 * i / half));
    Batch batch({row_of(0, 1, {}), row_of(131071, 1, {}), row_of(77, 2, {})});
    batch.position[0] = -1;
    DeviceStep step(m, batch);
    const DeviceArray<float> freq(m, inv_freq), out(m, std::vector<float>(4 * 2 * half, NAN));
    ops::rope(m.context, {.batch = &batch.step,
                          .inv_freq = make_tensor(freq.data(), DType::kF32, {half}, m.context.device),
                          .scale = 1.5f,
                          .out = make_tensor(out.data(), DType::kF32, {4, 2 * half}, m.context.device)});
    const std::vector<float> got = out.read();
    for (int t = 0; t < 4; ++t) {
      for (int i = 0; i < half; ++i) {
        const double angle = static_cast<float>(batch.position[t]) * inv_freq[i];
        ASSERT_NEAR(got[t * 2 * half + i], 1.5 * std::cos(angle), 4e-7) << t << " " << i;
        ASSERT_NEAR(got[t * 2 * half + half + i], 1.5 * std::sin(angle), 4e-7) << t << " " << i;
      }
    }
  }
}

struct QkvCase {
  std::string name;
  int heads = 4, kv_heads = 2, dim_k = 64, dim_v = 64;
  DType activation = DType::kBF16;
  bool fp8 = false;
  int block_size = 16;
  int rotary = 64;  // 0: no RoPE
  bool interleaved = false, q_norm = false, k_norm = false, bias = false;
  int64_t product_bytes = int64_t{64} << 20;
  DType weight = DType::kBF16;
  int chunk = 30;      // tokens of the last row; three more stand before it
  bool finish = true;  // FastPaths::finish
};
void PrintTo(const QkvCase& c, std::ostream* out) {
  *out << c.name;
}

constexpr float kKScale = 0.02f, kVScale = 0.5f, kEps = 1e-5f;
constexpr int64_t kHidden = 64;

// A layer's weights and a step: decode rows, padding and a chunk, over a cache of one layer of two.
struct QkvWorld {
  explicit QkvWorld(const QkvCase& shape)
      : c(shape),
        m(c.activation),
        random(17),
        batch({row_of(20, 1, {3, 9}), row_of(0, 1, {}), row_of(0, 1, {4}), row_of(13, c.chunk, {1, 7, 5})}) {
    if (c.block_size > 16) {
      batch.tables[0] = {3, -1, -1, -1, -1, -1, 4, -1, -1, 1, 7, -1};
      batch.views[0].ids = batch.tables[0];
    }
    batch.position[1] = -1;
    const std::vector<Matrix> parts = {matrix(c.heads * c.dim_k), matrix(c.kv_heads * c.dim_k),
                                       matrix(c.kv_heads * c.dim_v)};
    weight = pack(m.context, {&parts[0], &parts[1], &parts[2]});
    spec = {.num_layers = 2,
            .kv_heads = c.kv_heads,
            .head_dim_k = c.dim_k,
            .head_dim_v = c.dim_v,
            .dtype = c.fp8 ? DType::kF8E4M3 : c.activation};
    for (int i = 0; i < c.rotary / 2; ++i)
      inv_freq.push_back(static_cast<float>(std::pow(10000.0, -2.0 * i / c.rotary)));
    q_norm = random_floats(random, c.dim_k), k_norm = random_floats(random, c.dim_k);
    norm = random_floats(random, kHidden);
    bias = random_floats(random, weight.rows);
    hidden = random_floats(random, tokens() * kHidden);
  }
  Matrix matrix(int64_t rows) { return random_matrix(random, c.weight, rows, kHidden, 0.2); }
  int64_t tokens() const { return batch.step.num_tokens; }

  QkvCase c;
  CudaMachine m;
  Random random;
  Batch batch;
  LinearWeight weight;
  KvGroupSpec spec;
  std::vector<float> inv_freq, q_norm, k_norm, norm, bias, hidden;
};

class CudaQkv : public testing::TestWithParam<QkvCase> {};

// A head of the product as the reference turns it.
std::vector<double> finished(const QkvWorld& w, const float* x, int dim, const std::vector<float>* norm,
                             int64_t position) {
  std::vector<double> out(x, x + dim);
  if (norm != nullptr) {
    double squares = 0;
    for (const double v : out) squares += v * v;
    const double factor = 1 / std::sqrt(squares / dim + kEps);
    for (int i = 0; i < dim; ++i) out[i] *= factor * (*norm)[i];
  }
  ref::rotate(std::span(out).first(w.c.rotary), w.inv_freq, position, w.c.interleaved, 1.0);
  return out;
}

double largest(const std::vector<double>& v) {
  double most = 0;
  for (const double x : v) most = std::max(most, std::fabs(x));
  return most;
}

void expect_row(const QkvWorld& w, const std::byte* got, const std::vector<double>& expected, bool fp8,
                float scale) {
  const double slack = 3e-6 * largest(expected);
  for (size_t i = 0; i < expected.size(); ++i) {
    if (fp8) {
      __nv_fp8_e4m3 bits;
      std::memcpy(&bits, got + i, 1);
      const double want = std::clamp(expected[i], -448.0 * scale, 448.0 * scale);
      const double unit = std::max(std::fabs(want) / 16, scale * 0x1p-10);
      ASSERT_NEAR(static_cast<float>(bits) * scale, want, unit + slack) << "column " << i;
      continue;
    }
    const double unit = (w.c.activation == DType::kF16 ? 0x1p-11 : 0x1p-8) * std::fabs(expected[i]) + 1e-7;
    ASSERT_NEAR(decode(w.c.activation, got + 2 * i, 1)[0], expected[i], unit + slack) << "column " << i;
  }
}

TEST_P(CudaQkv, FinishesItsProduct) {
  QkvWorld w(GetParam());
  const QkvCase& c = w.c;
  DeviceStep step(w.m, w.batch);
  const Device device = w.m.context.device;
  const int64_t tokens = w.tokens(), rows = w.weight.rows;
  const size_t block_bytes = KvCache::block_bytes({w.spec}, c.block_size), blocks = 10;
  const DeviceArray<std::byte> memory(w.m, std::vector<std::byte>(block_bytes * blocks, std::byte{0xa5}));
  KvCache cache({w.spec}, c.block_size, blocks, memory.data(), device);
  KvLayer layer = cache.layer(0, 1);
  layer.k_scale = kKScale, layer.v_scale = kVScale;

  const auto f32 = [&](const DeviceArray<float>& a, std::initializer_list<int64_t> shape) {
    return make_tensor(a.data(), DType::kF32, shape, device);
  };
  const DeviceArray<float> hidden(w.m, w.hidden), norm(w.m, w.norm), bias(w.m, w.bias), q_norm(w.m, w.q_norm),
      k_norm(w.m, w.k_norm), inv_freq(w.m, w.inv_freq), table(w.m, std::vector<float>(tokens * c.rotary)),
      product(w.m, std::vector<float>(tokens * rows));
  const DeviceArray<uint16_t> q(w.m, std::vector<uint16_t>(tokens * c.heads * c.dim_k, 0x7ff7));
  QkvParams p{.batch = &w.batch.step,
              .hidden = f32(hidden, {tokens, kHidden}),
              .norm = {f32(norm, {kHidden}), kEps},
              .weight = &w.weight,
              .rope_interleaved = c.interleaved,
              .kv = layer,
              .heads = c.heads,
              .q = make_tensor(q.data(), c.activation, {tokens, int64_t{c.heads} * c.dim_k}, device)};
  if (c.bias) p.bias = f32(bias, {rows});
  if (c.q_norm) p.q_norm = {f32(q_norm, {c.dim_k}), kEps};
  if (c.k_norm) p.k_norm = {f32(k_norm, {c.dim_k}), kEps};
  if (c.rotary > 0) {
    p.rope = f32(table, {tokens, c.rotary});
    ops::rope(w.m.context, {&w.batch.step, f32(inv_freq, {c.rotary / 2}), 1.0f, p.rope});
  }
  w.m.gpu->fast.finish = c.finish;
  // What a launch counts is gone before the next one.
  for (int i = 0; i < 2; ++i) cuda::qkv_in_groups(w.m.context, p, c.product_bytes);
  cuda::linear(w.m.context, {.weight = &w.weight,
                             .x = p.hidden,
                             .norm = &p.norm,
                             .bias = p.bias,
                             .out = f32(product, {tokens, rows})});
  w.m.gpu->synchronize();

  const std::vector<float> x = product.read();
  const std::vector<uint16_t> got_q = q.read();
  const std::vector<std::byte> got = memory.read();
  std::vector<bool> written(got.size());
  const auto cached = [&](std::byte* place, const std::vector<double>& expected, float scale) {
    const size_t at = place - memory.data(), bytes = expected.size() * (c.fp8 ? 1 : 2);
    expect_row(w, got.data() + at, expected, c.fp8, scale);
    std::fill(written.begin() + at, written.begin() + at + bytes, true);
  };
  const std::vector<int32_t> token_row = DeviceStep::rows_of_tokens(w.batch);
  for (int64_t t = 0; t < tokens; ++t) {
    const float* const line = x.data() + t * rows;
    const int position = w.batch.position[t];
    for (int h = 0; h < c.heads; ++h) {
      const std::vector<double> expected =
          finished(w, line + h * c.dim_k, c.dim_k, c.q_norm ? &w.q_norm : nullptr, position);
      SCOPED_TRACE(testing::Message() << "q of token " << t << " head " << h);
      expect_row(w, reinterpret_cast<const std::byte*>(got_q.data() + (t * c.heads + h) * c.dim_k), expected,
                 false, 1);
    }
    if (position < 0) continue;
    const int32_t block =
        w.batch.tables[0][size_t(token_row[t]) * w.batch.views[0].stride + position / c.block_size];
    for (int h = 0; h < c.kv_heads; ++h) {
      SCOPED_TRACE(testing::Message() << "cache of token " << t << " head " << h);
      const size_t inside = size_t(h) * c.block_size + position % c.block_size, element = c.fp8 ? 1 : 2;
      const float* const k = line + (c.heads + h) * c.dim_k;
      const float* const v = line + (c.heads + c.kv_heads) * c.dim_k + h * c.dim_v;
      cached(layer.k(block) + inside * c.dim_k * element,
             finished(w, k, c.dim_k, c.k_norm ? &w.k_norm : nullptr, position), kKScale);
      cached(layer.v(block) + inside * c.dim_v * element, std::vector<double>(v, v + c.dim_v), kVScale);
    }
  }
  for (size_t i = 0; i < got.size(); ++i)
    if (!written[i])
      ASSERT_EQ(got[i], std::byte{0xa5}) << "byte " << i << " of the cache belongs to no token";
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, CudaQkv,
    testing::Values(
        QkvCase{.name = "plain"}, QkvCase{.name = "f16", .activation = DType::kF16},
        QkvCase{.name = "fp8", .fp8 = true},
        QkvCase{.name = "fp8_f16", .activation = DType::kF16, .fp8 = true, .block_size = 32},
        QkvCase{.name = "interleaved", .interleaved = true}, QkvCase{.name = "partial", .rotary = 24},
        QkvCase{.name = "partial_interleaved", .rotary = 24, .interleaved = true},
        QkvCase{.name = "no_rope", .rotary = 0},
        QkvCase{.name = "norms", .q_norm = true, .k_norm = true, .bias = true},
        QkvCase{.name = "q_norm_alone", .activation = DType::kF16, .q_norm = true},
        QkvCase{.name = "bias", .bias = true},
        QkvCase{.name = "dims_differ", .heads = 3, .kv_heads = 1, .dim_k = 40, .dim_v = 72, .rotary = 40},
        QkvCase{.name = "wide",
                .heads = 2,
                .kv_heads = 1,
                .dim_k = 256,
                .dim_v = 128,
                .rotary = 256,
                .q_norm = true},
        QkvCase{.name = "quantized", .weight = DType::kQ4_1},
        QkvCase{.name = "odd_rotary", .rotary = 20, .q_norm = true, .bias = true},
        QkvCase{.name = "odd_rotary_interleaved", .rotary = 20, .interleaved = true, .k_norm = true},
        QkvCase{.name = "four_tokens", .q_norm = true, .k_norm = true, .bias = true, .chunk = 1},
        QkvCase{.name = "four_tokens_dims_differ",
                .heads = 3,
                .kv_heads = 1,
                .dim_k = 40,
                .dim_v = 72,
                .fp8 = true,
                .rotary = 40,
                .bias = true,
                .chunk = 1},
        QkvCase{.name = "six_tokens_many_heads",
                .heads = 20,
                .kv_heads = 5,
                .activation = DType::kF16,
                .interleaved = true,
                .chunk = 3},
        QkvCase{.name = "sixteen_tokens_dims_differ",
                .heads = 5,
                .kv_heads = 5,
                .dim_k = 24,
                .dim_v = 16,
                .rotary = 6,
                .k_norm = true,
                .chunk = 13},
        QkvCase{.name = "quantized_few", .bias = true, .weight = DType::kQ8_0, .chunk = 2},
        QkvCase{.name = "four_tokens_apart", .q_norm = true, .bias = true, .chunk = 1, .finish = false},
        QkvCase{.name = "sixteen_tokens_apart", .k_norm = true, .chunk = 13, .finish = false},
        QkvCase{.name = "quantized_apart", .bias = true, .weight = DType::kQ8_0, .finish = false},
        QkvCase{.name = "groups_of_tokens", .rotary = 32, .product_bytes = 7 * 512 * 4},
        QkvCase{.name = "token_by_token", .product_bytes = 1}),
    [](const auto& i) { return i.param.name; });

TEST(CudaCopyBlocks, CopiesInTheirOrder) {
  CudaMachine m(DType::kBF16);
  // Blocks of more than one piece, whose end is not a piece's.
  const KvGroupSpec spec{
      .num_layers = 3, .kv_heads = 2, .head_dim_k = 72, .head_dim_v = 40, .dtype = DType::kBF16};
  const size_t bytes = KvCache::block_bytes({spec}, 16);
  for (const int64_t blocks : {5, 200}) {
    std::vector<std::byte> values(bytes * blocks);
    Random random(blocks);
    for (std::byte& b : values) b = static_cast<std::byte>(random());
    const DeviceArray<std::byte> memory(m, values);
    const KvCache cache({spec}, 16, blocks, memory.data(), m.context.device);
    std::vector<BlockCopy> copies = {{0, 2}, {1, 1}, {2, 3}, {4, 0}};
    for (int32_t i = 5; i + 1 < blocks; i += 2) copies.push_back({i, i + 1});
    for (const BlockCopy& c : copies)
      if (c.src != c.dst) std::memcpy(values.data() + bytes * c.dst, values.data() + bytes * c.src, bytes);
    ops::copy_blocks(m.context, cache, copies);
    m.gpu->synchronize();
    EXPECT_TRUE(memory.read() == values) << blocks << " blocks";
    EXPECT_THROW(
        ops::copy_blocks(m.context, cache, std::vector<BlockCopy>{{0, static_cast<int32_t>(blocks)}}),
        InternalError);
    ops::copy_blocks(m.context, cache, {});
  }
}

}  // namespace
}  // namespace deepinfer::test
