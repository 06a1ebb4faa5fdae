#include "backend/cpu/linear.h"

#include <algorithm>

#include "backend/cpu/layout.h"
#include "base/check.h"

namespace deepinfer::cpu {
namespace {

constexpr int64_t kMaxColumns = 256;
constexpr int64_t kCacheBytes = 512 << 10;  // of activations under way: half of a small second-level cache
// So few columns are prepared by every thread for itself: cheaper than to wait for each other.
constexpr int64_t kPrivateColumns = 2;

// One block of columns being prepared.
struct Block {
  const LinearCall& call;
  Columns columns;
  float* prepared;  // F32 [count][k]: what a float weight reads when there is a norm
};

Columns allocate_columns(Arena& arena, const LinearWeight& w, int64_t count) {
  Columns c{.weight = w.source, .count = count, .k = w.cols};
  if (!is_integer(w.source)) return c;
  const size_t blocks = static_cast<size_t>(count) * w.cols / kTileK;
  c.q = arena.allocate_n<int8_t>(blocks * kTileK);
  c.scale = arena.allocate_n<float>(blocks);
  c.scaled_sum = arena.allocate_n<float>(blocks);
  c.correction = arena.allocate_n<int32_t>(blocks);
  return c;
}

Block make_block(Arena& arena, const LinearCall& call, int64_t count) {
  Block b{call, allocate_columns(arena, *call.weight, count), nullptr};
  const bool keep = !is_integer(call.weight->source) && (call.norm != nullptr || !call.x_row.empty());
  if (keep) b.prepared = arena.allocate_n<float>(static_cast<size_t>(count) * call.weight->cols);
  return b;
}

// Columns [first, first + count) of the call become the block's; `row` is room for one row.
void begin_block(Block& b, int64_t first, int64_t count) {
  b.columns.count = count;
  if (is_integer(b.columns.weight)) return;
  b.columns.x = b.prepared != nullptr ? b.prepared : b.call.x + first * b.call.x_stride;
  b.columns.x_stride = b.prepared != nullptr ? b.columns.k : b.call.x_stride;
}

void prepare_column(const Kernels& kernels, const Block& b, int64_t first, int64_t column, float* row) {
  const LinearCall& call = b.call;
  const int64_t source = call.x_row.empty() ? first + column : call.x_row[first + column];
  const float* x = call.x + source * call.x_stride;
  const bool integer = is_integer(b.columns.weight);
  if (!integer && b.prepared == nullptr) return;
  float* const to = integer ? row : b.prepared + column * b.columns.k;
  if (call.norm != nullptr) {
    kernels.norm(x, call.norm->weight.as<float>(), call.norm->eps, b.columns.k, to);
    x = to;
  } else if (!integer) {
    std::copy_n(x, b.columns.k, to);
  }
  if (integer) kernels.quantize(x, b.columns, column);
}

MatmulArgs matmul_args(const LinearCall& call) {
  const LinearWeight& w = *call.weight;
  const bool paired = call.epilogue == Epilogue::kGated;
  return {.weight = w.packed.data(),
          .dtype = w.source,
          .rows = paired ? w.rows / 2 : w.rows,
          .epilogue = call.epilogue,
          .activation = call.activation,
          .scale = call.scale,
          .bias = call.bias,
          .out = call.out,
          .out_stride = call.out_stride};
}

}  // namespace

bool is_integer(DType weight) {
  return weight == DType::kQ4_0 || weight == DType::kQ4_1 || weight == DType::kQ8_0;
}

int64_t group_bytes(DType dtype, int64_t cols) {
  switch (dtype) {
    case DType::kQ4_0:
      return cols / kTileK * static_cast<int64_t>(sizeof(TileQ4_0));
    case DType::kQ4_1:
      return cols / kTileK * static_cast<int64_t>(sizeof(TileQ4_1));
    case DType::kQ8_0:
      return cols / kTileK * static_cast<int64_t>(sizeof(TileQ8_0));
    default:
      return cols * kGroupRows * info(dtype).block_bytes;
  }
}

int64_t columns_at_once(const LinearWeight& weight, int64_t count) {
  const int64_t column_bytes = weight.cols * (is_integer(weight.source) ? 1 : 4);
  const int64_t fit = std::clamp<int64_t>(kCacheBytes / column_bytes / kPanel * kPanel, 32, kMaxColumns);
  return std::min(count, fit);
}

void linear(Context& context, const LinearCall& call) {
  if (call.count == 0) return;
  const LinearWeight& w = *call.weight;
  const Kernels& k = kernels();
  ThreadPool& pool = *context.pool;
  const int threads = pool.size();
  Arena& arena = *context.scratch;
  const size_t mark = arena.used();

  const int64_t at_once = columns_at_once(w, call.count);
  const bool own = call.count <= kPrivateColumns || threads == 1;
  Block* const blocks = arena.allocate_n<Block>(threads);  // one for each thread, or the first for all
  for (int t = 0; t < (own ? threads : 1); ++t) new (&blocks[t]) Block(make_block(arena, call, at_once));
  float* const rows = arena.allocate_n<float>(static_cast<size_t>(threads) * w.cols);

  const MatmulArgs args = matmul_args(call);
  const int64_t groups = (args.rows + kGroupRows - 1) / kGroupRows;
  const auto work = [&](int t) {
    Block block = own ? blocks[t] : blocks[0];
    MatmulArgs part = args;
    for (int64_t first = 0; first < call.count; first += at_once) {
      const int64_t count = std::min(at_once, call.count - first);
      begin_block(block, first, count);
      const Share mine = own ? Share{0, count} : share(count, t, threads);
      for (int64_t c = mine.first; c < mine.last; ++c)
        prepare_column(k, block, first, c, rows + static_cast<int64_t>(t) * w.cols);
      if (!own) pool.barrier();
      if (call.after == nullptr) part.out = args.out + first * args.out_stride;
      const Share group = share(groups, t, threads);
      k.matmul(part, block.columns, group.first, group.last);
      if (call.after != nullptr) {
        pool.barrier();
        (*call.after)(t, first, count);
      }
      // Nobody may overwrite the columns (or out) that others still read.
      if (first + count < call.count) pool.barrier();
    }
  };
  pool.run(std::ref(work));
  arena.reset(mark);
}

size_t linear_scratch_bytes(int threads, int64_t count, int64_t cols) {
  const size_t columns = static_cast<size_t>(std::min(count, kMaxColumns));
  const size_t copies = count <= kPrivateColumns ? static_cast<size_t>(threads) : 1;
  const size_t alignment = 64 * 8;
  return copies * (columns * cols * sizeof(float) + columns * (cols / kTileK + 1) * 12 + alignment) +
         static_cast<size_t>(threads) * (cols * sizeof(float) + sizeof(Block)) + alignment;
}

}  // namespace deepinfer::cpu
