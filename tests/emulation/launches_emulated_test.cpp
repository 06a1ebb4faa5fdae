// How many kernels a layer is, so that it does not grow unseen. Products by cuBLASLt are not counted: four a
// layer, where more than 16 tokens come.
#include <gtest/gtest.h>

#include "backend/cuda.h"
#include "backend/cuda/cublaslt.h"
#include "emulation/device_step.h"

namespace deepinfer::test {
namespace {

constexpr int kHeads = 8, kKvHeads = 2, kDim = 16, kHidden = 64, kWidth = 128, kContext = 300;

struct Layer {
  Layer(int decode_rows, int chunk, bool bias)
      : machine(DType::kBF16, false, size_t{32} << 20), batch(rows_of(decode_rows, chunk)) {
    cuda::open_cublaslt(*machine.gpu);
    tokens = batch.step.num_tokens;
    const int64_t qkv_rows = (kHeads + 2 * kKvHeads) * kDim;
    for (const auto& [rows, cols] : std::vector<std::pair<int64_t, int64_t>>{
             {qkv_rows, kHidden}, {kHidden, kHeads * kDim}, {kHidden, kWidth}}) {
      const Matrix w = random_matrix(random, DType::kBF16, rows, cols, 0.2);
      weights.push_back(pack(machine.context, {&w}));
      if (bias)
        biases.push_back(std::make_unique<DeviceTensor>(machine, DType::kF32, random_floats(random, rows)));
    }
    const Matrix gate = random_matrix(random, DType::kBF16, kWidth, kHidden), up = gate;
    gate_up = pack(machine.context, {&gate, &up}, RowOrder::kPaired);
  }
  static std::vector<Batch::Row> rows_of(int decode_rows, int chunk) {
    std::vector<Batch::Row> rows;
    for (int i = 0; i < decode_rows; ++i) rows.push_back(row(i, 1));
    if (chunk > 0) rows.push_back(row(decode_rows, chunk));
    return rows;
  }
  static Batch::Row row(int i, int tokens) {
    std::vector<int32_t> blocks((kContext + tokens + 15) / 16);
    for (size_t b = 0; b < blocks.size(); ++b) blocks[b] = static_cast<int32_t>(i * 32 + b);
    return {.context_len = kContext, .tokens = std::vector<int32_t>(tokens, 1), .blocks = {blocks}};
  }
  Tensor bias_of(int i) const { return biases.empty() ? Tensor{} : biases[i]->tensor({weights[i].rows}); }

  // Kernels of the layer's second run: the first one tunes.
  int64_t kernels() {
    DeviceStep step(machine, batch);
    const KvGroupSpec spec{
        .num_layers = 1, .kv_heads = kKvHeads, .head_dim_k = kDim, .head_dim_v = kDim, .dtype = DType::kBF16};
    const int blocks = 32 * batch.step.num_rows;
    const size_t bytes = KvCache::block_bytes({spec}, 16) * blocks;
    const DeviceArray<std::byte> memory(machine, std::vector<std::byte>(bytes));
    KvCache cache({spec}, 16, blocks, memory.data(), machine.context.device);
    DeviceTensor hidden(machine, DType::kF32, random_floats(random, tokens * kHidden)),
        norm(machine, DType::kF32, random_floats(random, kHidden)),
        q(machine, DType::kBF16, static_cast<size_t>(tokens * kHeads * kDim)),
        attended(machine, DType::kBF16, static_cast<size_t>(tokens * kHeads * kDim)),
        inner(machine, DType::kBF16, static_cast<size_t>(tokens * kWidth));
    const Tensor x = hidden.tensor({tokens, kHidden}), wide = q.tensor({tokens, kHeads * kDim}),
                 out = attended.tensor({tokens, kHeads * kDim}), act = inner.tensor({tokens, kWidth});
    const Norm n{norm.tensor({kHidden}), 1e-5f};
    int64_t before = 0;
    for (int run = 0; run < 2; ++run) {
      machine.gpu->synchronize();
      before = emulation::machine_counts().kernels;
      Context& c = machine.context;
      cuda::qkv(c, {.batch = &batch.step,
                    .hidden = x,
                    .norm = n,
                    .weight = &weights[0],
                    .bias = bias_of(0),
                    .kv = cache.layer(0, 0),
                    .heads = kHeads,
                    .q = wide});
      cuda::attention(c, {.batch = &batch.step,
                          .q = wide,
                          .kv = cache.layer(0, 0),
                          .heads = kHeads,
                          .scale = 0.25f,
                          .out = out});
      cuda::project(c, {.x = out, .weight = &weights[1], .bias = bias_of(1), .residual = x});
      cuda::gate_up(c, {.hidden = x, .norm = n, .weight = &gate_up, .out = act});
      cuda::project(c, {.x = act, .weight = &weights[2], .bias = bias_of(2), .residual = x});
      machine.gpu->synchronize();
    }
    return emulation::machine_counts().kernels - before;
  }

  CudaMachine machine;
  Random random{5};
  Batch batch;
  int64_t tokens = 0;
  std::vector<LinearWeight> weights;  // qkv, out, down
  std::vector<std::unique_ptr<DeviceTensor>> biases;
  LinearWeight gate_up;
};

TEST(CudaLaunches, OfALayer) {
  for (const bool bias : {false, true}) {
    SCOPED_TRACE(bias ? "with biases" : "without biases");
    // Four products, attention.
    EXPECT_EQ(Layer(1, 0, bias).kernels(), 5);
    EXPECT_EQ(Layer(4, 0, bias).kernels(), 5);
    // And two norms.
    EXPECT_EQ(Layer(5, 0, bias).kernels(), 7);
    EXPECT_EQ(Layer(16, 0, bias).kernels(), 7);
    // Two norms, heads, attention, gate and up; the products are the library's.
    EXPECT_EQ(Layer(17, 0, bias).kernels(), 5);
    EXPECT_EQ(Layer(0, 70, bias).kernels(), 5);
    // Both kinds of rows: attention is two kernels.
    EXPECT_EQ(Layer(3, 40, bias).kernels(), 6);
  }
}

}  // namespace
}  // namespace deepinfer::test
