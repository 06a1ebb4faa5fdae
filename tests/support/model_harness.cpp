#include "support/model_harness.h"

#include <algorithm>
#include <numeric>

#include "base/check.h"

namespace deepinfer {
namespace {

constexpr int kBlockSize = 16;

}  // namespace

Result<std::unique_ptr<ModelHarness>> ModelHarness::open(const std::filesystem::path& path,
                                                         const Options& o) {
  DI_ASSIGN(Checkpoint checkpoint, open_weights(path));
  return open(std::move(checkpoint), o);
}

Result<std::unique_ptr<ModelHarness>> ModelHarness::open(Checkpoint checkpoint, const Options& o) {
  std::unique_ptr<ModelHarness> h(new ModelHarness);
  h->checkpoint_ = std::move(checkpoint);
  h->pool_ = std::make_unique<ThreadPool>(o.threads);
  h->context_.pool = h->pool_.get();
  const ModelConfig& config = h->checkpoint_.config;
  const ModelArch* arch = find_arch(config.arch);
  DI_CHECK(arch != nullptr, "unknown architecture {}", config.arch);
  const LayerRange layers = o.layers.last > 0 ? o.layers : LayerRange{0, config.layers};
  DI_ASSIGN(h->model_,
            arch->make(config, h->checkpoint_.weights, h->context_, {layers, whole_model(config)}));
  DI_ASSIGN(Buffer scratch,
            Buffer::allocate(h->model_->scratch_bytes(h->context_, o.max_tokens, o.max_tokens)));
  h->scratch_ = Arena(std::move(scratch));
  h->context_.scratch = &h->scratch_;
  const std::vector<KvGroupSpec> groups = h->model_->kv_groups(o.kv_dtype);
  const int64_t blocks = (o.max_tokens + kBlockSize - 1) / kBlockSize;
  DI_ASSIGN(h->kv_memory_, Buffer::allocate(blocks * KvCache::block_bytes(groups, kBlockSize)));
  h->kv_ = std::make_unique<KvCache>(groups, kBlockSize, blocks, h->kv_memory_.data(), Device{});
  return h;
}

void ModelHarness::step(std::span<const int32_t> tokens, int first, const StageIO& io) {
  const auto n = static_cast<int32_t>(tokens.size());
  const int32_t slot = 0, starts[] = {0, n}, context_len = first;
  std::vector<int32_t> position(n), every(n), blocks(kv_->num_blocks());
  std::iota(position.begin(), position.end(), first);
  std::iota(every.begin(), every.end(), 0);
  std::iota(blocks.rbegin(), blocks.rend(), 0);  // not the identity, so that a table that is ignored shows
  const std::vector<BlockTable> tables(kv_->groups().size(), {blocks, static_cast<int32_t>(blocks.size())});
  int32_t last_token = 0;
  const SlotTable slots{make_tensor(&last_token, DType::kI32, {1})};
  const StepBatch batch{.num_rows = 1,
                        .num_tokens = n,
                        .row_slot = {&slot, 1},
                        .row_start = starts,
                        .context_len = {&context_len, 1},
                        .token = tokens,
                        .position = position,
                        .block_table = tables,
                        .logit_token = every};
  scratch_.reset();
  model_->forward(context_, batch, *kv_, slots, io);
}

std::vector<float> ModelHarness::logits(std::span<const int32_t> tokens, int chunk) {
  const auto n = static_cast<int>(tokens.size());
  if (chunk <= 0) chunk = n;
  std::vector<float> out(tokens.size() * vocab_size());
  for (int first = 0; first < n; first += chunk) {
    const int count = std::min(chunk, n - first);
    float* rows = out.data() + int64_t{first} * vocab_size();
    step(tokens.subspan(first, count), first,
         {.logits = make_tensor(rows, DType::kF32, {count, vocab_size()})});
  }
  return out;
}

}  // namespace deepinfer
