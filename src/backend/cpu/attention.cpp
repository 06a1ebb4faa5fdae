#include <algorithm>
#include <atomic>

#include "backend/cpu.h"
#include "backend/cpu/kernels.h"
#include "backend/cpu/kv.h"
#include "backend/cpu/linear.h"
#include "base/check.h"

namespace deepinfer::cpu {
namespace {

// A piece of the work: some tokens of one row, and some heads of one KV head's group.
struct Piece {
  int32_t row;
  int32_t token;  // the first, of [0, T)
  int32_t tokens;
  int32_t kv_head;
  int32_t head;   // the first query head
  int32_t heads;  // 0: other ranks have all heads of the piece
};

// How a phase is cut. The cut changes no result (attention-inl.h).
struct Cut {
  int group;            // query heads of a KV head
  int skip, heads;      // of the first KV head that are elsewhere; in all
  int heads_at_once;    // of them in one piece
  int tokens_at_once;   // of a row in one piece
  int pieces_per_tile;  // tiles of tokens times this is the number of pieces of a row
};

Cut make_cut(const AttentionParams& p) {
  Cut c{};
  c.group = p.groups.size != 0 ? p.groups.size : p.heads / p.kv.spec.kv_heads;
  c.skip = p.groups.skip;
  c.heads = p.heads;
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
  const int kv_head = part / parts_of_group;
  // Counted through the groups, of which those at the ends may be cut off.
  const int begin = kv_head * cut.group + in_group;
  const int end = begin + std::min(cut.heads_at_once, cut.group - in_group);
  const int first_head = std::max(begin, cut.skip), last_head = std::min(end, cut.skip + cut.heads);
  const int32_t first = b.row_start[row] + static_cast<int32_t>(tile) * cut.tokens_at_once;
  return {.row = row,
          .token = first,
          .tokens = std::min(cut.tokens_at_once, b.row_start[row + 1] - first),
          .kv_head = kv_head,
          .head = first_head - cut.skip,
          .heads = std::max(last_head - first_head, 0)};
}

int window_of(const KvGroupSpec& s) {
  return s.kind == KvGroupSpec::Kind::kWindow ? s.window : 0;
}

AttendArgs attend_args(const AttentionParams& p, const Piece& piece, float* scratch) {
  const StepBatch& b = *p.batch;
  const KvGroupSpec& s = p.kv.spec;
  const BlockTable& table = b.block_table[p.kv.group];
  return {.q = p.q.row<float>(piece.token) + static_cast<int64_t>(piece.head) * s.head_dim_k,
          .q_stride = p.q.stride[0],
          .tokens = piece.tokens,
          .heads = piece.heads,
          .first_position = b.position[piece.token],
          .blocks = table.ids.data() + static_cast<size_t>(piece.row) * table.stride,
          .k = p.kv.k(0) + piece.kv_head * k_head_bytes(p.kv),
          .v = p.kv.v(0) + piece.kv_head * v_head_bytes(p.kv),
          .block_stride = p.kv.block_stride,
          .kv_dtype = s.dtype,
          .k_scale = k_scale(p.kv),
          .v_scale = v_scale(p.kv),
          .dim_k = s.head_dim_k,
          .dim_v = s.head_dim_v,
          .window = window_of(s),
          .scale = p.scale,
          .soft_cap = p.soft_cap,
          .out = p.out.row<float>(piece.token) + static_cast<int64_t>(piece.head) * s.head_dim_v,
          .out_stride = p.out.stride[0],
          .scratch = scratch};
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

// One attention phase: its parameters, its cut, and the pieces of each row.
struct Phase {
  const AttentionParams& p;
  Cut cut;
  int64_t* row_end;  // [rows] pieces of this row and those before it
  int64_t pieces;
  float* scratch;  // of each thread
  int64_t scratch_floats;

  float* scratch_of(int t) const { return scratch + t * scratch_floats; }

  AttendArgs piece(int64_t i, int t) const {
    const int64_t row = std::upper_bound(row_end, row_end + p.batch->num_rows, i) - row_end;
    const int64_t index = i - (row == 0 ? 0 : row_end[row - 1]);
    return attend_args(p, make_piece(*p.batch, static_cast<int32_t>(row), index, cut), scratch_of(t));
  }
};

// Pieces differ much in their number of keys: threads take the next one when they are done.
void run_pieces(Context& context, const Phase& phase) {
  std::atomic<int64_t> next{0};
  const auto work = [&](int t) {
    for (int64_t i = next.fetch_add(1); i < phase.pieces; i = next.fetch_add(1)) {
      const AttendArgs args = phase.piece(i, t);
      if (args.heads > 0) kernels().attend(args);
    }
  };
  context.pool->run(std::ref(work));
}

// Too few pieces of decode rows to keep all threads busy: their stretches of keys are taken one by one.
// `stretch_end` [pieces] counts the stretches of a piece and those before it.
void run_stretches(Context& context, const Phase& phase, const int64_t* stretch_end, float* parts) {
  const int64_t size = part_size(phase.cut.heads_at_once, phase.p.kv.spec.head_dim_v);
  const auto first_of = [&](int64_t piece) { return piece == 0 ? 0 : stretch_end[piece - 1]; };
  std::atomic<int64_t> next{0};
  const auto work = [&](int t) {
    const int64_t all = stretch_end[phase.pieces - 1];
    for (int64_t i = next.fetch_add(1); i < all; i = next.fetch_add(1)) {
      const int64_t piece = std::upper_bound(stretch_end, stretch_end + phase.pieces, i) - stretch_end;
      const AttendArgs args = phase.piece(piece, t);
      const int64_t first = key_stretches(args.first_position, 1, args.window).first;
      kernels().attend_part(args, first + i - first_of(piece), parts + i * size);
    }
    context.pool->barrier();
    const Share mine = share(phase.pieces, t, context.pool->size());
    for (int64_t piece = mine.first; piece < mine.last; ++piece) {
      const AttendArgs args = phase.piece(piece, t);
      kernels().attend_join(args, parts + first_of(piece) * size, size, stretch_end[piece] - first_of(piece));
    }
  };
  context.pool->run(std::ref(work));
}

// Whether that is worth it, and possible in kPartBytes; fills stretch_end.
bool cut_into_stretches(const Phase& phase, int threads, int64_t* stretch_end) {
  if (threads == 1 || phase.p.batch->num_tokens != phase.p.batch->num_rows) return false;
  int64_t all = 0;
  for (int64_t i = 0; i < phase.pieces; ++i) {
    const AttendArgs args = phase.piece(i, 0);
    if (args.heads == 0) return false;
    const KeyStretches s = key_stretches(args.first_position, 1, args.window);
    stretch_end[i] = all += s.end - s.first;
  }
  const int64_t bytes = all * part_size(phase.cut.heads_at_once, phase.p.kv.spec.head_dim_v) *
                        static_cast<int64_t>(sizeof(float));
  return all > phase.pieces && bytes <= static_cast<int64_t>(kPartBytes);
}

}  // namespace

void attention(Context& context, const AttentionParams& p) {
  check_kv(p.kv);
  const StepBatch& b = *p.batch;
  if (b.num_tokens == 0) return;
  check_blocks(p);
  const int threads = context.pool->size();
  Arena& arena = *context.scratch;
  const size_t mark = arena.used();
  Phase phase{.p = p, .cut = make_cut(p), .row_end = arena.allocate_n<int64_t>(b.num_rows), .pieces = 0};
  for (int32_t row = 0; row < b.num_rows; ++row)
    phase.row_end[row] = phase.pieces += tiles_of_row(b, row, phase.cut) * phase.cut.pieces_per_tile;
  phase.scratch_floats = (attend_scratch(p.kv.spec.head_dim_k, p.kv.spec.head_dim_v) + 15) / 16 * 16;
  phase.scratch = arena.allocate_n<float>(phase.scratch_floats * threads);

  // With this many pieces for each thread none waits long for the others.
  constexpr int kEnoughPieces = 8;
  int64_t* stretch_end = nullptr;
  if (phase.pieces < kEnoughPieces * threads) {
    int64_t* const ends = arena.allocate_n<int64_t>(phase.pieces);
    if (cut_into_stretches(phase, threads, ends)) stretch_end = ends;
  }
  if (stretch_end == nullptr) {
    run_pieces(context, phase);
  } else {
    const int64_t size = part_size(phase.cut.heads_at_once, p.kv.spec.head_dim_v);
    run_stretches(context, phase, stretch_end, arena.allocate_n<float>(stretch_end[phase.pieces - 1] * size));
  }
  arena.reset(mark);
}

}  // namespace deepinfer::cpu
