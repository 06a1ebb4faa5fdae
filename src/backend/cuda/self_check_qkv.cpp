// q, k and v whose heads the skinny kernel finishes against the kernel that stands behind other products.
#include <fmt/format.h>

#include <memory>
#include <utility>

#include "backend/cuda.h"
#include "backend/cuda/device_batch.h"
#include "backend/cuda/linear.h"
#include "backend/cuda/scratch.h"
#include "backend/cuda/self_check_cases.h"
#include "backend/cuda/self_check_data.h"
#include "tensor/kv_cache.h"
#include "tensor/step_batch.h"

namespace deepinfer::cuda {
namespace {

struct QkvShape {
  int64_t tokens = 1;
  int heads = 4, kv_heads = 2, dim = 64;
  DType weight = DType::kBF16;
};

// A layer's product of q, k and v over an empty cache: each token is a row of its own, the last of several
// pads. Bias, norms and RoPE are all there.
class QkvSample {
 public:
  static Result<std::unique_ptr<QkvSample>> make(Gpu& gpu, const QkvShape& s) {
    std::unique_ptr<QkvSample> sample(new QkvSample(gpu, s));
    DI_TRY(sample->make_step());
    DI_TRY(sample->make_params());
    return sample;
  }

  // q, then the cache, in rows of a head. What no kernel has to write is 0; what is scratch, NaN.
  Result<std::vector<float>> run() {
    gpu_.fill(scratch_, 0xff, arena_.capacity());
    gpu_.fill(q_.data(), 0xff, q_.size());
    gpu_.fill(cache_.data(), 0, cache_.size());
    qkv(context_, params_);
    DI_ASSIGN(std::vector<float> values, receive(gpu_, params_.q));
    DI_ASSIGN(const std::vector<float> cached,
              receive(gpu_, make_tensor(cache_.data(), DType::kBF16,
                                        {static_cast<int64_t>(cache_.size() / 2)}, context_.device)));
    values.insert(values.end(), cached.begin(), cached.end());
    return values;
  }

 private:
  static constexpr int64_t kHidden = 128;
  static constexpr int kBlock = 16, kBlocksOfRow = 2;

  QkvSample(Gpu& gpu, const QkvShape& s)
      : gpu_(gpu), shape_(s), rows_(int64_t{s.heads + 2 * s.kv_heads} * s.dim) {
    context_ = {.device = {Device::Kind::kCuda, gpu.facts().index},
                .gpu = &gpu,
                .scratch = &arena_,
                .activation = DType::kBF16};
  }
  QkvSample(const QkvSample&) = delete;

  Result<void> make_step() {
    std::vector<int32_t> position, token_row, blocks;
    for (int32_t t = 0; t < shape_.tokens; ++t) {
      const bool pads = t > 0 && t + 1 == shape_.tokens;
      position.push_back(pads ? -1 : 7 * t % (kBlock * kBlocksOfRow));
      token_row.push_back(t);
      for (int32_t i = 0; i < kBlocksOfRow; ++i) blocks.push_back(kBlocksOfRow * t + i);
    }
    DI_ASSIGN(position_, send(gpu_, position));
    DI_ASSIGN(token_row_, send(gpu_, token_row));
    DI_ASSIGN(blocks_, send(gpu_, blocks));
    const auto ints = [](const Buffer& b) { return reinterpret_cast<const int32_t*>(b.data()); };
    device_batch_ = {.position = ints(position_),
                     .token_row = ints(token_row_),
                     .row_blocks = ints(blocks_),
                     .max_blocks = kBlocksOfRow};
    const auto tokens = static_cast<int32_t>(shape_.tokens);
    batch_ = {.num_rows = tokens, .num_tokens = tokens, .device = &device_batch_};
    return {};
  }

  Result<void> make_params() {
    const QkvShape& s = shape_;
    Random random(23);
    const KvGroupSpec spec{.num_layers = 1,
                           .kv_heads = s.kv_heads,
                           .head_dim_k = s.dim,
                           .head_dim_v = s.dim,
                           .dtype = DType::kBF16};
    const int64_t blocks = s.tokens * kBlocksOfRow;
    DI_ASSIGN(cache_, gpu_.allocate(KvCache::block_bytes({spec}, kBlock) * static_cast<size_t>(blocks)));
    DI_ASSIGN(q_, gpu_.allocate(static_cast<size_t>(s.tokens * s.heads * s.dim) * 2));
    DI_ASSIGN(Buffer scratch, gpu_.allocate(linear_scratch(context_, s.tokens, kHidden, rows_) +
                                            qkv_scratch(context_, s.tokens, rows_) + 256));
    scratch_ = scratch.data();
    arena_ = Arena(std::move(scratch), 256);
    const std::vector<std::byte> source = random_weight(s.weight, rows_, kHidden, random);
    DI_ASSIGN(weight_,
              pack_linear(context_, {.dtype = s.weight, .cols = kHidden, .parts = {{source.data(), rows_}}}));
    // An angle's cosine and sine stand for themselves: the kernels only multiply with them.
    const std::pair<Tensor*, std::vector<int64_t>> inputs[] = {{&params_.hidden, {s.tokens, kHidden}},
                                                               {&params_.norm.weight, {kHidden}},
                                                               {&params_.bias, {rows_}},
                                                               {&params_.q_norm.weight, {s.dim}},
                                                               {&params_.k_norm.weight, {s.dim}},
                                                               {&params_.rope, {s.tokens, s.dim}}};
    for (const auto& [tensor, shape] : inputs) {
      const int64_t count = shape.size() == 2 ? shape[0] * shape[1] : shape[0];
      DI_ASSIGN(Buffer values, send(gpu_, random.floats(count)));
      *tensor = shape.size() == 2
                    ? make_tensor(values.data(), DType::kF32, {shape[0], shape[1]}, context_.device)
                    : make_tensor(values.data(), DType::kF32, {count}, context_.device);
      inputs_.push_back(std::move(values));
    }
    params_.batch = &batch_;
    params_.weight = &weight_;
    params_.kv = KvCache({spec}, kBlock, blocks, cache_.data(), context_.device).layer(0, 0);
    params_.heads = s.heads;
    params_.q = make_tensor(q_.data(), DType::kBF16, {s.tokens, s.heads * s.dim}, context_.device);
    return {};
  }

  Gpu& gpu_;
  QkvShape shape_;
  int64_t rows_;
  Context context_;
  Arena arena_;
  std::byte* scratch_ = nullptr;
  Buffer position_, token_row_, blocks_, cache_, q_;
  std::vector<Buffer> inputs_;
  LinearWeight weight_;
  DeviceBatch device_batch_;
  StepBatch batch_;
  QkvParams params_;
};

Result<Comparison> compare_finish(Gpu& gpu, const QkvShape& s) {
  DI_ASSIGN(const std::unique_ptr<QkvSample> sample, QkvSample::make(gpu, s));
  Comparison c{.shape = fmt::format("{} tokens, {} heads and {} KV heads of {}, weights in {}", s.tokens,
                                    s.heads, s.kv_heads, s.dim, info(s.weight).name),
               .row = static_cast<size_t>(s.dim),
               .bound = kProductBound};
  const SavedPaths saved(gpu);
  gpu.fast.finish = false;
  DI_ASSIGN(const std::vector<float> plain, sample->run());
  gpu.fast.finish = true;
  // The second time from the counters that the first one left.
  for (int i = 0; i < 2; ++i) {
    DI_ASSIGN(const std::vector<float> fast, sample->run());
    c.plain.insert(c.plain.end(), plain.begin(), plain.end());
    c.fast.insert(c.fast.end(), fast.begin(), fast.end());
  }
  return c;
}

}  // namespace

// Of many blocks a head and many heads a block, with the norm in the kernel and before it, in one pass and
// in two.
Result<std::vector<Comparison>> check_finish(Gpu& gpu) {
  if (!gpu.fast.skinny)
    return make_error(ErrorCode::kUnavailable, "the skinny kernel, of which it is a part, is off");
  std::vector<Comparison> all;
  for (const QkvShape& s : std::vector<QkvShape>{{.tokens = 1, .heads = 16, .kv_heads = 8, .dim = 128},
                                                 {.tokens = 4, .heads = 6, .kv_heads = 2, .dim = 64},
                                                 {.tokens = 9, .heads = 3, .kv_heads = 1, .dim = 80},
                                                 {.tokens = 16, .heads = 4, .kv_heads = 2, .dim = 16},
                                                 {.tokens = 20, .weight = DType::kQ4_0}}) {
    DI_ASSIGN(Comparison c, compare_finish(gpu, s));
    all.push_back(std::move(c));
  }
  return all;
}

}  // namespace deepinfer::cuda
