#include <algorithm>
#include <atomic>

#include "backend/cpu.h"
#include "backend/cpu/kernels.h"
#include "backend/cpu/kv.h"
#include "base/check.h"

namespace deepinfer::cpu {
namespace {

// A piece of the work: some tokens of one row, and some heads of one KV head's group.
struct Piece {
  int32_t row;
  int32_t token;  // the first, of [0, T)
  int32_t tokens;
  int32_t head;  // the first query head
  int32_t heads;
};

// How a phase is cut. The cut changes no result (attention-inl.h).
struct Cut {
  int group;            // query heads of a KV head
  int heads_at_once;    // of them in one piece
  int tokens_at_once;   // of a row in one piece
  int pieces_per_tile;  // tiles of tokens times this is the number of pieces of a row
};

Cut make_cut(const AttentionParams& p) {
  Cut c{};
  c.group = p.heads / p.kv.spec.kv_heads;
  c.heads_at_once = std::min(c.group, kMaxQueryRows);
  c.tokens_at_once = std::max(1, kMaxQueryRows / c.heads_at_once);
  c.pieces_per_tile = p.kv.spec.kv_heads * ((c.group + c.heads_at_once - 1) / c.heads_at_once);
  return c;
}

int64_t tiles_of_row(const StepBatch& b, int32_t row, const Cut& cut) {
  const int32_t tokens = b.row_start[row + 1] - b.row_start[row];
  return (tokens + cut.tokens_at_once - 1) / cut.tokens_at_once;
}

// Pieces of a row, the tiles with the most keys first.
Piece make_piece(const StepBatch& b, int32_t row, int64_t index, const Cut& cut) {
  const int64_t tile = tiles_of_row(b, row, cut) - 1 - index / cut.pieces_per_tile;
  const int part = static_cast<int>(index % cut.pieces_per_tile);
  const int parts_of_group = (cut.group + cut.heads_at_once - 1) / cut.heads_at_once;
  const int in_group = part % parts_of_group * cut.heads_at_once;
  const int32_t first = b.row_start[row] + static_cast<int32_t>(tile) * cut.tokens_at_once;
  return {.row = row,
          .token = first,
          .tokens = std::min(cut.tokens_at_once, b.row_start[row + 1] - first),
          .head = part / parts_of_group * cut.group + in_group,
          .heads = std::min(cut.heads_at_once, cut.group - in_group)};
}

void run_piece(const AttentionParams& p, const Piece& piece, const Cut& cut, float* scratch) {
  const StepBatch& b = *p.batch;
  const KvGroupSpec& s = p.kv.spec;
  const BlockTable& table = b.block_table[p.kv.group];
  const int kv_head = piece.head / cut.group;
  const AttendArgs args{
      .q = p.q.row<float>(piece.token) + static_cast<int64_t>(piece.head) * s.head_dim_k,
      .q_stride = p.q.stride[0],
      .tokens = piece.tokens,
      .heads = piece.heads,
      .first_position = b.position[piece.token],
      .blocks = table.ids.data() + static_cast<size_t>(piece.row) * table.stride,
      .k = p.kv.k(0) + kv_head * k_head_bytes(p.kv),
      .v = p.kv.v(0) + kv_head * v_head_bytes(p.kv),
      .block_stride = p.kv.block_stride,
      .kv_dtype = s.dtype,
      .dim_k = s.head_dim_k,
      .dim_v = s.head_dim_v,
      .window = s.kind == KvGroupSpec::Kind::kWindow ? s.window : 0,
      .scale = p.scale,
      .soft_cap = p.soft_cap,
      .out = p.out.row<float>(piece.token) + static_cast<int64_t>(piece.head) * s.head_dim_v,
      .out_stride = p.out.stride[0],
      .scratch = scratch};
  kernels().attend(args);
}

// Every block that will be read exists.
void check_blocks(const AttentionParams& p) {
  const StepBatch& b = *p.batch;
  const BlockTable& table = b.block_table[p.kv.group];
  const KvGroupSpec& s = p.kv.spec;
  for (int32_t row = 0; row < b.num_rows; ++row) {
    if (b.row_start[row] == b.row_start[row + 1]) continue;
    const int32_t last = b.position[b.row_start[row + 1] - 1];
    int32_t first = 0;
    if (s.kind == KvGroupSpec::Kind::kWindow)
      first = std::max(0, b.position[b.row_start[row]] + 1 - s.window);
    DI_CHECK(last / kKvBlock < table.stride, "row {}: position {} is outside of its block table ({})", row,
             last, table.stride);
    for (int32_t i = first / kKvBlock; i <= last / kKvBlock; ++i)
      DI_CHECK(table.ids[static_cast<size_t>(row) * table.stride + i] >= 0,
               "row {}: no block for position {}", row, i * kKvBlock);
  }
}

}  // namespace

void attention(Context& context, const AttentionParams& p) {
  check_kv(p.kv);
  const StepBatch& b = *p.batch;
  if (b.num_tokens == 0) return;
  DI_CHECK(p.heads % p.kv.spec.kv_heads == 0, "{} query heads over {} KV heads", p.heads, p.kv.spec.kv_heads);
  check_blocks(p);
  const Cut cut = make_cut(p);
  Arena& arena = *context.scratch;
  const size_t mark = arena.used();
  const int64_t floats = (attend_scratch(p.kv.spec.head_dim_k, p.kv.spec.head_dim_v) + 15) / 16 * 16;
  float* const scratch = arena.allocate_n<float>(floats * context.pool->size());

  // Pieces differ much in their number of keys: threads take the next one when they are done.
  int64_t* const row_end = arena.allocate_n<int64_t>(b.num_rows);  // pieces of this row and those before
  int64_t pieces = 0;
  for (int32_t row = 0; row < b.num_rows; ++row)
    row_end[row] = pieces += tiles_of_row(b, row, cut) * cut.pieces_per_tile;
  std::atomic<int64_t> next{0};
  const auto work = [&](int t) {
    for (int64_t i = next.fetch_add(1); i < pieces; i = next.fetch_add(1)) {
      const int64_t row = std::upper_bound(row_end, row_end + b.num_rows, i) - row_end;
      const int64_t index = i - (row == 0 ? 0 : row_end[row - 1]);
      run_piece(p, make_piece(b, static_cast<int32_t>(row), index, cut), cut, scratch + t * floats);
    }
  };
  context.pool->run(std::ref(work));
  arena.reset(mark);
}

}  // namespace deepinfer::cpu
