#include <algorithm>
#include <span>

#include "backend/cuda/device_batch.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/parts.h"
#include "backend/cuda/ptx.h"
#include "base/check.h"
#include "emulation/hash_model.h"

namespace deepinfer::test {
namespace {

using cuda::DeviceBatch;

constexpr int kThreads = 32;

__device__ uint64_t mix(uint64_t a, uint64_t b, uint64_t c) {
  uint64_t x = a * 0x9E3779B97F4A7C15ull ^ b * 0xC2B2AE3D27D4EB4Full ^ c * 0x165667B19E3779F9ull;
  x ^= x >> 29;
  x *= 0xBF58476D1CE4E5B9ull;
  x ^= x >> 32;
  x *= 0x94D049BB133111EBull;
  return x ^ x >> 31;
}

// Of a token in the group with a window; the other group's is chained.
__device__ uint64_t window_part(int32_t token, int32_t position) {
  return mix(7, static_cast<uint64_t>(token), static_cast<uint64_t>(position));
}
__device__ uint64_t chained(uint64_t before, int32_t token, int32_t position) {
  return mix(before, static_cast<uint64_t>(token) + 1, static_cast<uint64_t>(position));
}
__device__ float logit(uint64_t value, int32_t id) {
  return static_cast<float>(mix(value, static_cast<uint64_t>(id), 3) >> 40) * 0x1p-20f;
}

// One group's cache: 8 bytes a position.
struct Store {
  std::byte* base = nullptr;  // null: the model has no such group
  size_t block_stride = 0;
  int32_t block_size = 0, group = 0, window = 0;
};

__device__ uint64_t* cell(const Store& s, const DeviceBatch& b, int row, int32_t position) {
  const int32_t block = b.row_blocks[s.group * b.group_stride + static_cast<int64_t>(row) * b.max_blocks +
                                     position / s.block_size];
  return reinterpret_cast<uint64_t*>(s.base + s.block_stride * static_cast<size_t>(block)) +
         position % s.block_size;
}

// One thread walks a row: a chunk's tokens stand on those before them.
__global__ void forward_kernel(DeviceBatch b, Store full, Store window, uint64_t* values) {
  cuda::grid_dependency_wait();
  const int row = static_cast<int>(blockIdx.x);
  if (threadIdx.x != 0) return;
  for (int32_t t = b.row_start[row]; t < b.row_start[row + 1]; ++t) {
    const int32_t position = b.position[t], token = b.token[t];
    values[t] = 0;
    if (position < 0) continue;
    // What begin_step wrote is part of the value: it shows when it is wrong.
    const bool sound = b.token_row[t] == row && position == b.context_len[row] + t - b.row_start[row];
    const uint64_t before = position == 0 ? 0 : *cell(full, b, row, position - 1);
    const uint64_t value = chained(sound ? before : ~before, token, position);
    *cell(full, b, row, position) = value;
    values[t] = value;
    if (window.base == nullptr) continue;
    *cell(window, b, row, position) = window_part(token, position);
    for (int32_t p = position - window.window + 1; p <= position; ++p)
      if (p >= 0) values[t] += *cell(window, b, row, p);
  }
}

__global__ void logits_kernel(DeviceBatch b, const uint64_t* values, float* logits, int32_t vocab) {
  cuda::grid_dependency_wait();
  const uint64_t value = values[b.logit_token[blockIdx.x]];
  for (int32_t id = static_cast<int32_t>(threadIdx.x); id < vocab; id += kThreads)
    logits[static_cast<int64_t>(blockIdx.x) * vocab + id] = logit(value, id);
}

class HashModel final : public Model {
 public:
  explicit HashModel(const HashModelOptions& o) : options_(o) {
    config_.vocab_size = o.vocab_size;
    config_.layers = 1;
    config_.max_position = 4096;
    config_.hidden = 2;  // floats, in which a value stands
  }
  const ModelConfig& config() const override { return config_; }

  std::vector<KvGroupSpec> kv_groups(DType dtype) const override {
    DI_CHECK(info(dtype).block_bytes == 2, "a hash takes 4 elements of 2 bytes");
    KvGroupSpec spec{.num_layers = 1, .kv_heads = 1, .head_dim_k = 4, .head_dim_v = 4, .dtype = dtype};
    std::vector<KvGroupSpec> groups{spec};
    if (options_.window > 0) {
      spec.kind = KvGroupSpec::Kind::kWindow;
      spec.window = options_.window;
      groups.push_back(spec);
    }
    return groups;
  }

  void forward(Context& context, const StepBatch& batch, const KvCache& kv, const SlotTable&,
               const StageIO& io) override {
    DI_CHECK(batch.device != nullptr, "a batch that is not on the device");
    if (options_.before_forward) options_.before_forward(batch);
    cuda::Gpu& gpu = *context.gpu;
    const Tensor hidden = io.hidden_out
                              ? io.hidden_out
                              : make_tensor(context.scratch->allocate_n<uint64_t>(batch.num_tokens),
                                            DType::kF32, {batch.num_tokens, config_.hidden}, context.device);
    auto* values = hidden.as<uint64_t>();
    cuda::launch(config(gpu, batch.num_rows), forward_kernel, *batch.device, store(kv, 0),
                 options_.window > 0 ? store(kv, 1) : Store{}, values);
    if (!io.hidden_out) head(context, batch, hidden, io.logits);
  }
  void head(Context& context, const StepBatch& batch, const Tensor& hidden, const Tensor& logits) override {
    const auto rows = static_cast<int>(logits.size(0));
    if (rows > 0)
      cuda::launch(config(*context.gpu, rows), logits_kernel, *batch.device, hidden.as<uint64_t>(),
                   logits.as<float>(), options_.vocab_size);
  }
  size_t scratch_bytes(const Context&, int64_t tokens, int64_t) const override {
    return static_cast<size_t>(tokens) * sizeof(uint64_t) + 256;
  }

 private:
  static cuda::LaunchConfig config(const cuda::Gpu& gpu, int blocks) {
    return {.grid = dim3(static_cast<unsigned>(blocks)),
            .block = dim3(kThreads),
            .stream = cuda::stream_of(gpu),
            .pdl = gpu.pdl};
  }
  static Store store(const KvCache& kv, int group) {
    const KvLayer layer = kv.layer(group, 0);
    return {layer.k(0), layer.block_stride, layer.block_size, group, layer.spec.window};
  }

  HashModelOptions options_;
  ModelConfig config_;
};

}  // namespace

std::unique_ptr<Model> make_hash_model(const HashModelOptions& options) {
  return std::make_unique<HashModel>(options);
}

std::vector<float> hash_logits(const HashModelOptions& o, std::span<const int32_t> tokens) {
  uint64_t value = 0;
  const auto n = static_cast<int32_t>(tokens.size());
  for (int32_t p = 0; p < n; ++p) value = chained(value, tokens[p], p);
  for (int32_t p = std::max(0, n - o.window); o.window > 0 && p < n; ++p) value += window_part(tokens[p], p);
  std::vector<float> out(o.vocab_size);
  for (int32_t id = 0; id < o.vocab_size; ++id) out[id] = logit(value, id);
  return out;
}

std::vector<int32_t> hash_continuation(const HashModelOptions& o, std::vector<int32_t> tokens, int count,
                                       std::span<const int32_t> ends) {
  std::vector<int32_t> out;
  while (static_cast<int>(out.size()) < count) {
    const std::vector<float> logits = hash_logits(o, tokens);
    const auto id = static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
    tokens.push_back(id);
    out.push_back(id);
    if (std::find(ends.begin(), ends.end(), id) != ends.end()) break;
  }
  return out;
}

}  // namespace deepinfer::test
