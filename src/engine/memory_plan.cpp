#include "engine/memory_plan.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/check.h"

namespace deepinfer {
namespace {

constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;
// A cache for less than this is no use, whatever length is asked for.
constexpr int kLeastContext = 512;

std::string size_text(size_t bytes) {
  const auto b = static_cast<double>(bytes);
  return b < 0.1 * kGiB ? fmt::format("{:.1f} MiB", b / (1 << 20)) : fmt::format("{:.2f} GiB", b / kGiB);
}

size_t minus(size_t a, size_t b) {
  return a > b ? a - b : 0;
}

std::string list_text(const std::vector<std::string>& remedies) {
  std::string out;
  for (const std::string& remedy : remedies) out += "\n  - " + remedy;
  return out;
}

std::string held_by(const MemoryRequest& r) {
  return r.holders.empty() ? "" : fmt::format("; held by {}", r.holders);
}

// The largest utilization with two digits that is at most `bytes` of `total`.
double utilization_for(size_t bytes, size_t total) {
  return std::floor(100.0 * static_cast<double>(bytes) / static_cast<double>(total)) / 100.0;
}

// `weights`: bytes at 16 bits a weight. int4: one scale of 16 bits for 128 of them.
void add_quantization(size_t weights, size_t room, std::vector<std::string>& remedies) {
  const struct {
    const char* type;
    double bits;
  } types[] = {{"fp8", 8}, {"int4", 4.125}};
  for (const auto& type : types) {
    const auto bytes = static_cast<size_t>(static_cast<double>(weights) * type.bits / 16);
    if (bytes > room) continue;
    remedies.push_back(fmt::format(
        "quantization: model.quantization {} makes about {} of weights while loading (or a checkpoint "
        "made by `deepinfer quantize`)",
        type.type, size_text(bytes)));
    return;
  }
}

// The room that a plan has, and the numbers that explain it.
struct Room {
  size_t share = 0;     // that this process may use
  size_t used = 0;      // of it, without the cache
  size_t by_share = 0;  // left for the cache by the utilization
  size_t by_free = 0;   // left for the cache by what is really free
  size_t cache = 0;     // the lesser, or what the settings give; in whole units of the mapping
};

size_t in_whole_units(size_t bytes, const MeasuredMemory& m) {
  return (bytes + m.granularity - 1) / m.granularity * m.granularity;
}

Room room_of(const MeasuredMemory& m, const MemoryRequest& r) {
  Room room;
  room.share = requested_bytes(m.total, r.utilization);
  room.used = m.weights + m.fixed + m.step + m.graphs + m.later_graphs;
  room.by_share = minus(room.share, room.used);
  const bool given = r.kv_cache_memory_bytes > 0;
  // The cache and the history of tokens are each mapped in whole units.
  room.by_free = minus(m.free + m.mapped, m.later_graphs + 2 * m.granularity + (given ? 0 : r.headroom));
  room.cache = given ? static_cast<size_t>(r.kv_cache_memory_bytes) : std::min(room.by_share, room.by_free);
  room.cache -= room.cache % m.granularity;
  return room;
}

std::string parts_text(const MeasuredMemory& m) {
  return fmt::format("weights {}, buffers {}, the largest step {}, CUDA graphs {}", size_text(m.weights),
                     size_text(m.fixed), size_text(m.step), size_text(m.graphs + m.later_graphs));
}

// Buffers, step and graphs follow the two limits of a step nearly in proportion; a tenth is allowed for what
// does not.
void add_smaller_steps(const MeasuredMemory& m, size_t missing, std::vector<std::string>& remedies) {
  const size_t flexible = m.fixed + m.step + m.graphs + m.later_graphs;
  if (flexible == 0 || missing >= flexible) return;
  const double part = 0.9 * (1.0 - static_cast<double>(missing) / static_cast<double>(flexible));
  const int seqs = static_cast<int>(part * m.max_num_seqs);
  const int tokens = static_cast<int>(part * m.max_num_batched_tokens);
  if (seqs < 1 || tokens < 16) return;
  remedies.push_back(
      fmt::format("fewer sequences and smaller steps: gpu.max_num_seqs {} and "
                  "gpu.max_num_batched_tokens {} (now {} and {})",
                  seqs, tokens, m.max_num_seqs, m.max_num_batched_tokens));
}

std::vector<std::string> remedies_for(const MeasuredMemory& m, const MemoryRequest& r, const Room& room,
                                      size_t need) {
  std::vector<std::string> out;
  // What the other parts would have to give up.
  const size_t missing = std::max(minus(room.used + need, room.share),
                                  minus(need + m.later_graphs + r.headroom, m.free + m.mapped)) +
                         3 * m.granularity;
  const auto fits = static_cast<int64_t>(room.cache / m.block_bytes) * m.block_size;
  if (fits >= kLeastContext && fits < m.max_model_len)
    out.push_back(fmt::format("a shorter context: model.max_model_len {} or less", fits));
  if (r.kv_cache_memory_bytes > 0) {
    if (need <= room.by_free)
      out.push_back(fmt::format("more for the cache: gpu.kv_cache_memory_bytes {}, or leave it out", need));
  } else if (need <= room.by_free) {
    const double wanted = static_cast<double>(room.used + need) / static_cast<double>(m.total);
    const double rounded = std::ceil(100 * wanted) / 100;
    if (rounded <= 1)
      out.push_back(fmt::format("a larger share: gpu.gpu_memory_utilization {:.2f} (now {:.2f}; {} are free)",
                                rounded, r.utilization, size_text(m.free + m.mapped)));
  }
  if (const size_t half = in_whole_units(need / 2, m); r.fp8_kv_possible && half <= room.cache)
    out.push_back(fmt::format("a smaller cache: gpu.kv_cache_dtype fp8 needs {} instead of {}",
                              size_text(half), size_text(need)));
  if (r.kv_cache_memory_bytes == 0) add_smaller_steps(m, missing, out);
  if (r.quantization_possible && r.kv_cache_memory_bytes == 0)
    add_quantization(m.weights, minus(m.weights, missing), out);
  if (!r.holders.empty() && room.by_free < room.by_share && room.by_share >= need)
    out.push_back(fmt::format("end what else holds the GPU's memory: {}", r.holders));
  if (out.empty()) out.push_back("a smaller model, or a GPU with more memory");
  return out;
}

Error does_not_fit(const MeasuredMemory& m, const MemoryRequest& r, const Room& room, size_t need,
                   int context) {
  const std::string limit =
      r.kv_cache_memory_bytes > 0
          ? fmt::format("gpu.kv_cache_memory_bytes gives the KV cache {}", size_text(room.cache))
          : fmt::format("{} leave {} for the KV cache out of {} ({:.2f} of {}, {} free before loading)",
                        parts_text(m), size_text(room.cache), size_text(room.share), r.utilization,
                        size_text(m.total), size_text(minus(m.total, m.others)));
  return make_error(
      ErrorCode::kMemory,
      "{}: the model does not fit: {}, but one sequence of {} tokens needs {}. What would fit:{}", r.gpu,
      limit, context, size_text(need), list_text(remedies_for(m, r, room, need)));
}

}  // namespace

size_t requested_bytes(size_t total, double utilization) {
  return static_cast<size_t>(std::ceil(static_cast<double>(total) * utilization));
}

Result<void> check_free_memory(size_t free, size_t total, const MemoryRequest& r) {
  const size_t share = requested_bytes(total, r.utilization);
  if (r.kv_cache_memory_bytes > 0 || free >= share) return {};
  std::vector<std::string> remedies;
  if (const double lower = utilization_for(free, total); lower >= 0.01)
    remedies.push_back(fmt::format("a smaller share: gpu.gpu_memory_utilization {:.2f}", lower));
  remedies.push_back(r.holders.empty() ? "end what else holds the GPU's memory (nvidia-smi shows it)"
                                       : fmt::format("end what else holds the GPU's memory: {}", r.holders));
  return make_error(
      ErrorCode::kMemory,
      "{}: gpu.gpu_memory_utilization {:.2f} asks for {} of {}, but only {} are free{}. What would "
      "fit:{}",
      r.gpu, r.utilization, size_text(share), size_text(total), size_text(free), held_by(r),
      list_text(remedies));
}

Result<void> check_weights(size_t weights, size_t free, size_t total, const MemoryRequest& r) {
  const size_t share = r.kv_cache_memory_bytes > 0 ? minus(free, static_cast<size_t>(r.kv_cache_memory_bytes))
                                                   : std::min(free, requested_bytes(total, r.utilization));
  if (weights < share) return {};
  std::vector<std::string> remedies;
  if (r.kv_cache_memory_bytes == 0 && weights < free) {
    // A tenth more than the weights, for a step and some cache.
    const double wanted = std::ceil(110.0 * static_cast<double>(weights) / static_cast<double>(total)) / 100;
    if (wanted <= 1 && requested_bytes(total, wanted) <= free)
      remedies.push_back(fmt::format("a larger share: gpu.gpu_memory_utilization {:.2f} (now {:.2f})", wanted,
                                     r.utilization));
  }
  if (r.quantization_possible)
    add_quantization(weights, static_cast<size_t>(0.9 * static_cast<double>(share)), remedies);
  if (!r.holders.empty() && weights < requested_bytes(total, r.utilization))
    remedies.push_back(fmt::format("end what else holds the GPU's memory: {}", r.holders));
  if (remedies.empty())
    remedies.push_back(
        fmt::format("a model with less than {} of weights, a GPU with more memory, or the CPU "
                    "(gpu.device: cpu)",
                    size_text(share)));
  return make_error(
      ErrorCode::kMemory,
      "{}: the model does not fit: its weights need {}, but this process may use {} ({} of {} are "
      "free). What would fit:{}",
      r.gpu, size_text(weights), size_text(share), size_text(free), size_text(total), list_text(remedies));
}

Error with_smaller_steps(Error error, int max_num_seqs, int max_num_batched_tokens, const MemoryRequest& r) {
  std::vector<std::string> remedies;
  if (max_num_batched_tokens > 256 || max_num_seqs > 8)
    remedies.push_back(fmt::format(
        "smaller steps and fewer sequences: gpu.max_num_batched_tokens {} and "
        "gpu.max_num_seqs {} (now {} and {})",
        std::max(max_num_batched_tokens / 4, std::min(max_num_batched_tokens, 256)),
        std::max(max_num_seqs / 4, std::min(max_num_seqs, 8)), max_num_batched_tokens, max_num_seqs));
  if (!r.holders.empty())
    remedies.push_back(fmt::format("end what else holds the GPU's memory: {}", r.holders));
  if (r.quantization_possible)
    remedies.push_back(
        "quantization: model.quantization fp8 or int4, or a checkpoint made by `deepinfer quantize`");
  if (remedies.empty()) remedies.push_back("a smaller model, or a GPU with more memory");
  error.message += ". What takes less:" + list_text(remedies);
  return error;
}

Result<CachePlan> plan_cache(const MeasuredMemory& m, const MemoryRequest& r) {
  DI_CHECK(m.block_bytes > 0 && m.block_size > 0 && m.granularity > 0 && m.max_model_len > 0,
           "block of {} bytes, {} tokens, granularity {}, length {}", m.block_bytes, m.block_size,
           m.granularity, m.max_model_len);
  const Room room = room_of(m, r);
  if (const auto given = static_cast<size_t>(r.kv_cache_memory_bytes); given > room.by_free)
    return make_error(
        ErrorCode::kMemory,
        "{}: gpu.kv_cache_memory_bytes asks for {}, but {} are free after {}{}: set it to {} or "
        "less, or leave it out",
        r.gpu, size_text(given), size_text(room.by_free), parts_text(m), held_by(r), room.by_free);
  const int64_t blocks = std::min(static_cast<int64_t>(room.cache / m.block_bytes), m.max_blocks);
  const int context = r.auto_max_model_len ? std::min(m.max_model_len, kLeastContext) : m.max_model_len;
  const int64_t blocks_of_one = (context + m.block_size - 1) / m.block_size;
  if (blocks < blocks_of_one)
    return does_not_fit(m, r, room, in_whole_units(static_cast<size_t>(blocks_of_one) * m.block_bytes, m),
                        context);
  return CachePlan{blocks, static_cast<int>(std::min<int64_t>(m.max_model_len, blocks * m.block_size))};
}

}  // namespace deepinfer
