#include "engine/host_rates.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <functional>
#include <thread>
#include <vector>

#include "base/check.h"
#include "base/limits.h"
#include "comm/local.h"
#include "engine/load_plan.h"
#include "model/model.h"
#include "model/quantization.h"
#include "model/random_checkpoint.h"
#include "model/shard.h"
#include "quant/method.h"

namespace deepinfer {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kChunk = 128;             // tokens of the larger step
constexpr double kSampledValue = 1e-9;  // seconds for each value of the vocabulary that is sampled from
// So many layers are run one after the other: fewer would be read from a cache that a model does not fit.
constexpr double kStreamedBytes = 512e6;
constexpr int kFew = 8;         // tokens of a step that reads and multiplies about equally long
constexpr int kContext = 1024;  // tokens that are looked back on, where the cache is measured
constexpr int kBlockSize = 16;
constexpr double kRunSeconds = 0.06;  // of each measurement, at least
constexpr int kLeastRuns = 3;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// The first of several ranks, the others of which are not there: what a rank computes, without its exchange.
class Silent final : public Communicator {
 public:
  explicit Silent(int size) : size_(size) {}
  int rank() const override { return 0; }
  int size() const override { return size_; }
  void all_reduce(std::span<float>) override {}
  void all_gather(std::span<const std::byte>, std::span<std::byte>) override {}
  void broadcast(std::span<std::byte>, int) override {}
  void send(std::span<const std::byte>, int) override {}
  void receive(std::span<std::byte>, int) override {}
  void all_to_all(std::span<const std::byte>, std::span<std::byte>) override {}
  void abort(std::string) override {}

 private:
  int size_;
};

// Some layers, or a rank's share of them. The model is only read by those who run it.
struct LayerModel {
  std::unique_ptr<Model> model;
  std::unique_ptr<Silent> comm;  // null: whole layers
  int layers = 0;
  double bytes = 0, parameters = 0;  // of the matrices of one
  double kv_bytes = 0;               // of a token in one
};

// Who runs a layer again and again, with threads, memory and a cache of its own.
class LayerRun {
 public:
  static Result<std::unique_ptr<LayerRun>> create(const LayerModel& layer, int threads, DType kv) {
    std::unique_ptr<LayerRun> r(new LayerRun(layer, threads));
    const std::vector<KvGroupSpec> groups = layer.model->kv_groups(kv);
    constexpr int kBlocks = kContext / kBlockSize;
    DI_ASSIGN(r->cache_memory_, Buffer::allocate(kBlocks * KvCache::block_bytes(groups, kBlockSize)));
    r->cache_ = std::make_unique<KvCache>(groups, kBlockSize, kBlocks, r->cache_memory_.data(), Device{});
    DI_ASSIGN(Buffer scratch, Buffer::allocate(layer.model->scratch_bytes(r->context_, kChunk, 1)));
    r->scratch_ = Arena(std::move(scratch));
    r->hidden_.assign(static_cast<size_t>(kChunk) * layer.model->config().hidden, 0.1f);
    for (int i = 0; i < kContext; ++i) r->positions_.push_back(i);
    for (int i = 0; i < kBlocks; ++i) r->blocks_.push_back(i);
    r->tables_ = {{r->blocks_, kBlocks}};
    return r;
  }

  // One step of so many tokens of one sequence, behind `context` others.
  void step(int tokens, int context = 0) {
    scratch_.reset();
    const int64_t hidden = layer_.model->config().hidden;
    std::fill_n(hidden_.begin(), tokens * hidden, 0.1f);  // a layer adds to it
    const Tensor values = make_tensor(hidden_.data(), DType::kF32, {tokens, hidden});
    const int32_t starts[] = {0, tokens}, slot[] = {0}, lengths[] = {context};
    const StepBatch batch{.num_rows = 1,
                          .num_tokens = tokens,
                          .row_slot = slot,
                          .row_start = starts,
                          .context_len = lengths,
                          .token = std::span(tokens_).first(tokens),
                          .position = std::span(positions_).subspan(context, tokens),
                          .block_table = tables_,
                          .logit_token = {}};
    layer_.model->forward(context_, batch, *cache_, slots_, {.hidden_in = values, .hidden_out = values});
  }

 private:
  LayerRun(const LayerModel& layer, int threads)
      : layer_(layer), pool_(threads), tokens_(kChunk, 0), last_token_(1, 0) {
    slots_.last_token = make_tensor(last_token_.data(), DType::kI32, {1});
    context_ = {.pool = &pool_, .scratch = &scratch_, .comm = layer.comm.get()};
  }

  const LayerModel& layer_;
  ThreadPool pool_;
  Arena scratch_;
  Buffer cache_memory_;
  std::unique_ptr<KvCache> cache_;
  std::vector<float> hidden_;
  std::vector<int32_t> tokens_, positions_, blocks_, last_token_;
  std::vector<BlockTable> tables_;
  SlotTable slots_;
  Context context_;
};

struct Runners {
  int count = 1, threads = 1;  // of each
  DType kv = DType::kF16;
};

// Seconds a layer, the median, of each of these at the same time.
Result<double> measure(const LayerModel& layer, const Runners& r, int tokens, int context = 0) {
  std::vector<std::unique_ptr<LayerRun>> all;
  for (int i = 0; i < r.count; ++i) {
    DI_ASSIGN(std::unique_ptr<LayerRun> run, LayerRun::create(layer, r.threads, r.kv));
    all.push_back(std::move(run));
  }
  std::vector<double> times;
  std::atomic<bool> done = false;
  const auto work = [&](int i) {
    if (i != 0) {
      while (!done.load(std::memory_order_relaxed)) all[i]->step(tokens, context);
      return;
    }
    all[0]->step(tokens, context);
    const Clock::time_point begin = Clock::now();
    while (static_cast<int>(times.size()) < kLeastRuns || seconds_since(begin) < kRunSeconds) {
      const Clock::time_point start = Clock::now();
      all[0]->step(tokens, context);
      times.push_back(seconds_since(start));
    }
    done = true;
  };
  ThreadPool(r.count).run(work);
  std::nth_element(times.begin(), times.begin() + static_cast<int64_t>(times.size() / 2), times.end());
  return times[times.size() / 2] / layer.layers;
}

// What a layer and half of it take tells what a step costs besides its bytes and products.
Result<DeviceSpeed> speed_of(const LayerModel& whole, const LayerModel& half, const Runners& r) {
  DI_ASSIGN(const double one, measure(whole, r, 1));
  DI_ASSIGN(const double half_one, measure(half, r, 1));
  DI_ASSIGN(const double many, measure(whole, r, kChunk));
  DI_ASSIGN(const double half_many, measure(half, r, kChunk));
  DI_ASSIGN(const double few, measure(whole, r, kFew));
  DI_ASSIGN(const double far, measure(whole, r, 1, kContext - 1));
  // Where noise turns the order around nothing is known of what stands besides.
  const auto rate = [](double size, double half_size, double time, double half_time) {
    const double slope = (time - half_time) / (size - half_size);
    return 1 / std::clamp(slope, 0.4 * time / size, time / size);
  };
  DeviceSpeed s;
  s.bytes_per_second = rate(whole.bytes, half.bytes, one, half_one);
  s.layer_seconds = one - whole.bytes / s.bytes_per_second;
  // Noise may hide the cache, not more.
  s.cache_per_second = (kContext - 1) * whole.kv_bytes / std::max(far - one, 0.02 * one);
  s.row_seconds = whole.model->config().vocab_size * kSampledValue;
  const double flop = 2.0 * kChunk * whole.parameters, half_flop = 2.0 * kChunk * half.parameters;
  s.flop_per_second = rate(flop, half_flop, many, half_many);
  s.token_seconds = std::max(many - flop / s.flop_per_second - s.layer_seconds, 0.0) / kChunk;
  const double read = whole.bytes / s.bytes_per_second;
  const double multiply = 2.0 * kFew * whole.parameters / s.flop_per_second;
  const double hidden = read + multiply + s.layer_seconds + kFew * s.token_seconds - few;
  s.overlap = std::clamp(hidden / std::min(read, multiply), 0.0, 1.0);
  return s;
}

// Two ranks that add up a few values, and many.
LinkSpeed measure_link() {
  constexpr size_t kFew = 16, kMany = size_t{1} << 18;
  const auto ranks = local_communicators(2, std::chrono::seconds(20));
  LinkSpeed link;
  const auto time = [&](int rank, size_t elements, int rounds) {
    std::vector<float> values(elements, 1.0f);
    ranks[rank]->all_reduce(values);
    const Clock::time_point start = Clock::now();
    for (int i = 0; i < rounds; ++i) {
      std::fill(values.begin(), values.end(), 1.0f);
      ranks[rank]->all_reduce(values);
    }
    return seconds_since(start) / rounds;
  };
  ThreadPool(2).run([&](int rank) {
    const double few = time(rank, kFew, 2000), many = time(rank, kMany, 60);
    if (rank != 0) return;
    link.seconds = few;
    link.bytes_per_second = kMany * sizeof(float) / std::max(many - few, 1e-9);
  });
  return link;
}

bool has_values(const Checkpoint& checkpoint) {
  return std::all_of(checkpoint.weights.tensors.begin(), checkpoint.weights.tensors.end(),
                     [](const auto& entry) { return entry.second.data != nullptr || entry.second.random; });
}

// Random weights of the same shape, of about as many bits, for a checkpoint that has none.
Result<Checkpoint> stand_in(const Checkpoint& checkpoint) {
  ModelConfig config = checkpoint.config;
  config.layers = std::min(config.layers, 64);
  DI_ASSIGN(Checkpoint random, random_checkpoint(config, checkpoint.path.string(), 1));
  const Weights& w = checkpoint.weights;
  const std::string kind = w.quant != nullptr ? std::string(w.quant->kind()) : w.online;
  DI_TRY(set_quantization(random, kind.empty() ? "none" : kind == "fp8" || kind == "int8" ? "fp8" : "int4"));
  return random;
}

// In the middle of the model, where there is neither embedding nor head.
LayerRange middle(const ModelConfig& c, double layer_bytes) {
  if (c.layers < 3) return {0, 1};
  const int wanted = static_cast<int>(std::min(std::ceil(kStreamedBytes / layer_bytes), 1e6));
  return {1, 1 + std::clamp(wanted, 1, c.layers - 2)};
}

Result<LayerModel> make_layers(const Checkpoint& checkpoint, DType kv, int ranks, int threads) {
  const ModelConfig& c = checkpoint.config;
  const ModelArch* arch = find_arch(c.arch);
  if (arch == nullptr)
    return make_error(ErrorCode::kModel, "model architecture: got '{}', expected one of {}", c.arch,
                      known_archs());
  DI_ASSIGN(const Shard shard, plan_shard(c, checkpoint.weights, 0, ranks));
  LayerModel layer;
  if (ranks > 1) layer.comm = std::make_unique<Silent>(ranks);
  ThreadPool pool(threads);
  Context context{.pool = &pool, .comm = layer.comm.get()};
  const ModelWork work = model_work(checkpoint, kv, 4);
  const LayerRange range = middle(c, work.attention_bytes + work.mlp_bytes);
  DI_ASSIGN(layer.model, arch->make(c, checkpoint.weights, context, {range, shard}));
  layer.layers = range.last - range.first;
  layer.kv_bytes = work.kv_bytes;
  const double heads = static_cast<double>(shard.heads.count) / c.heads;
  const double ffn = static_cast<double>(shard.ffn.count) / c.ffn;
  layer.bytes = work.attention_bytes * heads + work.mlp_bytes * ffn;
  layer.parameters = work.attention_params * heads + work.mlp_params * ffn;
  return layer;
}

// Between the figures of one thread and of all: both ends are right, and what lies between is a power law.
double between(double one, double all, double part) {
  if (one <= 0 || all <= 0) return one + (all - one) * part;
  return one * std::pow(all / one, part);
}

DeviceSpeed between(const DeviceSpeed& one, const DeviceSpeed& all, double part) {
  return {.bytes_per_second = between(one.bytes_per_second, all.bytes_per_second, part),
          .cache_per_second = between(one.cache_per_second, all.cache_per_second, part),
          .flop_per_second = between(one.flop_per_second, all.flop_per_second, part),
          .overlap = one.overlap + (all.overlap - one.overlap) * part,
          .layer_seconds = between(one.layer_seconds, all.layer_seconds, part),
          .token_seconds = between(one.token_seconds, all.token_seconds, part),
          .step_seconds = between(one.step_seconds, all.step_seconds, part),
          .row_seconds = between(one.row_seconds, all.row_seconds, part)};
}

}  // namespace

Result<HostRates> measure_host(const Config& config, const Checkpoint& checkpoint, int threads) {
  if (!has_values(checkpoint)) {
    DI_ASSIGN(const Checkpoint random, stand_in(checkpoint));
    return measure_host(config, random, threads);
  }
  DI_ASSIGN(const DType kv, cpu_kv_dtype(config, checkpoint.config));
  DI_ASSIGN(const LayerModel whole, make_layers(checkpoint, kv, 1, threads));
  DI_ASSIGN(const LayerModel half, make_layers(checkpoint, kv, 2, threads));
  HostRates host{.threads = threads};
  DI_ASSIGN(host.one, speed_of(whole, half, {1, 1, kv}));
  host.all = host.one_busy = host.one;
  host.link = {.bytes_per_second = 5e9, .seconds = 3e-6};
  if (threads == 1) return host;
  DI_ASSIGN(host.all, speed_of(whole, half, {1, threads, kv}));
  DI_ASSIGN(host.one_busy, speed_of(whole, half, {threads, 1, kv}));
  host.link = measure_link();
  return host;
}

DeviceSpeed rank_speed(const HostRates& host, int ranks, bool all_busy) {
  const double threads = std::max(static_cast<double>(host.threads) / ranks, 1.0);
  const double part = host.threads > 1 ? std::log(threads) / std::log(host.threads) : 0.0;
  DeviceSpeed s = between(all_busy ? host.one_busy : host.one, host.all, part);
  // More ranks than threads take turns.
  const double turns = std::max(static_cast<double>(ranks) / host.threads, 1.0);
  s.bytes_per_second /= turns;
  s.cache_per_second /= turns;
  s.flop_per_second /= turns;
  s.layer_seconds *= turns;
  s.token_seconds *= turns;
  return s;
}

}  // namespace deepinfer
