// The KV cache of 8 bits a value: what is stored against the reference's rounding of what an F32 cache holds,
// what attention makes of it against plain loops over the stored values, and both together against attention
// without the rounding, with the bound that half a step of each stored value allows.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "backend/cpu/kernels.h"
#include "fixture.h"
#include "layer.h"

namespace deepinfer::test {
namespace {

constexpr int kBlock = cpu::kKvBlock;
constexpr double kEps = 0x1p-24;  // half a unit of F32, relative

using Rows = std::vector<std::vector<double>>;  // [position][dim]

// One position's values as they stand in a head of a block.
struct Stored {
  std::vector<uint8_t> codes;
  double scale = 1;  // I8
};

Stored read_stored(const std::byte* head, DType dtype, int dim, int position, bool is_v) {
  Stored s;
  for (int d = 0; d < dim; ++d) {
    const int at = is_v ? position * dim + d : d * kBlock + position;
    s.codes.push_back(static_cast<uint8_t>(head[at * info(dtype).block_bytes]));
  }
  if (dtype == DType::kI8) {
    uint16_t bits;
    std::memcpy(&bits, head + dim * kBlock + position * 2, 2);
    s.scale = std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
  }
  return s;
}

double value_of(DType dtype, const Stored& s, int d, double layer_scale) {
  if (dtype == DType::kI8) return s.scale * static_cast<int8_t>(s.codes[d]);
  return layer_scale * ref::e4m3(s.codes[d]);
}

// Half the distance between the values beside x that can be stored.
double half_step(DType dtype, const Stored& s, double x, double layer_scale) {
  if (dtype == DType::kI8) return s.scale / 2 * (1 + 4 * 127 * kEps);  // x / scale is rounded before
  const double a = std::fabs(x) / layer_scale;
  return layer_scale * (a < 0x1p-6 ? 0x1p-10 : std::ldexp(1, std::ilogb(a) - 4));
}

struct Case {
  std::string name;
  DType dtype;
  int heads = 6, kv_heads = 2, dim_k = 64, dim_v = 64;
  int window = 0;
  float soft_cap = 0;
  float k_scale = 1, v_scale = 1;
};

// One sequence that went through a layer, with an F32 cache and with one of 8 bits.
class FilledCaches {
 public:
  static constexpr int kTokens = 150;

  explicit FilledCaches(const Case& c) : case_(c), machine_(2), layer_(machine_.context, shape(c), 7) {
    Random random(99);
    hidden_ = random_floats(random, kTokens * layer_.shape.hidden);
    exact_ = fill(DType::kF32, exact_memory_);
    stored_ = fill(c.dtype, stored_memory_);
  }

  static LayerShape shape(const Case& c) {
    LayerShape s{.heads = c.heads, .kv_heads = c.kv_heads, .dim_k = c.dim_k, .dim_v = c.dim_v};
    s.rotary = c.dim_k;
    s.window = c.window;
    s.soft_cap = c.soft_cap;
    return s;
  }

  // [position][dim] of an F32 cache, and what stands in the other one.
  Rows exact(int kv_head, bool is_v) const {
    const int dim = is_v ? case_.dim_v : case_.dim_k;
    Rows rows(kTokens, std::vector<double>(dim));
    for (int t = 0; t < kTokens; ++t) {
      for (int d = 0; d < dim; ++d) {
        const int at = is_v ? t % kBlock * dim + d : d * kBlock + t % kBlock;
        float x;
        std::memcpy(&x, head(exact_, kv_head, t, is_v) + at * sizeof x, sizeof x);
        rows[t][d] = x;
      }
    }
    return rows;
  }
  std::vector<Stored> stored(int kv_head, bool is_v) const {
    std::vector<Stored> all;
    const int dim = is_v ? case_.dim_v : case_.dim_k;
    for (int t = 0; t < kTokens; ++t)
      all.push_back(read_stored(head(stored_, kv_head, t, is_v), case_.dtype, dim, t % kBlock, is_v));
    return all;
  }

  std::vector<float> attend() {
    std::vector<float> out(size_t(kTokens) * case_.heads * case_.dim_v);
    layer_.run_attention(machine_.context, batch_.step, stored_, q_, out);
    return out;
  }
  const std::vector<float>& q() const { return q_; }
  double scale() const { return layer_.scale(); }

 private:
  KvLayer fill(DType dtype, std::unique_ptr<Cache>& cache) {
    LayerShape s = layer_.shape;
    s.kv = dtype;
    cache = std::make_unique<Cache>(s, 16);
    std::memset(cache->memory.data(), 0xff, cache->memory.size());  // NaN wherever nothing was written
    KvLayer kv = cache->layer();
    kv.k_scale = case_.k_scale;
    kv.v_scale = case_.v_scale;
    q_.resize(size_t(kTokens) * case_.heads * case_.dim_k);
    layer_.run_qkv(machine_.context, batch_.step, kv, hidden_, q_);
    return kv;
  }
  const std::byte* head(const KvLayer& kv, int kv_head, int position, bool is_v) const {
    const int32_t block = blocks_[position / kBlock];
    const int dim = is_v ? case_.dim_v : case_.dim_k;
    const size_t bytes = kBlock * kv_row_bytes(kv.spec.dtype, dim);
    return (is_v ? kv.v(block) : kv.k(block)) + kv_head * bytes;
  }

  Case case_;
  Machine machine_;
  Layer layer_;
  std::vector<int32_t> blocks_ = {7, 3, 11, 0, 15, 2, 9, 4, 1, 8};
  Batch batch_{{{.tokens = std::vector<int32_t>(kTokens, 1), .blocks = {blocks_}}}};
  std::vector<float> hidden_, q_;
  std::unique_ptr<Cache> exact_memory_, stored_memory_;
  KvLayer exact_, stored_;
};

class EightBitCache : public testing::TestWithParam<Case> {};

TEST_P(EightBitCache, StoresTheNearestValues) {
  const Case& c = GetParam();
  const FilledCaches run(c);
  for (int h = 0; h < c.kv_heads; ++h) {
    for (const bool is_v : {false, true}) {
      const Rows exact = run.exact(h, is_v);
      const std::vector<Stored> stored = run.stored(h, is_v);
      const float layer_scale = is_v ? c.v_scale : c.k_scale;
      for (int t = 0; t < FilledCaches::kTokens; ++t) {
        float largest = 0;
        for (const double x : exact[t]) largest = std::max(largest, static_cast<float>(std::fabs(x)));
        if (c.dtype == DType::kI8) {
          const uint16_t bits = ref::to_bf16(largest / 127.0f);
          ASSERT_EQ(stored[t].scale, std::bit_cast<float>(static_cast<uint32_t>(bits) << 16));
        }
        for (size_t d = 0; d < exact[t].size(); ++d) {
          const double x = exact[t][d], got = value_of(c.dtype, stored[t], static_cast<int>(d), layer_scale);
          ASSERT_LE(std::fabs(x - got), half_step(c.dtype, stored[t], x, layer_scale) * (1 + kEps)) << x;
          if (c.dtype == DType::kF8E4M3) {
            const float scaled = static_cast<float>(x) / layer_scale;
            ASSERT_EQ(stored[t].codes[d], ref::to_e4m3(scaled)) << scaled;
          }
        }
      }
    }
  }
}

// A bound from the rounding of each product, sum and exponential in F32: scores are chains over dim_k; the
// result is a chain over the keys, its weights have the error of their score, and of the exponential (2
// units). With rounded keys and values (`dk`, `dv`: by how much) the score moves by at most scale * sum |q|
// dk, and an average whose weights change by e^(+-2m) moves by at most (e^2m - 1) max |v|.
struct Bound {
  double arithmetic = 0, rounding = 0;
};

struct Query {
  const ref::AttentionShape& shape;
  std::span<const double> q;
  int64_t position;
};

Bound bound_of(const Query& query, const Rows& k, const Rows& v, const Rows& dk, const Rows& dv) {
  const ref::AttentionShape& s = query.shape;
  const int64_t first = s.window > 0 ? std::max<int64_t>(0, query.position + 1 - s.window) : 0;
  double score_error = 0, score_move = 0, largest_v = 0, largest_dv = 0;
  for (int64_t j = first; j <= query.position; ++j) {
    double size = 0, move = 0;
    for (int d = 0; d < s.dim_k; ++d) {
      size += std::fabs(query.q[d] * k[j][d]) * s.scale;
      move += std::fabs(query.q[d]) * dk[j][d] * s.scale;
    }
    // Capping: tanh by exponentials, each of some units of what is around 1 before it is multiplied.
    score_error = std::max(score_error, (s.dim_k + 6) * kEps * size + 16 * kEps * s.soft_cap);
    score_move = std::max(score_move, move);
    for (int d = 0; d < s.dim_v; ++d) {
      largest_v = std::max(largest_v, std::fabs(v[j][d]));
      largest_dv = std::max(largest_dv, dv[j][d]);
    }
  }
  const auto keys = static_cast<double>(query.position + 1 - first);
  // A maximum is subtracted twice on the way (chunk, stretch), each time with an exponential.
  const double units = 2 * keys + 60;
  return {.arithmetic = (std::expm1(2 * score_error) + units * kEps) * largest_v,
          .rounding = std::expm1(2 * score_move) * largest_v + largest_dv};
}

TEST_P(EightBitCache, AttentionMatchesDoublePrecision) {
  const Case& c = GetParam();
  FilledCaches run(c);
  const std::vector<float> out = run.attend();
  const ref::AttentionShape shape{c.dim_k, c.dim_v, run.scale(), c.soft_cap, c.window};
  const int group = c.heads / c.kv_heads;
  double worst = 0;  // of the bound
  for (int h = 0; h < c.heads; ++h) {
    Rows exact[2], stored[2], steps[2], none[2];
    for (const bool is_v : {false, true}) {
      const double layer_scale = is_v ? c.v_scale : c.k_scale;
      const std::vector<Stored> codes = run.stored(h / group, is_v);
      exact[is_v] = stored[is_v] = steps[is_v] = run.exact(h / group, is_v);
      for (int t = 0; t < FilledCaches::kTokens; ++t) {
        for (size_t d = 0; d < exact[is_v][t].size(); ++d) {
          stored[is_v][t][d] = value_of(c.dtype, codes[t], static_cast<int>(d), layer_scale);
          steps[is_v][t][d] = half_step(c.dtype, codes[t], exact[is_v][t][d], layer_scale);
        }
      }
      none[is_v].assign(FilledCaches::kTokens, std::vector<double>(is_v ? c.dim_v : c.dim_k));
    }
    for (int t = 0; t < FilledCaches::kTokens; ++t) {
      const float* const from = run.q().data() + (size_t(t) * c.heads + h) * c.dim_k;
      const std::vector<double> q(from, from + c.dim_k);
      const std::vector<double> over_stored = ref::attend(shape, q, stored[0], stored[1], t);
      const std::vector<double> over_exact = ref::attend(shape, q, exact[0], exact[1], t);
      const double arithmetic = bound_of({shape, q, t}, stored[0], stored[1], none[0], none[1]).arithmetic;
      const double rounding = bound_of({shape, q, t}, exact[0], exact[1], steps[0], steps[1]).rounding;
      for (int d = 0; d < c.dim_v; ++d) {
        const double got = out[(size_t(t) * c.heads + h) * c.dim_v + d];
        worst = std::max(worst, std::fabs(got - over_stored[d]) / arithmetic);
        ASSERT_LE(std::fabs(got - over_stored[d]), arithmetic) << "token " << t << ", head " << h;
        ASSERT_LE(std::fabs(got - over_exact[d]), arithmetic + rounding) << "token " << t << ", head " << h;
      }
    }
  }
  RecordProperty("largest_error_of_its_bound", std::to_string(worst));
}

constexpr DType kInt8 = DType::kI8, kFp8 = DType::kF8E4M3;

INSTANTIATE_TEST_SUITE_P(
    Shapes, EightBitCache,
    testing::Values(
        Case{.name = "int8", .dtype = kInt8}, Case{.name = "fp8", .dtype = kFp8},
        Case{.name = "fp8_scales", .dtype = kFp8, .k_scale = 0.037f, .v_scale = 0.031f},
        Case{.name = "int8_smollm", .dtype = kInt8, .heads = 9, .kv_heads = 3},
        Case{.name = "fp8_smollm", .dtype = kFp8, .heads = 9, .kv_heads = 3},
        Case{.name = "int8_window", .dtype = kInt8, .window = 20},
        Case{.name = "fp8_window", .dtype = kFp8, .window = 129, .v_scale = 0.5f},
        Case{.name = "int8_soft_cap", .dtype = kInt8, .soft_cap = 2.0f},
        Case{.name = "int8_odd", .dtype = kInt8, .dim_k = 40, .dim_v = 24},
        Case{.name = "fp8_odd", .dtype = kFp8, .dim_k = 10, .dim_v = 6, .k_scale = 0.25f},
        Case{.name = "int8_many_heads", .dtype = kInt8, .heads = 60, .kv_heads = 1, .dim_k = 16, .dim_v = 16},
        Case{.name = "int8_wide", .dtype = kInt8, .heads = 4, .kv_heads = 1, .dim_k = 128, .dim_v = 128},
        Case{.name = "fp8_wide", .dtype = kFp8, .heads = 4, .kv_heads = 1, .dim_k = 128, .dim_v = 128}),
    [](const auto& i) { return i.param.name; });

// A head of a block by itself.
struct Head {
  explicit Head(DType dtype, int dim)
      : bytes(kBlock * kv_row_bytes(dtype, dim)), to{.dim = dim, .dtype = dtype} {
    to.head = bytes.data();
  }
  std::vector<std::byte> bytes;
  cpu::KvPlace to;
};

// Ties, subnormals, what is too large, infinities and NaN, at a scale of 1 and at another one.
TEST(StoredE4M3, RoundsAsTheReferenceDoes) {
  std::vector<float> x = {0.0f, -0.0f,    INFINITY, -INFINITY, NAN,      448.0f,    464.0f,    463.9f,
                          1e9f, -449.99f, 0x1p-9f,  0x1p-10f,  -0x1p-6f, 0x1.fp-7f, 0x1.1p-10f};
  for (int code = 0; code < 0x7e; ++code) {  // every value, and the middle of each two with its neighbours
    const auto a = static_cast<float>(ref::e4m3(static_cast<uint8_t>(code)));
    const float middle = (a + static_cast<float>(ref::e4m3(static_cast<uint8_t>(code + 1)))) / 2;
    for (const float v : {a, middle, std::nextafter(middle, 0.0f), std::nextafter(middle, 1e9f)}) {
      x.push_back(v);
      x.push_back(-v);
    }
  }
  const int n = static_cast<int>(x.size());
  for (const float scale : {1.0f, 0.3f, 0x1p-20f}) {
    Head k(DType::kF8E4M3, n), v(DType::kF8E4M3, n);
    k.to.scale = v.to.scale = scale;
    k.to.position = 5;
    cpu::kernels().store_k(x.data(), k.to);
    cpu::kernels().store_v(x.data(), v.to);
    for (int i = 0; i < n; ++i) {
      const uint8_t expected = ref::to_e4m3(x[i] / scale);
      ASSERT_EQ(static_cast<int>(v.bytes[i]), expected) << x[i] << " / " << scale;
      ASSERT_EQ(static_cast<int>(k.bytes[i * kBlock + 5]), expected) << x[i] << " / " << scale;
    }
  }
}

// Attention of one query over one key gives the value that the codes mean, exactly.
std::vector<float> read_one(const Head& k, const Head& v, int dim, int tokens) {
  std::vector<std::byte> block(k.bytes);
  block.insert(block.end(), v.bytes.begin(), v.bytes.end());
  const int32_t id = 0;
  std::vector<float> q(size_t(tokens) * dim), out(size_t(tokens) * dim, -1.0f);
  Buffer scratch = std::move(Buffer::allocate(cpu::attend_scratch(dim, dim) * sizeof(float))).value();
  cpu::kernels().attend({.q = q.data(),
                         .q_stride = dim,
                         .tokens = tokens,
                         .heads = 1,
                         .first_position = 0,
                         .blocks = &id,
                         .k = block.data(),
                         .v = block.data() + k.bytes.size(),
                         .block_stride = block.size(),
                         .kv_dtype = k.to.dtype,
                         .v_scale = v.to.scale,
                         .dim_k = dim,
                         .dim_v = dim,
                         .scale = 1,
                         .out = out.data(),
                         .out_stride = dim,
                         .scratch = reinterpret_cast<float*>(scratch.data())});
  return {out.begin(), out.begin() + dim};
}

TEST(StoredE4M3, EveryCodeIsReadAsWhatItMeans) {
  Head k(DType::kF8E4M3, 256), v(DType::kF8E4M3, 256);
  v.to.scale = 0.5f;
  for (int code = 0; code < 256; ++code) v.bytes[code] = static_cast<std::byte>(code);
  for (const int tokens : {1, 2}) {
    const std::vector<float> got = read_one(k, v, 256, tokens);
    for (int code = 0; code < 256; ++code)
      if (code % 128 != 127) EXPECT_EQ(got[code], 0.5 * ref::e4m3(static_cast<uint8_t>(code))) << code;
  }
}

TEST(StoredI8, ScalesOfAnySizeAndWhatIsNoNumber) {
  constexpr int kDim = 40;
  Random random(3);
  for (const float size : {1.0f, 1e-30f, 1e30f, 0.0f, 1e-42f}) {
    std::vector<float> x = random_floats(random, kDim);
    for (float& f : x) f *= size;
    Head k(DType::kI8, kDim), v(DType::kI8, kDim);
    cpu::kernels().store_v(x.data(), v.to);
    float largest = 0;
    for (const float f : x) largest = std::max(largest, std::fabs(f));
    const std::vector<float> got = read_one(k, v, kDim, 1);
    for (int d = 0; d < kDim; ++d)
      EXPECT_NEAR(got[d], x[d], largest / 127 * (1 + 0x1p-7) / 2 + 1e-37) << size;
  }
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    std::vector<float> x = random_floats(random, kDim);
    x[33] = bad;
    Head k(DType::kI8, kDim), v(DType::kI8, kDim);
    cpu::kernels().store_v(x.data(), v.to);
    for (const float got : read_one(k, v, kDim, 1)) EXPECT_TRUE(std::isnan(got)) << bad;
  }
}

TEST(CacheBytes, EightBitsAndTheirScales) {
  KvGroupSpec g{.num_layers = 30, .kv_heads = 3, .head_dim_k = 64, .head_dim_v = 64};
  EXPECT_EQ(KvCache::block_bytes({g}, 16), 30u * 3 * 16 * 256);
  g.dtype = DType::kF8E4M3;
  EXPECT_EQ(KvCache::block_bytes({g}, 16), 30u * 3 * 16 * 128);
  g.dtype = DType::kI8;
  EXPECT_EQ(KvCache::block_bytes({g}, 16), 30u * 3 * 16 * 132);
}

TEST(CacheChecks, ScalesThatAreNone) {
  Machine m(1);
  LayerShape s;
  s.kv = DType::kF8E4M3;
  Layer layer(m.context, s, 1);
  Cache cache(s, 4);
  std::vector<float> hidden(s.hidden, 1.0f), q(size_t(s.heads) * s.dim_k);
  Batch batch({{.tokens = {1}, .blocks = {{0}}}});
  for (const float bad : {0.0f, -1.0f, NAN, INFINITY}) {
    KvLayer kv = cache.layer();
    kv.v_scale = bad;
    EXPECT_THROW(layer.run_qkv(m.context, batch.step, kv, hidden, q), InternalError) << bad;
  }
}

}  // namespace
}  // namespace deepinfer::test
