// Reads rows out of a packed table, and the table of RoPE's angles.
#include <cmath>
#include <cstring>

#include "backend/cpu.h"
#include "backend/cpu/half.h"
#include "backend/cpu/layout.h"
#include "backend/cpu/linear.h"
#include "base/check.h"

namespace deepinfer::cpu {
namespace {

// Values as the format's specification computes them: product and sum are rounded each.
template <class Tile>
void read_row(const Tile* w, int lane, int64_t blocks, float* out) {
  for (int64_t b = 0; b < blocks; ++b, ++w, out += kTileK) {
    const float d = f16_to_float(w->d[lane]);
    for (int i = 0; i < kTileK; ++i) {
      if constexpr (requires(Tile t) { t.q[4]; } && sizeof(Tile) == sizeof(TileQ8_0)) {
        out[i] = d * static_cast<float>(w->q[i / 4][lane * 4 + i % 4]);
      } else {
        const int byte = w->q[i % 16 / 4][lane * 4 + i % 4];
        const int q = i < 16 ? byte & 15 : byte >> 4;
        if constexpr (sizeof(Tile) == sizeof(TileQ4_1)) {
          const float product = d * static_cast<float>(q);
          out[i] = product + f16_to_float(w->m[lane]);
        } else {
          out[i] = d * static_cast<float>(q - 8);
        }
      }
    }
  }
}

void read_packed(const LinearWeight& table, int64_t row, float* out) {
  const std::byte* group = table.packed.data() + row / kGroupRows * group_bytes(table.source, table.cols);
  const int lane = static_cast<int>(row % kGroupRows);
  const int64_t blocks = table.cols / kTileK;
  switch (table.source) {
    case DType::kQ4_0:
      return read_row(reinterpret_cast<const TileQ4_0*>(group), lane, blocks, out);
    case DType::kQ4_1:
      return read_row(reinterpret_cast<const TileQ4_1*>(group), lane, blocks, out);
    case DType::kQ8_0:
      return read_row(reinterpret_cast<const TileQ8_0*>(group), lane, blocks, out);
    default:
      break;
  }
  const auto* halves = reinterpret_cast<const uint16_t*>(group) + lane;
  const auto* floats = reinterpret_cast<const float*>(group) + lane;
  for (int64_t i = 0; i < table.cols; ++i) {
    const int64_t at = i * kGroupRows;
    out[i] = table.source == DType::kF32   ? floats[at]
             : table.source == DType::kF16 ? f16_to_float(halves[at])
                                           : bf16_to_float(halves[at]);
  }
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
  DI_CHECK(id >= 0 && id < p.table->rows, "token {}: id {} of a vocabulary of {}", t, id, p.table->rows);
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
  const auto work = [&](int thread) {
    const Share mine = share(batch.num_tokens, thread, threads);
    for (int64_t t = mine.first; t < mine.last; ++t) read_packed(*p.table, ids[t], p.out.row<float>(t));
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
