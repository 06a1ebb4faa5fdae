#include "backend/cuda/fast/fast_attention.h"

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "backend/cuda/error.h"
#include "backend/cuda/fast/plan.h"
#include "backend/cuda/fast/units.h"
#include "backend/cuda/parts.h"
#include "base/check.h"

namespace deepinfer::cuda {
namespace {

constexpr int32_t kMaxRows = 8192;
constexpr int32_t kMaxSlots = 1 << 17;       // of FA2: 8M (token, head of a group) pairs in tiles of 64
constexpr int32_t kMaxSemaphores = 1 << 17;  // of XQA: rows * kv_heads
constexpr int32_t kMaxHeads = 512;
constexpr int kXqaTile = 256;  // positions that a block of XQA takes at once
constexpr int kXqaPage = 16;
constexpr size_t kAlign = 256;

// What a plan was made for. begin_step counts steps, those that are recorded into a graph too, so that a
// graph has a plan of its own; before the first one (step 0) nothing is shared.
struct PlanKey {
  uint64_t step = 0;
  const DeviceBatch* batch = nullptr;
  PlanSizes sizes;
  bool operator==(const PlanKey&) const = default;
};

struct Xqa {
  const XqaUnit* unit = nullptr;
  XqaSetup setup;
};

PlanSizes sizes_of(const PagedAttention& a, int32_t tile) {
  return {.rows = a.rows,
          .tokens = a.tokens,
          .decode_rows = a.batch->decode_rows,
          .group = a.heads / a.kv_heads,
          .tile = tile};
}

// FA2's query tile. Where results may depend on the rows of a step, short chunks take the smaller one.
int32_t fa2_tile(const Gpu& gpu, const PagedAttention& a) {
  const int64_t rows = a.rows - a.batch->decode_rows;
  const int64_t pairs = int64_t{a.tokens - a.batch->decode_rows} * (a.heads / a.kv_heads);
  return gpu.options().deterministic || pairs > 64 * rows ? 128 : 64;
}

// FA2 does not split the context: few tiles of a long one leave the card idle, and the own kernel splits.
bool fa2_pays(const Gpu& gpu, const PagedAttention& a) {
  if (gpu.options().deterministic) return true;
  const int64_t blocks = int64_t{plan_slots(sizes_of(a, fa2_tile(gpu, a)))} * a.kv_heads;
  return 2 * blocks >= gpu.facts().multiprocessors || a.batch->max_context <= 1024;
}

// What both paths ask of a shape.
bool common_shape(const PagedAttention& a) {
  return a.batch != nullptr && a.kv_heads > 0 && a.heads > 0 && a.heads % a.kv_heads == 0 &&
         a.heads <= kMaxHeads && a.dim_k == a.dim_v && a.soft_cap == 0 && a.rows > 0 && a.rows <= kMaxRows &&
         int64_t{a.tokens} * a.heads * a.dim_k <= std::numeric_limits<int32_t>::max() &&
         int64_t{a.rows} * a.batch->max_blocks * a.block_size <= std::numeric_limits<int32_t>::max();
}

}  // namespace

class FastAttention {
 public:
  static Result<std::shared_ptr<FastAttention>> make(Gpu& gpu);

  bool has_xqa() const { return !xqa_.empty(); }
  bool has_fa2() const { return !fa2_.empty(); }
  const Xqa* find_xqa(const PagedAttention& a) const;
  const Fa2Unit* find_fa2(const PagedAttention& a) const;

  void prefill(Gpu& gpu, const PagedAttention& a);
  void decode(Gpu& gpu, const PagedAttention& a);

 private:
  size_t layout(std::byte* base);
  void plan_for(Gpu& gpu, const PagedAttention& a, int32_t tile);

  std::vector<const Fa2Unit*> fa2_;
  std::vector<Xqa> xqa_;
  Buffer memory_;
  AttentionPlan plan_;
  PlanKey planned_;
  int32_t* zeros_ = nullptr;        // [kMaxSlots]
  int32_t* large_chunk_ = nullptr;  // [1]
  uint32_t* semaphores_ = nullptr;  // [kMaxSemaphores]
  float* sinks_ = nullptr;          // [kMaxHeads]
  std::byte* xqa_scratch_ = nullptr;
  size_t xqa_scratch_bytes_ = 0;
};

// Pieces of the memory; with a null base only their sum.
size_t FastAttention::layout(std::byte* base) {
  size_t used = 0;
  auto take = [&](auto*& pointer, size_t count) {
    using T = std::remove_reference_t<decltype(*pointer)>;
    if (base != nullptr) pointer = reinterpret_cast<T*>(base + used);
    used += (count * sizeof(T) + kAlign - 1) / kAlign * kAlign;
  };
  take(plan_.kv_len, kMaxRows);
  take(plan_.page_start, kMaxRows + 1);
  take(plan_.tile_row, kMaxSlots);
  take(plan_.tile_in_row, kMaxSlots);
  take(plan_.tile_valid, kMaxSlots);
  take(zeros_, kMaxSlots);
  take(large_chunk_, 1);
  take(semaphores_, kMaxSemaphores);
  take(sinks_, kMaxHeads);
  take(xqa_scratch_, xqa_scratch_bytes_);
  return used;
}

Result<std::shared_ptr<FastAttention>> FastAttention::make(Gpu& gpu) {
  auto fast = std::make_shared<FastAttention>();
  for (const Fa2Unit& unit : fa2_units())
    if (unit.ready()) fast->fa2_.push_back(&unit);
  // Code for 12.0 would run on 12.1, which needs fences that are compiled in for that card alone.
  if (gpu.facts().capability != 121)
    for (const XqaUnit& unit : xqa_units()) {
      Xqa xqa{.unit = &unit};
      if (!unit.prepare(xqa.setup)) continue;
      // Splits are made only as long as all blocks run at once.
      const size_t blocks = static_cast<size_t>(xqa.setup.blocks_per_sm) * gpu.facts().multiprocessors;
      fast->xqa_scratch_bytes_ =
          std::max(fast->xqa_scratch_bytes_, (blocks + 1) * xqa.setup.scratch_bytes + kAlign);
      fast->xqa_.push_back(xqa);
    }
  if (fast->fa2_.empty() && fast->xqa_.empty()) return fast;
  DI_ASSIGN(fast->memory_, gpu.allocate(fast->layout(nullptr)));
  fast->layout(fast->memory_.data());
  gpu.fill(fast->memory_.data(), 0, fast->memory_.size());
  gpu.fill(fast->large_chunk_, 0x7f, sizeof(int32_t));
  const std::vector<float> sinks(kMaxHeads, fast->xqa_.empty() ? 0.0f : fast->xqa_[0].setup.empty_score);
  gpu.copy_in(fast->sinks_, sinks.data(), sinks.size() * sizeof(float));
  gpu.synchronize();
  return fast;
}

const Xqa* FastAttention::find_xqa(const PagedAttention& a) const {
  if (!common_shape(a) || a.block_size != kXqaPage || a.batch->decode_rows > a.rows ||
      int64_t{a.rows} * a.kv_heads > kMaxSemaphores)
    return nullptr;
  const size_t head_bytes = static_cast<size_t>(row_bytes(a.kv_dtype, a.dim_k));
  if (head_bytes == 0 || a.block_stride % head_bytes != 0 ||
      a.block_stride / head_bytes > std::numeric_limits<uint32_t>::max())
    return nullptr;
  for (const Xqa& xqa : xqa_) {
    const XqaUnit& u = *xqa.unit;
    if (u.dim == a.dim_k && u.group == a.heads / a.kv_heads && u.activation == a.activation &&
        u.kv_dtype == a.kv_dtype)
      return &xqa;
  }
  return nullptr;
}

const Fa2Unit* FastAttention::find_fa2(const PagedAttention& a) const {
  if (!common_shape(a) || (a.dim_k != 64 && a.dim_k != 128) || a.kv_dtype != a.activation ||
      a.batch->decode_rows > a.rows || plan_slots(sizes_of(a, 64)) > kMaxSlots || a.block_stride % 16 != 0 ||
      a.block_stride / 2 > std::numeric_limits<uint32_t>::max())
    return nullptr;
  for (const Fa2Unit* unit : fa2_)
    if (unit->activation == a.activation) return unit;
  return nullptr;
}

// All layers of a step share a plan.
void FastAttention::plan_for(Gpu& gpu, const PagedAttention& a, int32_t tile) {
  const PlanKey key{.step = gpu.parts().steps, .batch = a.batch, .sizes = sizes_of(a, tile)};
  if (key.step != 0 && key == planned_) return;
  planned_ = {};
  make_plan(key.sizes, *a.batch, plan_, stream_of(gpu));
  planned_ = key;
}

void FastAttention::prefill(Gpu& gpu, const PagedAttention& a) {
  const Fa2Unit* unit = find_fa2(a);
  DI_CHECK(unit != nullptr, "FA2 was asked for a shape that it does not serve");
  if (a.rows == a.batch->decode_rows) return;
  const int32_t tile = fa2_tile(gpu, a);
  plan_for(gpu, a, tile);
  unit->launch({.attention = &a,
                .plan = plan_,
                .zeros = zeros_,
                .large_chunk = large_chunk_,
                .slots = plan_slots(sizes_of(a, tile)),
                .tile = tile,
                .small_shared = gpu.facts().shared_per_block < (size_t{120} << 10),
                .stream = stream_of(gpu)});
}

void FastAttention::decode(Gpu& gpu, const PagedAttention& a) {
  const Xqa* xqa = find_xqa(a);
  DI_CHECK(xqa != nullptr, "XQA was asked for a shape that it does not serve");
  const int32_t rows = a.batch->decode_rows;
  if (rows == 0) return;
  plan_for(gpu, a, fa2_tile(gpu, a));  // one plan serves both paths
  const int64_t sequences = int64_t{rows} * a.kv_heads;
  const int64_t blocks = int64_t{xqa->setup.blocks_per_sm} * gpu.facts().multiprocessors;
  const int64_t context =
      a.batch->max_context > 0 ? a.batch->max_context : int64_t{a.batch->max_blocks} * kXqaPage;
  const int64_t longest = (context + kXqaTile - 1) / kXqaTile;
  const int64_t splits = std::max<int64_t>(1, std::min(blocks / sequences, longest));
  xqa->unit->launch({.attention = &a,
                     .kv_len = plan_.kv_len,
                     .rows = rows,
                     .splits = static_cast<int32_t>(splits),
                     .semaphores = semaphores_,
                     .scratch = xqa_scratch_,
                     .sinks = sinks_,
                     .smem = xqa->setup.smem,
                     .stream = stream_of(gpu),
                     .pdl = gpu.pdl});
}

Result<FastBuilt> prepare_fast_attention(Gpu& gpu) {
  DI_ASSIGN(gpu.parts().fast_attention, FastAttention::make(gpu));
  return FastBuilt{.fa2 = gpu.parts().fast_attention->has_fa2(),
                   .xqa = gpu.parts().fast_attention->has_xqa()};
}

bool fa2_supports(const Gpu& gpu, const PagedAttention& a) {
  const auto& fast = gpu.parts().fast_attention;
  return fast != nullptr && fast->find_fa2(a) != nullptr;
}

bool xqa_supports(const Gpu& gpu, const PagedAttention& a) {
  const auto& fast = gpu.parts().fast_attention;
  return fast != nullptr && fast->find_xqa(a) != nullptr;
}

void fa2_prefill(Gpu& gpu, const PagedAttention& a) {
  DI_CHECK(gpu.parts().fast_attention != nullptr, "FA2 before prepare_fast_attention");
  gpu.parts().fast_attention->prefill(gpu, a);
}

void xqa_decode(Gpu& gpu, const PagedAttention& a) {
  DI_CHECK(gpu.parts().fast_attention != nullptr, "XQA before prepare_fast_attention");
  gpu.parts().fast_attention->decode(gpu, a);
}

FastServed attention_fast(Gpu& gpu, const PagedAttention& a) {
  FastServed served;
  const int32_t decode = a.batch->decode_rows, prefill = a.rows - decode;
  // How XQA splits a context depends on the rows beside it.
  if (decode > 0 && gpu.fast.xqa && !gpu.options().deterministic && xqa_supports(gpu, a)) {
    xqa_decode(gpu, a);
    served.decode = true;
  }
  if (prefill > 0 && gpu.fast.fa2 && fa2_supports(gpu, a) && fa2_pays(gpu, a)) {
    fa2_prefill(gpu, a);
    served.prefill = true;
  }
  return served;
}

}  // namespace deepinfer::cuda
