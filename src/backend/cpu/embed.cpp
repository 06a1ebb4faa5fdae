// Reads rows out of a packed table, and the table of RoPE's angles.
#include <cmath>
#include <cstddef>

#include "backend/cpu.h"
#include "backend/cpu/layout.h"
#include "backend/cpu/linear.h"
#include "backend/cpu/packed.h"
#include "base/check.h"
#include "tensor/half.h"

namespace deepinfer::cpu {
namespace {

// Values as the format's specification computes them: product and sum are rounded each.
template <class Tile>
void read_tiles(const std::byte* group, int lane, int64_t cols, float* out) {
  const Tile* w = reinterpret_cast<const Tile*>(group);
  for (int64_t k = 0; k < cols; ++k) {
    const Tile& tile = w[k / kColumnsOf<Tile>];
    const auto& block = tile.q[k % kColumnsOf<Tile> / kTileK];
    const int i = static_cast<int>(k % kTileK);
    int q;
    if constexpr (kBytes<Tile>) {
      q = block[i / 4][lane * 4 + i % 4];
    } else {
      const int byte = block[i % 16 / 4][lane * 4 + i % 4];
      q = i < 16 ? byte & 15 : byte >> 4;
      if constexpr (!requires { tile.z; } && !requires { tile.m; }) q -= 8;
    }
    if constexpr (requires { tile.z; }) q -= tile.z[lane];
    out[k] = f16_to_float(tile.d[lane]) * static_cast<float>(q);
    if constexpr (requires { tile.m; }) out[k] += f16_to_float(tile.m[lane]);
  }
}

template <class Type, class Convert>
void read_elements(const std::byte* group, int lane, int64_t cols, float* out, const Convert& convert) {
  const Type* w = reinterpret_cast<const Type*>(group) + lane;
  for (int64_t i = 0; i < cols; ++i) out[i] = convert(w[i * kGroupRows]);
}

// Without the scales behind the groups; 2^8 is theirs.
void read_f8(const std::byte* group, int lane, int64_t cols, float* out) {
  for (int64_t i = 0; i < cols; ++i) {
    const auto code = std::to_integer<uint8_t>(group[(i / 2 * kGroupRows + lane) * 2 + i % 2]);
    out[i] = e4m3_to_float(code) * 0x1p-8f;
  }
}

void read_group(Layout layout, const std::byte* group, int lane, int64_t cols, float* out) {
  switch (layout) {
    case Layout::kF32:
      return read_elements<float>(group, lane, cols, out, [](float v) { return v; });
    case Layout::kF16:
      return read_elements<uint16_t>(group, lane, cols, out, f16_to_float);
    case Layout::kBF16:
      return read_elements<uint16_t>(group, lane, cols, out, bf16_to_float);
    case Layout::kF8:
    case Layout::kF8Groups:
      return read_f8(group, lane, cols, out);
    case Layout::kQ4_0:
      return read_tiles<TileS4<1>>(group, lane, cols, out);
    case Layout::kQ4_0Wide:
      return read_tiles<TileS4<kWide>>(group, lane, cols, out);
    case Layout::kQ4_1:
      return read_tiles<TileQ4_1>(group, lane, cols, out);
    case Layout::kU4:
      return read_tiles<TileU4<1>>(group, lane, cols, out);
    case Layout::kU4Wide:
      return read_tiles<TileU4<kWide>>(group, lane, cols, out);
    case Layout::kQ8_0:
      return read_tiles<TileS8<1>>(group, lane, cols, out);
    case Layout::kQ8_0Wide:
      return read_tiles<TileS8<kWide>>(group, lane, cols, out);
    case Layout::kU8:
      return read_tiles<TileU8<1>>(group, lane, cols, out);
    case Layout::kU8Wide:
      return read_tiles<TileU8<kWide>>(group, lane, cols, out);
  }
}

// `room` for one row: where the columns stand in another order.
void read_packed(const LinearWeight& table, int64_t row, float* room, float* out) {
  const PackedShape shape = packed_shape(table);
  const int64_t group = row / kGroupRows;
  const int lane = static_cast<int>(row % kGroupRows);
  const auto* order = reinterpret_cast<const int32_t*>(table.column_order.data());
  float* const values = order == nullptr ? out : room;
  read_group(shape.layout, table.packed.data() + group * shape.group_bytes(), lane, table.cols, values);
  if (const float* scale = packed_scales(table, shape, group); scale != nullptr) {
    const int64_t run = shape.row_scaled ? table.cols : shape.run;
    for (int64_t i = 0; i < table.cols; ++i) values[i] *= scale[i / run * kGroupRows + lane];
  }
  if (order == nullptr) return;
  for (int64_t i = 0; i < table.cols; ++i) out[order[i]] = values[i];
}

// The token's id; in a decode row it may still be known to the slot only.
int32_t token_id(const EmbedParams& p, int32_t row, int32_t t) {
  int32_t id = p.batch->token[t];
  if (id == kTokenFromSlot) {
    DI_CHECK(p.slots != nullptr, "token {} comes from a slot, but there is no slot table", t);
    const int32_t slot = p.batch->row_slot[row];
    DI_CHECK(slot >= 0 && slot < p.slots->last_token.shape[0], "row {}: slot {} of {}", row, slot,
             p.slots->last_token.shape[0]);
    id = p.slots->last_token.as<int32_t>()[slot];
  }
  const int64_t vocab = p.vocab.empty() ? p.table->rows : p.vocab.back().end();
  DI_CHECK(id >= 0 && id < vocab, "token {}: id {} of a vocabulary of {}", t, id, vocab);
  return id;
}

}  // namespace

void embed(Context& context, const EmbedParams& p) {
  const StepBatch& batch = *p.batch;
  if (batch.num_tokens == 0) return;
  Arena& arena = *context.scratch;
  const size_t mark = arena.used();
  int32_t* const ids = arena.allocate_n<int32_t>(batch.num_tokens);
  for (int32_t row = 0; row < batch.num_rows; ++row)
    for (int32_t t = batch.row_start[row]; t < batch.row_start[row + 1]; ++t) ids[t] = token_id(p, row, t);
  const int threads = context.pool->size();
  const int64_t cols = p.table->cols;
  float* const rooms = arena.allocate_n<float>(static_cast<size_t>(threads) * cols);
  const auto work = [&](int thread) {
    const Share mine = share(batch.num_tokens, thread, threads);
    for (int64_t t = mine.first; t < mine.last; ++t) {
      const int64_t row = ids[t] - p.own.first;
      if (row >= 0 && row < p.table->rows)
        read_packed(*p.table, row, rooms + thread * cols, p.out.row<float>(t));
      else
        std::fill_n(p.out.row<float>(t), cols, 0.0f);
    }
  };
  context.pool->run(std::ref(work));
  arena.reset(mark);
}

void rope(Context& context, const RopeParams& p) {
  const int64_t half = p.inv_freq.shape[0];
  const float* inv_freq = p.inv_freq.as<float>();
  const int threads = context.pool->size();
  const auto work = [&](int thread) {
    const Share mine = share(p.batch->num_tokens, thread, threads);
    for (int64_t t = mine.first; t < mine.last; ++t) {
      float* const out = p.out.row<float>(t);
      const float position = static_cast<float>(p.batch->position[t]);
      for (int64_t i = 0; i < half; ++i) {
        const float angle = position * inv_freq[i];
        out[i] = std::cos(angle) * p.scale;
        out[half + i] = std::sin(angle) * p.scale;
      }
    }
  };
  context.pool->run(std::ref(work));
}

}  // namespace deepinfer::cpu
