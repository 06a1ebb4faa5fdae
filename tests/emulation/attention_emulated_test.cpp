// The own attention kernels against tests/ref: shapes, windows, caps, caches of fp8, steps of decode rows and
// chunks, whatever stands in the cache behind and beyond a row's context.
#include <cuda_fp8.h>
#include <gtest/gtest.h>

#include <numeric>

#include "backend/cuda/attention.h"
#include "backend/cuda/scratch.h"
#include "emulation/device_step.h"

namespace deepinfer::test {
namespace {

struct RowSpec {
  int context = 0;  // before the step
  int tokens = 1;
  bool padding = false;
};

struct Case {
  std::string name;
  int heads = 4, kv_heads = 2, dim_k = 64, dim_v = 64;
  DType activation = DType::kBF16;
  bool fp8 = false;
  int block_size = 16;
  int window = 0;
  float soft_cap = 0;
  std::vector<RowSpec> rows = {{70}, {0}, {31}, {0, 1, true}, {5, 40}, {0, 19}};
  int max_context = 0;  // a bound above the step's
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << c.name;
}

constexpr float kKScale = 0.5f, kVScale = 0.25f;

uint16_t to_bits(DType dtype, float x) {
  return dtype == DType::kF16 ? ref::to_f16(x) : ref::to_bf16(x);
}
float to_float(DType dtype, uint16_t bits) {
  return dtype == DType::kF16 ? static_cast<float>(ref::f16(bits))
                              : std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

// Sequences with random q, k and v, and the cache that holds them.
struct World {
  using Values = std::vector<std::vector<double>>;  // [positions][dim]

  World(const Case& shape, uint64_t seed) : c(shape), random(seed) {
    for (const RowSpec& row : c.rows) {
      const int length = row.padding ? 0 : row.context + row.tokens;
      longest = std::max(longest, length);
      blocks_in_use += (length + c.block_size - 1) / c.block_size;
    }
    lay_out();
    for (size_t row = 0; row < c.rows.size(); ++row) fill(row);
  }

  size_t element() const { return c.fp8 ? 1 : 2; }
  size_t k_bytes() const { return size_t(c.kv_heads) * c.block_size * c.dim_k * element(); }
  size_t block_stride() const {
    return k_bytes() + size_t(c.kv_heads) * c.block_size * c.dim_v * element() + 64;
  }

  // Blocks in a random order; those behind every window of a step are gone.
  void lay_out() {
    cache.assign(block_stride() * (blocks_in_use + 3), std::byte{0xff});  // NaN, whatever the type
    std::vector<int32_t> free(blocks_in_use + 3);
    std::iota(free.begin(), free.end(), 0);
    std::shuffle(free.begin(), free.end(), random);
    for (const RowSpec& row : c.rows) {
      const int length = row.padding ? 0 : row.context + row.tokens;
      std::vector<int32_t> ids((length + c.block_size - 1) / c.block_size);
      for (int32_t& id : ids) id = free.back(), free.pop_back();
      blocks.push_back(ids);
      const int first = c.window > 0 ? std::max(0, row.context + 1 - c.window) : 0;
      for (int i = 0; i < first / c.block_size; ++i) ids[i] = -1;
      batch_rows.push_back(
          {.context_len = row.context, .tokens = std::vector<int32_t>(row.tokens, 0), .blocks = {ids}});
    }
  }

  // Rounds to the cache's type and stores it. Returns what a reader gets.
  double store(std::byte* to, float x, float scale) {
    if (c.fp8) {
      __nv_fp8_e4m3 rounded;
      rounded.__x = __nv_cvt_float_to_fp8(x / scale, __NV_SATFINITE, __NV_E4M3);
      std::memcpy(to, &rounded, 1);
      return static_cast<double>(static_cast<float>(rounded)) * scale;
    }
    const uint16_t bits = to_bits(c.activation, x);
    std::memcpy(to, &bits, 2);
    return to_float(c.activation, bits);
  }

  void fill(size_t row) {
    const RowSpec& spec = c.rows[row];
    const int length = spec.padding ? 0 : spec.context + spec.tokens;
    k.emplace_back(c.kv_heads, Values(length, std::vector<double>(c.dim_k)));
    v.emplace_back(c.kv_heads, Values(length, std::vector<double>(c.dim_v)));
    std::normal_distribution<float> normal;
    for (int p = 0; p < length; ++p) {
      std::byte* const block = cache.data() + block_stride() * blocks[row][p / c.block_size];
      for (int h = 0; h < c.kv_heads; ++h) {
        const size_t line = size_t(h) * c.block_size + p % c.block_size;
        for (int d = 0; d < c.dim_k; ++d)
          k[row][h][p][d] = store(block + (line * c.dim_k + d) * element(), normal(random), kKScale);
        for (int d = 0; d < c.dim_v; ++d)
          v[row][h][p][d] =
              store(block + k_bytes() + (line * c.dim_v + d) * element(), normal(random), kVScale);
      }
    }
    // Sharper than 1 / sqrt(dim) leaves them, so that keys differ.
    for (int i = 0; i < spec.tokens * c.heads * c.dim_k; ++i)
      q.push_back(to_bits(c.activation, 2 * normal(random)));
  }

  float scale() const { return 1.0f / std::sqrt(static_cast<float>(c.dim_k)); }

  Case c;
  Random random;
  int longest = 0, blocks_in_use = 0;
  std::vector<std::byte> cache;
  std::vector<std::vector<int32_t>> blocks;  // [rows], before some were freed
  std::vector<Batch::Row> batch_rows;
  std::vector<std::vector<Values>> k, v;  // [rows][kv_heads]
  std::vector<uint16_t> q;                // [T, heads, dim_k]
};

constexpr uint16_t kUnwritten = 0x7ff7;

// The whole step's output, [T, heads, dim_v], as bits.
struct How {
  bool deterministic = false;
  bool all_prefill = false;  // decode rows too go to the kernel for chunks
  bool pdl = false;
  int launches = 1;
};

std::vector<uint16_t> run(World& w, How how = {}) {
  const Case& c = w.c;
  CudaMachine m(c.activation, how.deterministic, 256);
  m.gpu->pdl = how.pdl;
  Batch batch(w.batch_rows);
  for (size_t row = 0; row < c.rows.size(); ++row)
    if (c.rows[row].padding)
      for (int t = batch.row_start[row]; t < batch.row_start[row + 1]; ++t) batch.position[t] = -1;
  DeviceStep step(m, batch, {.max_blocks = 0, .max_context = c.max_context});
  if (how.all_prefill) step.device.decode_rows = 0;
  const DeviceArray<std::byte> cache(m, w.cache);
  const DeviceArray<uint16_t> q(m, w.q);
  const size_t wanted = size_t(batch.step.num_tokens) * c.heads * c.dim_v, guard = 64;
  const DeviceArray<uint16_t> out(m, std::vector<uint16_t>(wanted + guard, kUnwritten));
  const cuda::PagedAttention a{.rows = batch.step.num_rows,
                               .tokens = batch.step.num_tokens,
                               .heads = c.heads,
                               .kv_heads = c.kv_heads,
                               .dim_k = c.dim_k,
                               .dim_v = c.dim_v,
                               .block_size = c.block_size,
                               .window = c.window,
                               .scale = w.scale(),
                               .soft_cap = c.soft_cap,
                               .activation = c.activation,
                               .kv_dtype = c.fp8 ? DType::kF8E4M3 : c.activation,
                               .k_scale = kKScale,
                               .v_scale = kVScale,
                               .q = q.data(),
                               .out = out.data(),
                               .k = cache.data(),
                               .v = cache.data() + w.k_bytes(),
                               .block_stride = w.block_stride(),
                               .batch = &step.device,
                               .row_blocks = step.row_blocks.data()};
  const Buffer scratch = m.take(std::max<size_t>(cuda::attention_scratch_bytes(*m.gpu, a), 1));
  for (int i = 0; i < how.launches; ++i) cuda::attention_plain(*m.gpu, a, scratch.data());
  m.gpu->synchronize();
  std::vector<uint16_t> bits = out.read();
  EXPECT_TRUE(std::all_of(bits.begin() + wanted, bits.end(), [](uint16_t b) { return b == kUnwritten; }));
  bits.resize(wanted);
  return bits;
}

std::vector<double> query(const World& w, size_t token, int head) {
  std::vector<double> q(w.c.dim_k);
  for (int d = 0; d < w.c.dim_k; ++d)
    q[d] = to_float(w.c.activation, w.q[(token * w.c.heads + head) * w.c.dim_k + d]);
  return q;
}

World::Values magnitudes(World::Values v) {
  for (auto& row : v)
    for (double& x : row) x = std::fabs(x);
  return v;
}

// Every element is within the rounding of the weights and of the result.
void compare(const World& w, const std::vector<uint16_t>& bits) {
  const Case& c = w.c;
  // Half a unit in the last place of 1.
  const double unit = c.activation == DType::kF16 ? 1.0 / 2048 : 1.0 / 256;
  const ref::AttentionShape shape{c.dim_k, c.dim_v, w.scale(), c.soft_cap, c.window};
  double worst = 0;
  size_t token = 0;
  for (size_t row = 0; row < c.rows.size(); ++row) {
    for (int i = 0; i < c.rows[row].tokens; ++i, ++token) {
      for (int h = 0; h < c.heads; ++h) {
        const uint16_t* const got = bits.data() + (token * c.heads + h) * c.dim_v;
        if (c.rows[row].padding) {
          for (int d = 0; d < c.dim_v; ++d) ASSERT_EQ(got[d], 0) << "padding, row " << row;
          continue;
        }
        const int kv = h / (c.heads / c.kv_heads), position = c.rows[row].context + i;
        const std::vector<double> q = query(w, token, h);
        const std::vector<double> expected = ref::attend(shape, q, w.k[row][kv], w.v[row][kv], position);
        const std::vector<double> size =
            ref::attend(shape, q, w.k[row][kv], magnitudes(w.v[row][kv]), position);
        for (int d = 0; d < c.dim_v; ++d) {
          const double error = std::fabs(to_float(c.activation, got[d]) - expected[d]);
          const double bound = unit * (size[d] + std::fabs(expected[d])) + 2e-5 * size[d] + 1e-7;
          ASSERT_LE(error, bound) << "row " << row << " token " << i << " head " << h << " column " << d
                                  << ": got " << to_float(c.activation, got[d]) << ", expected "
                                  << expected[d];
          worst = std::max(worst, error / bound);
        }
      }
    }
  }
  testing::Test::RecordProperty("worst_error_of_bound", std::to_string(worst));
}

class CudaAttention : public testing::TestWithParam<Case> {};

TEST_P(CudaAttention, MatchesDoublePrecision) {
  World w(GetParam(), 7);
  compare(w, run(w));
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, CudaAttention,
    testing::Values(
        Case{.name = "plain"}, Case{.name = "f16", .activation = DType::kF16},
        Case{.name = "group_1", .heads = 2, .dim_k = 32, .dim_v = 32},
        Case{.name = "group_3", .heads = 9, .kv_heads = 3},
        Case{.name = "group_5", .heads = 5, .kv_heads = 1, .dim_k = 80, .dim_v = 80, .block_size = 32},
        Case{.name = "group_7", .heads = 14, .dim_k = 24, .dim_v = 24},
        Case{.name = "group_8", .heads = 8, .kv_heads = 1, .dim_k = 128, .dim_v = 128},
        Case{.name = "group_16", .heads = 16, .kv_heads = 1, .dim_k = 16, .dim_v = 16, .block_size = 128},
        Case{.name = "group_20",
             .heads = 20,
             .kv_heads = 1,
             .dim_k = 40,
             .dim_v = 40,
             .activation = DType::kF16},
        Case{.name = "dims_differ", .dim_k = 96, .dim_v = 64, .block_size = 64},
        Case{.name = "wide_values", .heads = 2, .kv_heads = 1, .dim_k = 72, .dim_v = 136},
        Case{.name = "dim_192",
             .heads = 3,
             .kv_heads = 1,
             .dim_k = 192,
             .dim_v = 128,
             .activation = DType::kF16},
        Case{.name = "dim_256", .heads = 4, .kv_heads = 1, .dim_k = 256, .dim_v = 256},
        Case{.name = "window", .window = 20},
        Case{.name = "window_one", .window = 1, .rows = {{70}, {16}, {40, 35}}},
        Case{.name = "window_of_blocks",
             .dim_k = 32,
             .dim_v = 32,
             .block_size = 32,
             .window = 64,
             .rows = {{200}, {127}, {150, 70}}},
        Case{.name = "soft_cap", .soft_cap = 3.0f},
        Case{.name = "soft_cap_window_f16", .activation = DType::kF16, .window = 33, .soft_cap = 30.0f},
        Case{.name = "fp8", .fp8 = true},
        Case{.name = "fp8_f16",
             .dim_k = 128,
             .dim_v = 128,
             .activation = DType::kF16,
             .fp8 = true,
             .block_size = 32},
        Case{.name = "fp8_odd",
             .heads = 6,
             .dim_k = 40,
             .dim_v = 24,
             .fp8 = true,
             .window = 25,
             .soft_cap = 5.0f},
        Case{.name = "fp8_256",
             .heads = 4,
             .kv_heads = 1,
             .dim_k = 256,
             .dim_v = 136,
             .fp8 = true,
             .rows = {{40}, {7, 20}}},
        Case{.name = "graph_bound",
             .dim_k = 32,
             .dim_v = 32,
             .rows = {{300}, {9}, {0, 1, true}, {0, 1, true}},
             .max_context = 5000},
        Case{.name = "decode_only", .dim_k = 32, .dim_v = 32, .rows = {{500}}},
        Case{.name = "many_rows",
             .heads = 2,
             .kv_heads = 1,
             .dim_k = 16,
             .dim_v = 16,
             .rows = std::vector<RowSpec>(37, RowSpec{33})},
        Case{.name = "many_chunks",
             .heads = 2,
             .kv_heads = 1,
             .dim_k = 16,
             .dim_v = 16,
             .rows = std::vector<RowSpec>(35, RowSpec{3, 2})},
        Case{.name = "short_chunk_behind_much", .dim_k = 32, .dim_v = 32, .rows = {{400, 3}, {90, 5}}},
        Case{.name = "short_chunk_window_fp8",
             .dim_k = 24,
             .dim_v = 40,
             .fp8 = true,
             .block_size = 32,
             .window = 200,
             .rows = {{0, 1, true}, {400, 7}, {0, 2}},
             .max_context = 3000},
        Case{.name = "long_chunk", .heads = 3, .kv_heads = 1, .dim_k = 16, .dim_v = 16, .rows = {{17, 150}}}),
    [](const auto& i) { return i.param.name; });

// Through ops: what the layer's parameters become, and scratch of no more than was asked for.
TEST(CudaAttentionOperation, TakesALayersCache) {
  for (const bool deterministic : {false, true}) {
    const Case c{.name = "operation", .window = 40, .rows = {{70}, {0, 1, true}, {600}, {5, 40}}};
    World w(c, 31);
    const KvGroupSpec spec{.kind = KvGroupSpec::Kind::kWindow,
                           .window = c.window,
                           .num_layers = 1,
                           .kv_heads = c.kv_heads,
                           .head_dim_k = c.dim_k,
                           .head_dim_v = c.dim_v,
                           .dtype = c.activation};
    CudaMachine sizes(c.activation, deterministic, 256);
    const int64_t width = int64_t{c.heads} * c.dim_v;
    CudaMachine m(c.activation, deterministic, cuda::attention_scratch(sizes.context, 43, width) + 256);
    Batch batch(w.batch_rows);
    batch.position[1] = -1;
    DeviceStep step(m, batch);
    const DeviceArray<std::byte> cache(m, w.cache);
    const int64_t tokens = batch.step.num_tokens;
    const DeviceArray<uint16_t> q(m, w.q), out(m, std::vector<uint16_t>(tokens * width, kUnwritten));
    const KvLayer layer{
        .base = cache.data(), .block_stride = w.block_stride(), .block_size = 16, .spec = spec};
    ops::attention(
        m.context,
        {.batch = &batch.step,
         .q = make_tensor(q.data(), c.activation, {tokens, int64_t{c.heads} * c.dim_k}, m.context.device),
         .kv = layer,
         .heads = c.heads,
         .scale = w.scale(),
         .out = make_tensor(out.data(), c.activation, {tokens, width}, m.context.device)});
    EXPECT_EQ(m.arena.used(), 0u);
    compare(w, out.read());
  }
}

// A grid's third dimension ends at 65,535.
TEST(CudaAttentionKinds, MoreDecodeRowsThanAGridHas) {
  Case c{.name = "many rows", .heads = 1, .kv_heads = 1, .dim_k = 16, .dim_v = 16};
  c.rows.assign(65540, {0, 1, true});
  c.rows[7] = {3}, c.rows.back() = {40};
  World w(c, 5);
  compare(w, run(w, {}));
}

// Without a cut at fixed positions too: a step of one kind is close to the same tokens as another kind.
TEST(CudaAttentionKinds, DecodeRowsAsChunks) {
  World w({.name = "kinds", .dim_k = 32, .dim_v = 32, .rows = {{70}, {1}, {33}}}, 3);
  compare(w, run(w, {.all_prefill = true}));
}

// A token's bits with gpu.deterministic: as part of a chunk, of another chunk, alone, and next to others.
TEST(CudaAttentionDeterministic, BitsDoNotDependOnTheStep) {
  for (const int window : {0, 700}) {
    const Case whole{.name = "whole",
                     .heads = 3,
                     .kv_heads = 1,
                     .dim_k = 16,
                     .dim_v = 16,
                     .window = window,
                     .rows = {{0, 1100}}};
    World w(whole, 11);
    const std::vector<uint16_t> expected = run(w, {.deterministic = true});
    const size_t width = size_t(whole.heads) * whole.dim_v, q_width = size_t(whole.heads) * whole.dim_k;
    // The same cache, other steps over it. Rows of the sequence side by side: {context, tokens}.
    const auto step = [&](const std::vector<RowSpec>& rows, bool all_prefill) {
      World part = w;
      part.c.rows = rows;
      part.batch_rows.clear();
      part.q.clear();
      for (const RowSpec& row : rows) {
        part.batch_rows.push_back({.context_len = row.context,
                                   .tokens = std::vector<int32_t>(row.tokens, 0),
                                   .blocks = {w.blocks[0]}});
        part.q.insert(part.q.end(), w.q.begin() + row.context * q_width,
                      w.q.begin() + (row.context + row.tokens) * q_width);
      }
      const std::vector<uint16_t> got = run(part, {.deterministic = true, .all_prefill = all_prefill});
      size_t at = 0;
      for (const RowSpec& row : rows) {
        const size_t count = row.tokens * width;
        EXPECT_TRUE(
            std::equal(got.begin() + at, got.begin() + at + count, expected.begin() + row.context * width))
            << "window " << window << ", " << row.tokens << " tokens behind " << row.context;
        at += count;
      }
    };
    step({{1099}}, false);
    step({{1099}, {511}, {512}, {513}, {0}, {31}, {32}}, false);
    step({{1023}, {600, 50}, {1005, 95}}, false);
    step({{1098}, {3, 2}}, true);
  }
}

// The same where query rows stand in shared memory and the cache is converted.
TEST(CudaAttentionDeterministic, BitsOfWideHeadsInFp8) {
  Case c{
      .name = "wide", .heads = 2, .kv_heads = 1, .dim_k = 136, .dim_v = 24, .fp8 = true, .rows = {{500, 40}}};
  World w(c, 13);
  const std::vector<uint16_t> expected = run(w, {.deterministic = true});
  for (const int context : {500, 511, 512, 539}) {
    World alone = w;
    const size_t token = context - 500, q_width = size_t(c.heads) * c.dim_k,
                 width = size_t(c.heads) * c.dim_v;
    alone.c.rows = {{context}};
    alone.batch_rows[0].context_len = context;
    alone.batch_rows[0].tokens = {0};
    alone.q.assign(w.q.begin() + token * q_width, w.q.begin() + (token + 1) * q_width);
    const std::vector<uint16_t> got = run(alone, {.deterministic = true});
    EXPECT_TRUE(std::equal(got.begin(), got.end(), expected.begin() + token * width)) << "behind " << context;
  }
}

// A decode row whose stretches do not fit into scratch is taken by one block: the same bits.
TEST(CudaAttentionDeterministic, ManyRowsAsOne) {
  Case c{
      .name = "one", .heads = 64, .kv_heads = 1, .dim_k = 16, .dim_v = 256, .rows = {{600}, {2}, {2}, {2}}};
  World w(c, 5);
  const std::vector<uint16_t> expected = run(w, {.deterministic = true});
  // So many stretches of a graph's bound that the parts would need more than their share.
  c.max_context = 1 << 30;
  World bounded(c, 5);
  EXPECT_EQ(run(bounded, {.deterministic = true}), expected);
}

TEST(CudaAttentionOrders, EveryOrderOfThreadsGivesTheSame) {
  const Case c{.name = "orders",
               .heads = 6,
               .dim_k = 40,
               .dim_v = 64,
               .fp8 = true,
               .window = 50,
               .rows = {{70}, {130}, {0, 1, true}, {5, 40}}};
  World w(c, 23);
  std::vector<uint16_t> first;
  for (const uint64_t seed : {1, 2, 3, 4, 5}) {
    set_order(seed);
    // What a launch counts is gone before the next one.
    const std::vector<uint16_t> got = run(w, {.pdl = seed % 2 == 0, .launches = seed > 3 ? 3 : 1});
    if (first.empty()) first = got, compare(w, first);
    EXPECT_EQ(got, first) << "seed " << seed;
  }
}

}  // namespace
}  // namespace deepinfer::test
