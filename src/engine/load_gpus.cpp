// A model whose layers several GPUs of this machine share: gpu.tensor_parallel_size cards, from the chosen
// one on.
#include <algorithm>

#include "backend/cuda_error.h"
#include "base/check.h"
#include "base/log.h"
#include "comm/nccl.h"
#include "device/gpu_text.h"
#include "engine/cluster.h"
#include "engine/cuda_ranks.h"
#include "engine/load_gpu.h"
#include "model/shard.h"

namespace deepinfer {
namespace {

// Whether each rank gets as many heads as the others, and whole groups of them or a part of one.
bool heads_divide(const ModelConfig& c, int ranks) {
  return c.heads % ranks == 0 && (c.kv_heads % ranks == 0 || ranks % c.kv_heads == 0);
}

std::string sizes_that_divide(const ModelConfig& c) {
  std::string out;
  for (int ranks = 1; ranks <= c.heads; ++ranks)
    if (heads_divide(c, ranks)) out += fmt::format("{}{}", out.empty() ? "" : ", ", ranks);
  return out;
}

// The kernels of a card take one number of query heads for each of its KV heads.
Result<void> check_shards(const Checkpoint& checkpoint, int ranks) {
  const ModelConfig& c = checkpoint.config;
  DI_TRY(plan_shard(c, checkpoint.weights, 0, ranks));  // more ranks than there is to share
  if (!heads_divide(c, ranks))
    return make_error(
        ErrorCode::kConfig,
        "gpu.tensor_parallel_size: got {}, expected one of {} on GPUs, which divide the model's {} "
        "query heads and {} KV heads evenly (ranks of a CPU take others: gpu.device cpu)",
        ranks, sizes_that_divide(c), c.heads, c.kv_heads);
  for (int r = 0; r < ranks; ++r) {
    DI_ASSIGN(const Shard shard, plan_shard(c, checkpoint.weights, r, ranks));
    if (shard.heads.count != c.heads / ranks)
      return make_error(
          ErrorCode::kConfig,
          "gpu.tensor_parallel_size: got {}, which cuts a group of self_attn.o_proj's quantized "
          "columns: rank {} would get {} query heads instead of {}, expected a smaller one of {}",
          ranks, r, shard.heads.count, c.heads / ranks, sizes_that_divide(c));
  }
  return {};
}

Result<void> check_settings(const Config& config, int first, int ranks) {
  const int cards = cuda::device_count();
  if (first + ranks > cards)
    return make_error(ErrorCode::kConfig,
                      "gpu.tensor_parallel_size: got {}, expected at most {}: CUDA shows {} GPU{} here "
                      "(CUDA_VISIBLE_DEVICES counts), and the ranks take cuda:{} and those behind it",
                      ranks, std::max(cards - first, 1), cards, cards == 1 ? "" : "s", first);
  if (config.gpu.deterministic && ranks > 2)
    return make_error(
        ErrorCode::kConfig,
        "gpu.deterministic: true, expected false with gpu.tensor_parallel_size {}: how NCCL adds "
        "up more than two ranks depends on where a number stands",
        ranks);
  return {};
}

// How the cards reach each other decides what a sum costs.
void log_peers(int first, int ranks) {
  int direct = 0, pairs = 0;
  for (int a = first; a < first + ranks; ++a)
    for (int b = first; b < first + ranks; ++b) {
      if (a == b) continue;
      ++pairs;
      direct += cuda::can_access_peer(a, b) == true;
    }
  if (direct == pairs)
    log::info("the GPUs cuda:{} to cuda:{} read each other's memory directly", first, first + ranks - 1);
  else
    log::warn(
        "of the GPUs cuda:{} to cuda:{} {} of {} pairs read each other's memory directly: the others' sums, "
        "two "
        "a layer, go through the host's memory. Where the model fits one card, a server on each card serves "
        "more",
        first, first + ranks - 1, direct / 2, pairs / 2);
}

struct Card {
  std::unique_ptr<cuda::Gpu> gpu;
  GpuInfo info;
};

// The chosen one is open; the others are opened like it.
Result<std::vector<Card>> open_cards(std::unique_ptr<cuda::Gpu> first, const DeviceChoice& choice,
                                     int ranks) {
  std::vector<Card> cards;
  cards.push_back({std::move(first), *choice.gpu});
  const cuda::GpuOptions like = cards.front().gpu->options();
  for (int r = 1; r < ranks; ++r) {
    cuda::GpuOptions options = like;
    options.index = like.index + r;
    DI_ASSIGN(std::unique_ptr<cuda::Gpu> gpu, cuda::Gpu::open(options));
    DI_TRY(gpu->open_fast_paths());
    const cuda::GpuFacts& f = gpu->facts();
    GpuInfo info{.id = options.index};
    for (const GpuInfo& known : choice.visible)
      if (known.id == options.index) info = known;
    info.name = f.name;
    info.capability = ComputeCapability{f.capability / 10, f.capability % 10};
    info.total_bytes = f.total_bytes;
    cards.push_back({std::move(gpu), std::move(info)});
  }
  return cards;
}

// "cuda:0 to cuda:1, 2 x NVIDIA GeForce RTX 5090 (compute capability 12.0)"
std::string devices_text(const std::vector<GpuInfo>& cards) {
  const bool alike =
      std::all_of(cards.begin(), cards.end(), [&](const GpuInfo& c) { return c.name == cards.front().name; });
  std::string names;
  for (const GpuInfo& c : cards)
    if (!alike || names.empty()) names += fmt::format("{}{}", names.empty() ? "" : " + ", c.name);
  return fmt::format("cuda:{} to cuda:{}, {}{} (compute capability {})", cards.front().id, cards.back().id,
                     alike ? fmt::format("{} x ", cards.size()) : "", names,
                     to_string(*cards.front().capability));
}

LoadSummary summary_of(const std::vector<GpuInfo>& cards, const CudaRanks& runner, const NcclApi& nccl,
                       DType kv) {
  LoadSummary s{.device = fmt::format("{}, tensor parallel through NCCL {}", devices_text(cards),
                                      nccl_version_text(nccl.version)),
                .memory = fmt::format("of each card: {}", memory_text(runner.measured(0))),
                .kv_blocks = runner.info().num_blocks,
                .block_size = runner.info().block_size,
                .kv_dtype = std::string(info(kv).name)};
  for (int r = 0; r < runner.size(); ++r) {
    s.weight_bytes += static_cast<int64_t>(runner.measured(r).weights);
    s.kv_bytes += static_cast<int64_t>(runner.measured(r).block_bytes) * s.kv_blocks;
  }
  return s;
}

}  // namespace

Result<LoadedRunner> load_on_gpus(const Config& config, const Checkpoint& checkpoint,
                                  std::unique_ptr<cuda::Gpu> gpu, const DeviceChoice& choice,
                                  Profiler* profiler) {
  const int ranks = config.gpu.tensor_parallel_size, first = gpu->facts().index;
  DI_TRY(check_settings(config, first, ranks));
  DI_TRY(check_shards(checkpoint, ranks));
  DI_ASSIGN(const NcclApi nccl, load_nccl());
  log_peers(first, ranks);
  try {
    DI_ASSIGN(std::vector<Card> cards, open_cards(std::move(gpu), choice, ranks));
    std::vector<GpuInfo> infos;
    std::vector<GpuJob> jobs;
    std::vector<CudaRankStart> starts;
    jobs.reserve(cards.size());
    for (Card& card : cards) {
      const bool leads = jobs.empty();
      DI_ASSIGN(GpuJob job, make_gpu_job(config, checkpoint, card.info, leads ? profiler : nullptr));
      // What a step is has to be the same on all.
      if (!leads) job.tuning = jobs.front().tuning;
      DI_TRY(check_card(job, *card.gpu, ranks));
      jobs.push_back(std::move(job));
      infos.push_back(card.info);
    }
    for (size_t r = 0; r < cards.size(); ++r)
      starts.push_back(
          {.gpu = std::move(cards[r].gpu),
           .load = [&job = jobs[r]](cuda::Gpu& on, Communicator& all) { return pack_model(job, on, &all); },
           .options = runner_options(jobs[r])});
    log::info("{} GPUs: their ranks meet through NCCL {} ({})", ranks, nccl_version_text(nccl.version),
              nccl.path.string());
    DI_ASSIGN(std::unique_ptr<CudaRanks> runner,
              CudaRanks::create(std::move(starts), nccl, stall_limit(config)));
    const DType kv = runner->info().groups.front().dtype;
    LoadSummary summary = summary_of(infos, *runner, nccl, kv);
    std::string kernels = fmt::format("{} {} {} tp{}", infos.front().name,
                                      to_string(*infos.front().capability), info(kv).name, ranks);
    return LoadedRunner{std::move(runner), std::move(kernels), std::move(summary)};
  } catch (const cuda::CudaError& fault) {
    return make_error(ErrorCode::kMemory, "{}", fault.what());
  } catch (const CommError& fault) {
    return make_error(ErrorCode::kMemory, "{}", fault.what());
  } catch (const std::bad_alloc& fault) {
    return make_error(ErrorCode::kMemory, "out of memory while the model was loaded: {}", fault.what());
  }
}

}  // namespace deepinfer
