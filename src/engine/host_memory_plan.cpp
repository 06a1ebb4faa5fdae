#include "engine/host_memory_plan.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "base/check.h"

namespace deepinfer {
namespace {

constexpr int64_t kUsualCache = int64_t{512} << 20;

std::string mib(int64_t bytes) {
  return fmt::format("{:.0f} MiB", static_cast<double>(bytes) / (1 << 20));
}

std::string list_text(std::vector<std::string> remedies) {
  if (remedies.empty()) remedies.emplace_back("a smaller model, or a machine with more memory");
  std::string out;
  for (const std::string& remedy : remedies) out += "\n  - " + remedy;
  return out;
}

// The first type whose weights leave at least `rest` of the limit.
void add_quantization(const HostMemory& m, int64_t rest, std::vector<std::string>& remedies) {
  if (m.weight_bits == 0) return;
  const struct {
    const char* name;
    double bits;
  } types[] = {{"fp8", 8}, {"int4", 4.125}};
  for (const auto& type : types) {
    const auto bytes = static_cast<int64_t>(static_cast<double>(m.weights) * type.bits / m.weight_bits);
    if (bytes > m.limit - rest) continue;
    remedies.push_back(
        fmt::format("quantization: model.quantization {} makes about {} of weights while loading (or a "
                    "checkpoint made by `deepinfer quantize`)",
                    type.name, mib(bytes)));
    return;
  }
}

int64_t blocks_for(int64_t tokens, const HostMemory& m) {
  return (tokens + m.block_size - 1) / m.block_size;
}

// Blocks of a context have at most 2^31 tokens; the product is capped, which is larger than any limit.
int64_t bytes_of(int64_t blocks, int64_t block_bytes) {
  return blocks > std::numeric_limits<int64_t>::max() / block_bytes ? std::numeric_limits<int64_t>::max()
                                                                    : blocks * block_bytes;
}

Error context_does_not_fit(const HostMemory& m, int64_t pool, int64_t room, int64_t need) {
  const int64_t tokens = pool / m.block_bytes * m.block_size;
  std::vector<std::string> remedies;
  if (tokens > 0)
    remedies.push_back(fmt::format("a shorter context: model.max_model_len {} or less", tokens));
  if (need <= room) remedies.push_back(fmt::format("a larger cache: gpu.kv_cache_memory_bytes {}", need));
  const int64_t small =
      m.int8_block_bytes == 0 ? need : bytes_of(blocks_for(m.max_model_len, m), m.int8_block_bytes);
  if (small < need && small <= pool)
    remedies.push_back(fmt::format("a smaller cache: gpu.kv_cache_dtype int8 needs {} instead of {}",
                                   mib(small), mib(need)));
  if (need > room) add_quantization(m, need, remedies);
  return make_error(
      ErrorCode::kMemory,
      "KV cache: one sequence of model.max_model_len {} needs {}, but the cache has {} (the weights "
      "take {} of the {} that this process may use). What would fit:{}",
      m.max_model_len, mib(need), mib(pool), mib(m.weights), mib(m.limit), list_text(std::move(remedies)));
}

}  // namespace

Result<void> check_host_weights(const HostMemory& m, const std::string& model) {
  if (m.weights <= m.limit) return {};
  std::vector<std::string> remedies;
  add_quantization(m, m.limit / 10, remedies);  // a tenth for the cache
  return make_error(
      ErrorCode::kMemory,
      "{}: the weights take {}, but this process may use {} of the machine's memory. What would fit:{}",
      model, mib(m.weights), mib(m.limit), list_text(std::move(remedies)));
}

Result<CachePlan> plan_host_cache(const HostMemory& m) {
  DI_CHECK(m.block_bytes > 0 && m.block_size > 0 && m.max_model_len > 0,
           "block of {} bytes, {} tokens, length {}", m.block_bytes, m.block_size, m.max_model_len);
  const int64_t room = std::max<int64_t>(m.limit - m.weights, 0);
  if (m.given > room)
    return make_error(
        ErrorCode::kMemory,
        "gpu.kv_cache_memory_bytes: got {} ({}), but the weights leave {} of the {} that this process "
        "may use: set it to {} or less, or leave it out",
        m.given, mib(m.given), mib(room), mib(m.limit), room);
  const int64_t need = bytes_of(blocks_for(m.max_model_len, m), m.block_bytes);
  const int64_t usual = std::min(m.limit * 2 / 5, std::max(kUsualCache, need));
  const int64_t pool = m.given != 0 ? m.given : std::min(usual, room);
  const int64_t blocks = pool / m.block_bytes;
  if (blocks < 1 || (!m.auto_max_model_len && pool < need)) return context_does_not_fit(m, pool, room, need);
  return CachePlan{blocks, static_cast<int>(std::min<int64_t>(m.max_model_len, blocks * m.block_size))};
}

}  // namespace deepinfer
