#include "backend/cpu/linear.h"

#include <algorithm>

#include "backend/cpu/layout.h"
#include "backend/cpu/packed.h"
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
  float* prepared;  // F32 [count][k]: what a float weight reads when x does not stand so
};

// Room for rows under way, of one thread.
struct Rows {
  float* normed;
  float* ordered;
};

Layout layout_of(const LinearWeight& w) {
  return packed_shape(w).layout;
}

const int32_t* column_order(const LinearWeight& w) {
  return reinterpret_cast<const int32_t*>(w.column_order.data());
}

Columns allocate_columns(Arena& arena, const LinearWeight& w, int64_t count) {
  Columns c{.weight = layout_of(w), .count = count, .k = w.cols};
  if (!is_integer(c.weight)) return c;
  const size_t blocks = static_cast<size_t>(count) * w.cols / kTileK;
  c.q = arena.allocate_n<int8_t>(blocks * kTileK);
  c.scale = arena.allocate_n<float>(blocks);
  c.sum = arena.allocate_n<float>(blocks);
  c.correction = arena.allocate_n<int32_t>(blocks);
  return c;
}

Block make_block(Arena& arena, const LinearCall& call, int64_t count) {
  Block b{call, allocate_columns(arena, *call.weight, count), nullptr};
  const bool moved = !call.x_row.empty() || column_order(*call.weight) != nullptr;
  if (!is_integer(b.columns.weight) && (call.norm != nullptr || moved))
    b.prepared = arena.allocate_n<float>(static_cast<size_t>(count) * call.weight->cols);
  return b;
}

// Columns [first, first + count) of the call become the block's.
void begin_block(Block& b, int64_t first, int64_t count) {
  b.columns.count = count;
  if (is_integer(b.columns.weight)) return;
  b.columns.x = b.prepared != nullptr ? b.prepared : b.call.x + first * b.call.x_stride;
  b.columns.x_stride = b.prepared != nullptr ? b.columns.k : b.call.x_stride;
}

// The norm, then the order of the weight's columns, then the form in which the kernel reads a column.
void prepare_column(const Kernels& kernels, const Block& b, int64_t first, int64_t column, const Rows& rows) {
  const LinearCall& call = b.call;
  const int64_t source = call.x_row.empty() ? first + column : call.x_row[first + column];
  const float* x = call.x + source * call.x_stride;
  const bool integer = is_integer(b.columns.weight);
  if (!integer && b.prepared == nullptr) return;
  const int32_t* const order = column_order(*call.weight);
  float* const last = integer ? nullptr : b.prepared + column * b.columns.k;  // null: quantize() reads x
  if (call.norm != nullptr) {
    float* const to = last != nullptr && order == nullptr ? last : rows.normed;
    kernels.norm(x, call.norm->weight.as<float>(), call.norm->eps, b.columns.k, to);
    x = to;
  }
  if (order != nullptr) {
    float* const to = last != nullptr ? last : rows.ordered;
    for (int64_t k = 0; k < b.columns.k; ++k) to[k] = x[order[k]];
    x = to;
  }
  if (integer)
    kernels.quantize(x, b.columns, column);
  else if (x != last)
    std::copy_n(x, b.columns.k, last);
}

MatmulArgs matmul_args(const LinearCall& call) {
  const LinearWeight& w = *call.weight;
  const bool paired = call.epilogue == Epilogue::kGated;
  const PackedShape shape = packed_shape(w);
  const float* const scales = packed_scales(w, shape, 0);
  return {.weight = w.packed.data(),
          .layout = shape.layout,
          .row_scale = shape.row_scaled ? scales : nullptr,
          .run_scale = shape.row_scaled ? nullptr : scales,
          .run = shape.run,
          .rows = paired ? w.rows / 2 : w.rows,
          .epilogue = call.epilogue,
          .activation = call.activation,
          .scale = call.scale,
          .bias = call.bias,
          .out = call.out,
          .out_stride = call.out_stride};
}

}  // namespace

int64_t columns_at_once(const LinearWeight& weight, int64_t count) {
  const int64_t column_bytes = weight.cols * (is_integer(layout_of(weight)) ? 1 : 4);
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
  float* const rows = arena.allocate_n<float>(static_cast<size_t>(threads) * w.cols * 2);

  const MatmulArgs args = matmul_args(call);
  const int64_t groups = (args.rows + kGroupRows - 1) / kGroupRows;
  const auto work = [&](int t) {
    Block block = own ? blocks[t] : blocks[0];
    MatmulArgs part = args;
    float* const room = rows + 2 * t * w.cols;
    const Rows own_rows{room, room + w.cols};
    for (int64_t first = 0; first < call.count; first += at_once) {
      const int64_t count = std::min(at_once, call.count - first);
      begin_block(block, first, count);
      const Share mine = own ? Share{0, count} : share(count, t, threads);
      for (int64_t c = mine.first; c < mine.last; ++c) prepare_column(k, block, first, c, own_rows);
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
         static_cast<size_t>(threads) * (2 * cols * sizeof(float) + sizeof(Block)) + alignment;
}

}  // namespace deepinfer::cpu
