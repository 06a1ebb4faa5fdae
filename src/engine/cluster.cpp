#include "engine/cluster.h"

#include <algorithm>
#include <array>
#include <fstream>

#include "backend/cpu_kernels.h"
#include "base/check.h"
#include "base/limits.h"
#include "base/log.h"
#include "comm/gloo.h"
#include "comm/subgroup.h"
#include "deepinfer/version.h"
#include "device/tuning.h"
#include "engine/host_memory_plan.h"
#include "engine/llm.h"
#include "engine/load_plan.h"
#include "engine/pipeline_stages.h"
#include "engine/rank_leader.h"
#include "model/model.h"
#include "model/quantization.h"

namespace deepinfer {
namespace {

constexpr std::chrono::minutes kGathering{10};  // until the last rank has loaded its part

// What a rank has when it has joined.
struct Rank {
  PipelinePlace place;
  PipelineComms comms;  // with one stage only `world`
  std::unique_ptr<CpuRunner> runner;
  LoadSummary summary;
  std::string kernels;
};

Result<void> check_cluster(const Config& c) {
  if (c.cluster.node_rank >= c.cluster.nnodes)
    return make_error(ErrorCode::kConfig,
                      "cluster.node_rank: got {}, expected 0 to {} (cluster.nnodes is {})",
                      c.cluster.node_rank, c.cluster.nnodes - 1, c.cluster.nnodes);
  const int tensor = c.gpu.tensor_parallel_size, stages = c.gpu.pipeline_parallel_size;
  if (stages == 1 && tensor != c.cluster.nnodes)
    return make_error(ErrorCode::kConfig,
                      "gpu.tensor_parallel_size: got {}, expected {}: one rank for each of cluster.nnodes",
                      tensor, c.cluster.nnodes);
  if (tensor * stages != c.cluster.nnodes)
    return make_error(ErrorCode::kConfig,
                      "cluster.nnodes: got {}, expected {}: gpu.tensor_parallel_size {} x "
                      "gpu.pipeline_parallel_size {}",
                      c.cluster.nnodes, tensor * stages, tensor, stages);
  if (c.cluster.token_file.empty())
    return make_error(
        ErrorCode::kConfig,
        "cluster.token_file: got none, expected a file with a secret that all ranks know: make one "
        "with `openssl rand -hex 32`");
  return {};
}

Result<std::string> read_token(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::array<char, 4097> text{};
  in.read(text.data(), text.size());
  std::string token(text.data(), static_cast<size_t>(in.gcount()));
  while (!token.empty() && std::string_view("\r\n\t ").find(token.back()) != std::string_view::npos)
    token.pop_back();
  if (token.size() < RendezvousOptions::kLeastTokenBytes || token.size() > 4096)
    return make_error(
        ErrorCode::kConfig,
        "cluster.token_file: {} has {} characters, expected {} to 4096: make one with `openssl rand "
        "-hex 32`",
        path, token.size(), RendezvousOptions::kLeastTokenBytes);
  return token;
}

// What has to be the same, or steps would not mean the same.
std::vector<std::pair<std::string, std::string>> facts_of(const Config& c, const Checkpoint& checkpoint,
                                                          const std::string& kv) {
  const auto number = [](int64_t n) { return fmt::format("{}", n); };
  return {{"version", version()},
          {"the weights", fingerprint_of(checkpoint, "")},
          {"model.quantization", checkpoint.weights.online},
          {"model.max_model_len", number(c.model.max_model_len)},
          {"gpu.tensor_parallel_size", number(c.gpu.tensor_parallel_size)},
          {"gpu.pipeline_parallel_size", number(c.gpu.pipeline_parallel_size)},
          {"gpu.max_num_seqs", number(c.gpu.max_num_seqs)},
          {"gpu.max_num_batched_tokens", number(c.gpu.max_num_batched_tokens)},
          {"gpu.kv_cache_dtype", kv}};
}

Result<std::unique_ptr<Communicator>> join(const Config& c, const Checkpoint& checkpoint,
                                           const std::string& kv) {
  RendezvousOptions o{.rank = c.cluster.node_rank,
                      .size = c.cluster.nnodes,
                      .address = c.cluster.master_addr,
                      .port = static_cast<uint16_t>(c.cluster.master_port),
                      .timeout = kGathering};
  DI_ASSIGN(o.token, read_token(c.cluster.token_file));
  o.facts = facts_of(c, checkpoint, kv);
  log::info("rank {} of {}: waiting for the others at {}:{}", o.rank, o.size, o.address, o.port);
  DI_ASSIGN(Mesh mesh, meet(o));
  return gloo_communicator(std::move(mesh), stall_limit(c));
}

// The least of all ranks' plans: each has its own memory.
CachePlan agree(Communicator& comm, const CachePlan& own) {
  std::array<int64_t, 2> mine = {own.num_blocks, own.max_model_len};
  std::vector<int64_t> all(2 * static_cast<size_t>(comm.size()));
  comm.all_gather(std::as_bytes(std::span(mine)), std::as_writable_bytes(std::span(all)));
  CachePlan least = own;
  for (size_t i = 0; i < all.size(); i += 2) {
    least.num_blocks = std::min(least.num_blocks, all[i]);
    least.max_model_len = static_cast<int>(std::min<int64_t>(least.max_model_len, all[i + 1]));
  }
  return least;
}

std::vector<int> ranks_of_stage(const PipelinePlace& place) {
  std::vector<int> ranks;
  for (int share = 0; share < place.shares; ++share) ranks.push_back(place.stage() * place.shares + share);
  return ranks;
}

std::string place_text(const PipelinePlace& place, const LayerRange& layers) {
  const std::string rank = fmt::format("rank {} of {}", place.rank, place.ranks());
  if (place.stages == 1) return rank;
  return fmt::format("{}, layers {} to {}", rank, layers.first, layers.last - 1);
}

Result<Rank> make_rank(const Config& config, const Checkpoint& checkpoint, Profiler* profiler) {
  DI_TRY(check_cluster(config));
  DI_ASSIGN(const DType kv, cpu_kv_dtype(config, checkpoint.config));
  DI_TRY(check_cpu_block_size(config.gpu.block_size));
  const MachineLimits limits = machine_limits();
  HostMemory memory = host_memory(config, checkpoint, limits.memory_bytes);
  memory.weights /= config.cluster.nnodes;
  DI_TRY(check_host_weights(memory, checkpoint.path.string()));
  DI_ASSIGN(memory.max_model_len, wanted_model_len(config, checkpoint.config));
  Rank rank;
  rank.place = {.stages = config.gpu.pipeline_parallel_size,
                .shares = config.gpu.tensor_parallel_size,
                .rank = config.cluster.node_rank};
  DI_ASSIGN(const ModelPart part, plan_part(checkpoint, rank.place));
  auto pool = std::make_unique<ThreadPool>(config.cpu.threads != 0 ? config.cpu.threads : limits.threads);
  Context context{.pool = pool.get()};
  DI_ASSIGN(std::unique_ptr<Model> model,
            make_model_part(checkpoint.config, checkpoint.weights, context, part));
  checkpoint.weights.release_pages();
  if (rank.place.stages > 1) memory.weights = static_cast<int64_t>(context.weights->allocated());
  const auto block_bytes = [&](DType type) {
    return static_cast<int64_t>(KvCache::block_bytes(model->kv_groups(type), config.gpu.block_size));
  };
  memory.block_bytes = block_bytes(kv);
  if (kv != DType::kI8 && kv != DType::kF8E4M3) memory.int8_block_bytes = block_bytes(DType::kI8);
  DI_ASSIGN(const CachePlan own, plan_host_cache(memory));
  // Before this nobody waits for another: disks and machines differ in speed.
  DI_ASSIGN(rank.comms.world, join(config, checkpoint, std::string(info(kv).name)));
  const CachePlan plan = agree(*rank.comms.world, own);
  if (rank.place.stages > 1 && rank.place.shares > 1)
    rank.comms.stage = subgroup(*rank.comms.world, ranks_of_stage(rank.place));
  rank.summary = {
      .device = fmt::format("CPU: {}, {} threads, {} kernels", place_text(rank.place, part.layers),
                            pool->size(), cpu::kernels_name()),
      .weight_bytes = static_cast<int64_t>(context.weights->allocated()),
      .kv_bytes = plan.num_blocks * memory.block_bytes,
      .kv_blocks = plan.num_blocks,
      .block_size = config.gpu.block_size,
      .kv_dtype = std::string(info(kv).name)};
  rank.kernels = std::string(info(kv).name);
  if (rank.place.shares > 1) rank.kernels += fmt::format(" tp{}", rank.place.shares);
  DI_ASSIGN(rank.runner, CpuRunner::create(
                             std::move(pool), std::move(model),
                             {.max_num_seqs = config.gpu.max_num_seqs,
                              .max_num_batched_tokens = config.gpu.max_num_batched_tokens,
                              .max_model_len = plan.max_model_len,
                              .num_blocks = plan.num_blocks,
                              .kv_dtype = kv,
                              .profiler = profiler,
                              .comm = rank.place.stages > 1 ? rank.comms.stage.get() : rank.comms.world.get(),
                              .head = rank.place.first()}));
  return rank;
}

Error group_lost(const std::exception& e) {
  return make_error(ErrorCode::kMemory, "the group of ranks has ended: {}", e.what());
}

}  // namespace

std::chrono::milliseconds stall_limit(const Config& config) {
  constexpr double kDay = 86400;
  return std::chrono::milliseconds(static_cast<int64_t>(std::min(config.server.stall_timeout, kDay) * 1000));
}

Result<LoadedRunner> load_leader(const Config& config, const Checkpoint& checkpoint, Profiler* profiler) {
  if (config.cluster.node_rank != 0)
    return make_error(ErrorCode::kConfig,
                      "cluster.node_rank: got {}, expected 0: only `serve` runs other ranks",
                      config.cluster.node_rank);
  try {
    DI_ASSIGN(Rank rank, make_rank(config, checkpoint, profiler));
    LoadedRunner loaded{nullptr, std::move(rank.kernels), std::move(rank.summary)};
    if (rank.place.stages > 1) {
      loaded.runner = std::make_unique<PipelineRunner>(rank.place, std::move(rank.comms),
                                                       std::move(rank.runner), stall_limit(config));
    } else {
      loaded.runner = std::make_unique<RankLeader>(std::move(rank.comms.world), std::move(rank.runner),
                                                   stall_limit(config));
    }
    return loaded;
  } catch (const CommError& e) {
    return group_lost(e);
  }
}

Result<void> serve_rank(const Config& config) {
  DI_ASSIGN(const std::filesystem::path path, locate_model(config));
  DI_ASSIGN(Checkpoint checkpoint, open_checkpoint(path));
  DI_TRY(
      set_quantization(checkpoint, config.model.quantization, preferred_weights(config.gpu, std::nullopt)));
  try {
    DI_ASSIGN(Rank rank, make_rank(config, checkpoint, nullptr));
    log::info("ready: {}", rank.summary.device);
    if (rank.place.stages > 1) {
      PipelineRank follower(rank.place, *rank.runner);
      follower.join(rank.comms);
      follower.follow();
    } else {
      follow_leader(*rank.comms.world, *rank.runner);
    }
    log::info("rank 0 has ended");
  } catch (const std::exception& e) {
    return group_lost(e);
  }
  return {};
}

}  // namespace deepinfer
