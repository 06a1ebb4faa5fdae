// Which kernels serve an attention phase, and with how many blocks: from sizes alone, so that a launch can be
// captured into a graph.
#include "backend/cuda/attention.h"

#include <algorithm>
#include <bit>

#include "backend/cuda.h"
#include "backend/cuda/attention_args.h"
#include "backend/cuda/fast/fast_attention.h"
#include "backend/cuda/parts.h"
#include "backend/cuda/scratch.h"
#include "base/check.h"

namespace deepinfer::cuda {
namespace {

constexpr size_t kPartBytes = size_t{32} << 20;  // of results that wait to be joined
constexpr int kMaxSplits = 64;
constexpr float kLog2E = 1.44269504088896f;

size_t aligned(size_t bytes) {
  return (bytes + 255) / 256 * 256;
}

void check(const PagedAttention& a) {
  for (const int dim : {a.dim_k, a.dim_v})
    DI_CHECK(dim >= 16 && dim <= 256 && dim % 8 == 0,
             "head dimension {}: attention on CUDA takes multiples of 8 from 16 to 256", dim);
  DI_CHECK(a.kv_heads > 0 && a.heads % a.kv_heads == 0, "{} query heads over {} KV heads", a.heads,
           a.kv_heads);
  DI_CHECK(a.block_size >= 16 && a.block_size <= 128 && (a.block_size & (a.block_size - 1)) == 0,
           "KV block size {}: attention on CUDA takes 16, 32, 64 and 128", a.block_size);
  DI_CHECK(a.activation == DType::kBF16 || a.activation == DType::kF16, "activations of {}",
           info(a.activation).name);
  DI_CHECK(a.kv_dtype == a.activation || a.kv_dtype == DType::kF8E4M3,
           "KV cache of {} with activations of {}", info(a.kv_dtype).name, info(a.activation).name);
  DI_CHECK(a.scale > 0 && a.k_scale > 0 && a.v_scale > 0 && a.soft_cap >= 0,
           "scales of attention: {}, K {}, V {}, soft cap {}", a.scale, a.k_scale, a.v_scale, a.soft_cap);
}

int padded_dim(const PagedAttention& a) {
  const int dim = std::max(a.dim_k, a.dim_v);
  return dim <= 64 ? 64 : dim <= 128 ? 128 : 256;
}

size_t part_bytes(const PagedAttention& a, int64_t tokens, int64_t splits) {
  const auto parts = static_cast<size_t>(tokens * a.heads * splits);
  return aligned(parts * a.dim_v * sizeof(float)) + aligned(parts * 2 * sizeof(float));
}

// The rows that one kernel serves: decode rows, or all others.
struct Launch {
  int64_t tokens = 0;
  int64_t blocks = 0;  // for each stretch
  size_t shared_bytes = 0;
  int64_t most_resident = 0;  // blocks of a multiprocessor, whatever its shared memory
  int64_t keys = 0;           // at most, of a tile of rows
  int64_t lines = 0;          // at most, of a warp: query heads of tokens
};

// Blocks that share a tile's keys, when they may be cut anywhere: the number with which the card is done
// first, if a block needs as long as it has steps of keys, and some more to begin with and to write its
// part; then the last one joins the parts, which takes a warp a step's time for every kJoined values. Few
// rows are as long as a graph's bound: beyond kUsualKeys it says nothing about them.
int choose_splits(const Gpu& gpu, const PagedAttention& a, const Launch& l) {
  if (l.blocks > kTileCounters) return 1;
  constexpr size_t kReserved = 1 << 10;  // of each block, by the system
  const auto fit =
      static_cast<int64_t>((gpu.facts().shared_per_block + kReserved) / (l.shared_bytes + kReserved));
  const int64_t slots = gpu.facts().multiprocessors * std::clamp<int64_t>(fit, 1, l.most_resident);
  constexpr int64_t kUsualKeys = 8192, kStart = 4, kJoin = 2, kJoined = 4096;
  const int64_t steps = (std::min(l.keys, kUsualKeys) + kKeysAtOnce - 1) / kKeysAtOnce;
  int best = 1;
  int64_t best_cost = (l.blocks + slots - 1) / slots * (steps + kStart);
  for (int splits = 2; splits <= std::min<int64_t>(kMaxSplits, steps / 2); ++splits) {
    if (part_bytes(a, l.tokens, splits) > kPartBytes) break;
    const int64_t waves = (l.blocks * splits + slots - 1) / slots;
    const int64_t join = kJoin + splits * l.lines * a.dim_v / kJoined;
    const int64_t cost = waves * ((steps + splits - 1) / splits + kStart) + join;
    if (cost < best_cost) best = splits, best_cost = cost;
  }
  return best;
}

int64_t decode_tiles(const PagedAttention& a) {
  return int64_t{a.batch->decode_rows} * a.kv_heads * ((a.heads / a.kv_heads + 15) / 16);
}

// All fixed stretches that a row may have, or 1: then a block takes all of them.
int fixed_splits(const PagedAttention& a) {
  if (decode_tiles(a) > kTileCounters) return 1;
  const int32_t last = std::max(a.batch->max_context, 1) - 1;
  int splits = cut_of(last) + 1;
  // A window may lie across one more stretch than it fills.
  if (a.window > 0) splits = std::min(splits, (a.window + kCutKeys - 1) / kCutKeys + 1);
  return part_bytes(a, a.batch->decode_rows, splits) <= kPartBytes ? splits : 1;
}

int64_t most_keys(const PagedAttention& a, int64_t tokens) {
  const int64_t keys = std::max(a.batch->max_context, 1);
  return a.window > 0 ? std::min<int64_t>(keys, a.window + tokens + kKeysAtOnce) : keys;
}

int decode_splits(const Gpu& gpu, const PagedAttention& a) {
  if (a.batch->decode_rows == 0) return 1;
  if (gpu.options().deterministic) return fixed_splits(a);
  return choose_splits(gpu, a,
                       {.tokens = a.batch->decode_rows,
                        .blocks = decode_tiles(a),
                        .shared_bytes = decode_shared_bytes(padded_dim(a)),
                        .most_resident = 8,
                        .keys = most_keys(a, 1),
                        .lines = std::min(a.heads / a.kv_heads, 16)});
}

// In deterministic mode a block takes a tile's stretches one after another.
int prefill_splits(const Gpu& gpu, const PagedAttention& a) {
  const int64_t tokens = a.tokens - a.batch->decode_rows, rows = a.rows - a.batch->decode_rows;
  if (rows == 0 || gpu.options().deterministic) return 1;
  return choose_splits(gpu, a,
                       {.tokens = tokens,
                        .blocks = a.kv_heads * prefill_tiles(tokens, rows, a.heads / a.kv_heads),
                        .shared_bytes = prefill_shared_bytes(padded_dim(a)),
                        .most_resident = 2,
                        .keys = most_keys(a, std::max(a.batch->max_query, 1)),
                        .lines = 16});
}

size_t state_bytes(const Gpu& gpu, int64_t tokens, int64_t width) {
  return gpu.options().deterministic ? aligned(static_cast<size_t>(tokens * width) * sizeof(float)) : 0;
}

AttendArgs make_args(const PagedAttention& a) {
  AttendArgs args;
  args.heads = a.heads, args.kv_heads = a.kv_heads, args.group = a.heads / a.kv_heads;
  args.dim_k = a.dim_k, args.dim_v = a.dim_v;
  args.block_shift = std::countr_zero(static_cast<unsigned>(a.block_size));
  args.window = a.window;
  args.max_blocks = a.batch->max_blocks;
  const bool fp8 = a.kv_dtype == DType::kF8E4M3;
  const float scale = a.scale * (fp8 ? a.k_scale : 1.0f);
  args.out_scale = fp8 ? a.v_scale : 1.0f;
  if (a.soft_cap > 0) {
    args.cap_scale = 2 * kLog2E * scale / a.soft_cap;
    args.score_scale = kLog2E * a.soft_cap;
  } else {
    args.score_scale = kLog2E * scale;
  }
  args.q = a.q, args.out = a.out;
  args.k = a.k, args.v = a.v;
  args.block_stride = a.block_stride;
  args.row_start = a.batch->row_start;
  args.position = a.batch->position;
  args.row_blocks = a.row_blocks;
  return args;
}

}  // namespace

size_t attention_scratch_bytes(const Gpu& gpu, const PagedAttention& a) {
  const auto parts = [&](int64_t tokens, int splits) {
    return splits > 1 ? part_bytes(a, tokens, splits) : 0;
  };
  // One launch after the other uses the same memory.
  return std::max(parts(a.batch->decode_rows, decode_splits(gpu, a)),
                  parts(a.tokens - a.batch->decode_rows, prefill_splits(gpu, a))) +
         state_bytes(gpu, a.tokens, int64_t{a.heads} * a.dim_v);
}

void attention_plain(Gpu& gpu, const PagedAttention& a, void* scratch, AttentionRows rows) {
  check(a);
  if (a.tokens == 0) return;
  AttendArgs args = make_args(a);
  args.fixed = gpu.options().deterministic;
  args.arrived = gpu.parts().arrived();
  auto* const state = static_cast<std::byte*>(scratch);
  args.state = reinterpret_cast<float*>(state);
  std::byte* const parts = state + state_bytes(gpu, a.tokens, int64_t{a.heads} * a.dim_v);
  args.parts = reinterpret_cast<float*>(parts);
  const auto split = [&](int64_t tokens, int splits) {
    const auto values = static_cast<size_t>(tokens * a.heads * splits * a.dim_v);
    args.splits = splits;
    args.part_sum = reinterpret_cast<float*>(parts + aligned(values * sizeof(float)));
  };
  const AttendShape shape{a.activation, a.kv_dtype == DType::kF8E4M3, padded_dim(a)};
  const int32_t decode_rows = a.batch->decode_rows;
  if (rows.decode && decode_rows > 0) {
    args.first_row = 0, args.last_row = decode_rows;
    split(decode_rows, decode_splits(gpu, a));
    launch_decode(shape, args, stream_of(gpu), gpu.pdl);
  }
  if (rows.prefill && a.rows > decode_rows) {
    args.first_row = decode_rows, args.last_row = a.rows;
    split(a.tokens - decode_rows, prefill_splits(gpu, a));
    launch_prefill(shape, args, a.tokens - decode_rows, stream_of(gpu), gpu.pdl);
  }
}

size_t attention_scratch(const Context& context, int64_t tokens, int64_t max_cols) {
  return kPartBytes + state_bytes(*context.gpu, tokens, max_cols);
}

void attention(Context& context, const AttentionParams& p) {
  const StepBatch& b = *p.batch;
  const KvGroupSpec& s = p.kv.spec;
  const int64_t tokens = b.num_tokens;
  if (tokens == 0) return;
  DI_CHECK(b.device != nullptr, "attention on CUDA: the step is not on the device");
  check_tensor(p.q, "attention: q", context.activation, {tokens, int64_t{p.heads} * s.head_dim_k});
  check_tensor(p.out, "attention: out", context.activation, {tokens, int64_t{p.heads} * s.head_dim_v});
  DI_CHECK(p.q.contiguous() && p.out.contiguous(), "attention on CUDA: q and out must be contiguous");
  const PagedAttention a{.rows = b.num_rows,
                         .tokens = b.num_tokens,
                         .heads = p.heads,
                         .kv_heads = s.kv_heads,
                         .dim_k = s.head_dim_k,
                         .dim_v = s.head_dim_v,
                         .block_size = p.kv.block_size,
                         .window = s.kind == KvGroupSpec::Kind::kWindow ? s.window : 0,
                         .scale = p.scale,
                         .soft_cap = p.soft_cap,
                         .activation = context.activation,
                         .kv_dtype = s.dtype,
                         .k_scale = p.kv.k_scale,
                         .v_scale = p.kv.v_scale,
                         .q = p.q.data,
                         .out = p.out.data,
                         .k = p.kv.k(0),
                         .v = p.kv.v(0),
                         .block_stride = p.kv.block_stride,
                         .batch = b.device,
                         .row_blocks = b.device->row_blocks + p.kv.group * b.device->group_stride};
  Gpu& gpu = *context.gpu;
  // The fast paths' bits depend on how a token came into the step.
  const FastServed served = gpu.options().deterministic ? FastServed{} : attention_fast(gpu, a);
  if (served.decode && served.prefill) return;
  const size_t mark = context.scratch->used();
  attention_plain(gpu, a, context.scratch->allocate(attention_scratch_bytes(gpu, a)),
                  {!served.decode, !served.prefill});
  context.scratch->reset(mark);
}

}  // namespace deepinfer::cuda
