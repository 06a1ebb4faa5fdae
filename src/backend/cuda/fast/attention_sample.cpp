#include "backend/cuda/fast/attention_sample.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>
#include <utility>

#include "base/check.h"

namespace deepinfer::cuda {
namespace {

constexpr int32_t kNoBlock = 0x3fffffff;  // behind a row's last block: nothing reads it
constexpr int kSpareBlocks = 3;

// splitmix64
uint64_t next(uint64_t& state) {
  uint64_t z = state += 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

// Multiples of 1/64 up to 2: every dtype holds them exactly.
uint16_t random_16(DType dtype, uint64_t& state) {
  const float x = static_cast<float>(static_cast<int>(next(state) % 255) - 127) / 64.0f;
  const auto bits = std::bit_cast<uint32_t>(x);
  if (dtype == DType::kBF16) return static_cast<uint16_t>(bits >> 16);
  if (x == 0) return 0;
  const uint32_t exponent = (bits >> 23 & 0xff) - 127 + 15;
  return static_cast<uint16_t>(bits >> 16 & 0x8000) |
         static_cast<uint16_t>(exponent << 10 | (bits >> 13 & 0x3ff));
}

// 1/8 to 1.875, either sign.
uint8_t random_e4m3(uint64_t& state) {
  const uint64_t r = next(state);
  return static_cast<uint8_t>((r & 0x80) | ((4 + (r >> 8) % 4) << 3) | (r & 7));
}

float to_float(DType dtype, uint16_t bits) {
  if (dtype == DType::kBF16) return std::bit_cast<float>(uint32_t{bits} << 16);
  const uint32_t exponent = bits >> 10 & 31, mantissa = bits & 0x3ff;
  const float sign = bits & 0x8000 ? -1.0f : 1.0f;
  if (exponent == 31) return mantissa == 0 ? sign * INFINITY : NAN;
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(mantissa), -24);
  return sign * std::ldexp(static_cast<float>(mantissa | 0x400), static_cast<int>(exponent) - 25);
}

size_t aligned(size_t bytes) {
  return (bytes + 255) / 256 * 256;
}

// The step's arrays and tables on the host.
struct Step {
  std::vector<int32_t> row_slot, row_start, context_len, token, position, token_row, row_blocks;
  int32_t decode_rows = 0, max_query = 0, max_context = 0, max_blocks = 0, blocks = 0;
};

Step make_step(const SampleShape& shape, uint64_t& state) {
  Step s;
  const int size = shape.block_size;
  s.row_start.push_back(0);
  for (size_t b = 0; b < shape.rows.size(); ++b) {
    const SampleRow& row = shape.rows[b];
    const int context = row.padding ? 0 : row.context;
    s.row_slot.push_back(static_cast<int32_t>(b));
    s.context_len.push_back(context);
    for (int i = 0; i < row.tokens; ++i) {
      s.token.push_back(0);
      s.position.push_back(row.padding ? -1 : context + i);
      s.token_row.push_back(static_cast<int32_t>(b));
    }
    s.row_start.push_back(static_cast<int32_t>(s.token.size()));
    if (row.tokens == 1 && s.decode_rows == static_cast<int32_t>(b)) ++s.decode_rows;
    s.max_query = std::max(s.max_query, row.tokens);
    s.max_context = std::max(s.max_context, context + row.tokens);
    s.blocks += (context + row.tokens + size - 1) / size;
  }
  s.max_blocks = (s.max_context + size - 1) / size + 2;
  s.blocks += kSpareBlocks;
  std::vector<int32_t> order(static_cast<size_t>(s.blocks));
  std::iota(order.begin(), order.end(), 0);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[next(state) % i]);
  size_t used = 0;
  s.row_blocks.assign(shape.rows.size() * static_cast<size_t>(s.max_blocks), kNoBlock);
  for (size_t b = 0; b < shape.rows.size(); ++b) {
    if (shape.rows[b].padding) continue;
    const int length = s.context_len[b] + shape.rows[b].tokens;
    for (int i = 0; i * size < length; ++i) {
      // Blocks that lie behind the window of the row's first token are freed.
      const bool freed = shape.window > 0 && (i + 1) * size <= s.context_len[b] + 1 - shape.window;
      s.row_blocks[b * static_cast<size_t>(s.max_blocks) + static_cast<size_t>(i)] =
          freed ? -1 : order[used++];
    }
  }
  return s;
}

// What of the pool a step reads, random; all else NaN.
std::vector<std::byte> make_pool(const SampleShape& shape, const Step& s, size_t part, uint64_t& state) {
  std::vector<std::byte> pool(static_cast<size_t>(s.blocks) * 2 * part, std::byte{0xff});
  const size_t element = shape.kv_dtype == DType::kF8E4M3 ? 1 : 2;
  const size_t tile = static_cast<size_t>(shape.block_size) * static_cast<size_t>(shape.dim) * element;
  for (size_t b = 0; b < shape.rows.size(); ++b) {
    if (shape.rows[b].padding) continue;
    for (int p = 0; p < s.context_len[b] + shape.rows[b].tokens; ++p) {
      const int32_t block =
          s.row_blocks[b * static_cast<size_t>(s.max_blocks) + static_cast<size_t>(p / shape.block_size)];
      if (block < 0) continue;
      // The second layer's part; K's heads, then V's.
      std::byte* base = pool.data() + (static_cast<size_t>(block) * 2 + 1) * part;
      for (int head = 0; head < 2 * shape.kv_heads; ++head) {
        std::byte* at = base + static_cast<size_t>(head) * tile +
                        static_cast<size_t>(p % shape.block_size) * static_cast<size_t>(shape.dim) * element;
        for (int d = 0; d < shape.dim; ++d, at += element) {
          const uint16_t bits = element == 1 ? random_e4m3(state) : random_16(shape.kv_dtype, state);
          std::memcpy(at, &bits, element);
        }
      }
    }
  }
  return pool;
}

// Pieces for one copy to the device.
class Pieces {
 public:
  template <class T>
  size_t add(const std::vector<T>& values) {
    const size_t at = bytes_.size();
    bytes_.resize(at + aligned(values.size() * sizeof(T)));
    std::memcpy(bytes_.data() + at, values.data(), values.size() * sizeof(T));
    return at;
  }
  const std::vector<std::byte>& bytes() const { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

}  // namespace

Result<std::unique_ptr<AttentionSample>> AttentionSample::make(Gpu& gpu, const SampleShape& shape) {
  uint64_t state = shape.seed;
  const Step s = make_step(shape, state);
  const size_t element = shape.kv_dtype == DType::kF8E4M3 ? 1 : 2;
  const size_t kv_bytes = static_cast<size_t>(shape.kv_heads) * static_cast<size_t>(shape.block_size) *
                          static_cast<size_t>(shape.dim) * element;
  std::vector<uint16_t> q(s.token.size() * static_cast<size_t>(shape.heads) * static_cast<size_t>(shape.dim));
  for (uint16_t& x : q) x = random_16(shape.activation, state);

  Pieces pieces;
  const size_t at_slot = pieces.add(s.row_slot), at_start = pieces.add(s.row_start),
               at_context = pieces.add(s.context_len), at_token = pieces.add(s.token),
               at_position = pieces.add(s.position), at_token_row = pieces.add(s.token_row),
               at_blocks = pieces.add(s.row_blocks), at_q = pieces.add(q),
               at_pool = pieces.add(make_pool(shape, s, 2 * kv_bytes, state)),
               at_out = pieces.add(std::vector<uint16_t>(q.size(), 0xffff));
  auto sample = std::make_unique<AttentionSample>();
  DI_ASSIGN(Buffer staging, gpu.allocate_pinned(pieces.bytes().size()));
  DI_ASSIGN(sample->memory_, gpu.allocate(pieces.bytes().size()));
  std::memcpy(staging.data(), pieces.bytes().data(), pieces.bytes().size());
  gpu.copy_in(sample->memory_.data(), staging.data(), pieces.bytes().size());
  gpu.synchronize();

  std::byte* base = sample->memory_.data();
  auto ints = [&](size_t at) { return reinterpret_cast<const int32_t*>(base + at); };
  sample->batch_ = {.row_slot = ints(at_slot),
                    .row_start = ints(at_start),
                    .context_len = ints(at_context),
                    .token = ints(at_token),
                    .position = ints(at_position),
                    .token_row = ints(at_token_row),
                    .row_blocks = ints(at_blocks),
                    .max_blocks = s.max_blocks,
                    .decode_rows = s.decode_rows,
                    .max_query = s.max_query,
                    .max_context = s.max_context};
  const std::byte* k = base + at_pool + 2 * kv_bytes;
  sample->attention_ = {.rows = static_cast<int32_t>(shape.rows.size()),
                        .tokens = static_cast<int32_t>(s.token.size()),
                        .heads = shape.heads,
                        .kv_heads = shape.kv_heads,
                        .dim_k = shape.dim,
                        .dim_v = shape.dim,
                        .block_size = shape.block_size,
                        .window = shape.window,
                        .scale = 1.0f / std::sqrt(static_cast<float>(shape.dim)),
                        .activation = shape.activation,
                        .kv_dtype = shape.kv_dtype,
                        .k_scale = shape.k_scale,
                        .v_scale = shape.v_scale,
                        .q = base + at_q,
                        .out = base + at_out,
                        .k = k,
                        .v = k + kv_bytes,
                        .block_stride = 4 * kv_bytes,
                        .batch = &sample->batch_,
                        .row_blocks = ints(at_blocks)};
  return sample;
}

void AttentionSample::clear_out(Gpu& gpu) {
  const auto elements = static_cast<size_t>(int64_t{attention_.tokens} * attention_.heads * attention_.dim_v);
  gpu.fill(attention_.out, 0xff, elements * 2);
}

Result<std::vector<float>> AttentionSample::read_out(Gpu& gpu, int first, int last) {
  const auto row = static_cast<size_t>(attention_.heads) * static_cast<size_t>(attention_.dim_v);
  const size_t count = static_cast<size_t>(last - first) * row;
  std::vector<float> values(count);
  DI_ASSIGN(Buffer staging, gpu.allocate_pinned(count * 2));
  gpu.copy_out(staging.data(),
               static_cast<const std::byte*>(attention_.out) + static_cast<size_t>(first) * row * 2,
               count * 2);
  gpu.synchronize();
  for (size_t i = 0; i < count; ++i) {
    uint16_t bits = 0;
    std::memcpy(&bits, staging.data() + 2 * i, 2);
    values[i] = to_float(attention_.activation, bits);
  }
  return values;
}

}  // namespace deepinfer::cuda
